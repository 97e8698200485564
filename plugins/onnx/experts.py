"""Finds a graph's mixtures of experts, and keeps of them those of one rank.

A mixture chooses experts for each token (TopK), takes their weights from tables of all experts (Gather, GatherND), and
adds their answers up, each times the share that the router gives it. That is how OnnxConversion exports them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drupe.core.errors import PassError
from drupe.plugins.onnx.graphs import replace_name
from drupe.plugins.onnx.opset import opset_of
from drupe.plugins.onnx.splitting import inputs_of

__all__ = ["Mixture", "find_mixtures", "kept_experts"]

_LEAST_OPSET = 15
"""CastLike is of this operator set."""
_SHAPING = ("Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Transpose")
_ADDING = (*_SHAPING, "ReduceSum", "Cast")


@dataclass(frozen=True)
class Mixture:
    """One layer's experts.

    router: the node that chooses. experts: how many there are. tables: names of the weights whose first axis is the
    expert. lookups: nodes that take from them. readers: nodes that take the choice on its way to the tables. share: the
    router's weight of each choice, of the choice's shape; sharer: the node that takes it on its way to the answers.
    answer: the value that is a sum over experts.
    """

    router: str
    choice: str
    experts: int
    tables: tuple[str, ...]
    lookups: tuple[str, ...]
    readers: tuple[str, ...]
    share: str
    sharer: str
    answer: str


def find_mixtures(pass_name: str, proto: Any) -> list[Mixture]:
    """Return the mixtures in the order in which they run. Raises PassError for none, and for one that can't be cut."""
    graph = proto.graph
    for node in graph.node:
        if node.op_type in ("MoE", "QMoE", "MoEPacked"):
            raise PassError(
                f"{pass_name}: node {node.name!r} is ONNX Runtime's fused {node.op_type}, which routes and calculates "
                "in one; split the graph before it is fused (OnnxConversion exports the parts)"
            )
    if opset_of(proto) < _LEAST_OPSET:
        raise PassError(
            f"{pass_name}: the graph has opset {opset_of(proto)}; expected {_LEAST_OPSET} or more; put "
            "OnnxOpVersionConversion before"
        )
    search = _Search(pass_name, graph)
    found = [mixture for node in graph.node if node.op_type == "TopK" and (mixture := search.mixture(node))]
    if not found:
        routers = [node.name for node in graph.node if node.op_type == "TopK"]
        raise PassError(
            f"{pass_name}: no mixture of experts is in the graph: expected a TopK whose choice takes weights from "
            f"tables of all experts (Gather or GatherND); TopK nodes are {', '.join(routers[:4]) or 'none'}"
        )
    search.check_tables(found)
    return found


class _Search:
    def __init__(self, pass_name: str, graph: Any) -> None:
        self._pass = pass_name
        self._nodes = list(graph.node)
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {name: node for node in self._nodes for name in node.output if name}
        self._users: dict[str, list[Any]] = {}
        for node in self._nodes:
            for name in dict.fromkeys(inputs_of(node)):
                self._users.setdefault(name, []).append(node)

    def mixture(self, router: Any) -> Mixture | None:
        """Return the mixture that a TopK chooses for, or None where it chooses something else."""
        choice = router.output[1]
        lookups, readers = self._lookups(choice)
        if not lookups:
            return None
        counts = {int(self._weights[node.input[0]].dims[0]) for node in lookups}
        if len(counts) != 1:
            raise PassError(
                f"{self._pass}: the choice of node {router.name!r} takes from tables of {sorted(counts)} experts; "
                f"expected one number ({', '.join(node.input[0] for node in lookups)})"
            )
        shares = self._after([router.output[0], *self._scores(choice)])
        expert_values = self._after([node.output[0] for node in lookups])
        for node in self._nodes:
            if node.op_type != "Mul":
                continue
            sides = [name for name in node.input if name in expert_values]
            others = [name for name in node.input if name in shares and name not in expert_values]
            if len(sides) == 1 and len(others) == 1:
                share, sharer = self._back(others[0], node)
                return Mixture(
                    router.name,
                    choice,
                    counts.pop(),
                    tuple(dict.fromkeys(node.input[0] for node in lookups)),
                    tuple(node.name for node in lookups),
                    tuple(readers),
                    share,
                    sharer,
                    self._sum(node.output[0]),
                )
        raise PassError(
            f"{self._pass}: node {router.name!r} chooses experts, and no product of their answers with the router's "
            "shares is in the graph"
        )

    def check_tables(self, mixtures: Sequence[Mixture]) -> None:
        """Raise PassError for a table that is read in another way as well."""
        lookups = {name for mixture in mixtures for name in mixture.lookups}
        for mixture in mixtures:
            for table in mixture.tables:
                for node in self._users.get(table, ()):
                    if node.name not in lookups:
                        raise PassError(
                            f"{self._pass}: node {node.name!r} ({node.op_type}) reads {table}, the experts of "
                            f"{mixture.router!r}, by another choice than theirs; a rank has only its own"
                        )

    def _lookups(self, choice: str) -> tuple[list[Any], list[str]]:
        """Return the nodes that take from tables by a choice, and the names of those that read the choice itself."""
        found: list[Any] = []
        readers: list[str] = []
        for first in self._users.get(choice, ()):
            values, here = [], []
            if self._is_lookup(first, choice):
                here.append(first)
            elif first.op_type in (*_SHAPING, "Cast") and first.input[0] == choice:
                values.append(first.output[0])
            while values:
                value = values.pop()
                for node in self._users.get(value, ()):
                    if self._is_lookup(node, value):
                        here.append(node)
                    elif node.op_type in (*_SHAPING, "Cast") and node.input[0] == value:
                        values.append(node.output[0])
            if here:
                readers.append(first.name)
                found += here
        return found, readers

    def _is_lookup(self, node: Any, value: str) -> bool:
        if node.op_type not in ("Gather", "GatherND") or node.input[1] != value or node.input[0] not in self._weights:
            return False
        axis = next((item.i for item in node.attribute if item.name in ("axis", "batch_dims")), 0)
        return axis == 0 and len(self._weights[node.input[0]].dims) >= 2

    def _scores(self, choice: str) -> list[str]:
        """Return what is taken from the router's scores by the choice, where the shares are not what TopK ranks by."""
        return [
            node.output[0]
            for node in self._users.get(choice, ())
            if node.op_type == "GatherElements" and node.input[1] == choice
        ]

    def _after(self, values: Sequence[str]) -> set[str]:
        """Return values and all that is calculated from them."""
        found, stack = set(values), list(values)
        while stack:
            for node in self._users.get(stack.pop(), ()):
                new = [name for name in node.output if name and name not in found]
                found.update(new)
                stack += new
        return found

    def _back(self, value: str, reader: Any) -> tuple[str, str]:
        """Return the value before all that only shapes it, and the name of the node that reads it on the way."""
        while (maker := self._makers[value]).op_type in (*_SHAPING, "Cast"):
            value, reader = maker.input[0], maker
        return value, reader.name

    def _sum(self, value: str) -> str:
        """Return the sum that a product of answers goes into, if nothing else reads what is on the way; else itself."""
        found = value
        while len(users := self._users.get(value, [])) == 1 and users[0].op_type in _ADDING:
            if users[0].input[0] != value:
                break
            value = users[0].output[0]
            if users[0].op_type == "ReduceSum":
                return value
        return found


def kept_experts(proto: Any, mixtures: Sequence[Mixture], first: int, count: int) -> Any:
    """Return the graph of a rank that has `count` experts from `first` on; what it adds up goes through an AllReduce.

    The choice is counted from the rank's first expert; others are taken for that one, with a share of 0.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    ranked = onnx.ModelProto()
    ranked.CopyFrom(proto)
    graph = ranked.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for table in {name for mixture in mixtures for name in mixture.tables}:
        rows = numpy_helper.to_array(weights[table])[first : first + count]
        weights[table].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(rows), table))
    for name, number in (("first", first), ("none", 0), ("count", count)):
        graph.initializer.append(numpy_helper.from_array(np.array(number, np.int64), f"experts/{name}"))
    # Value → nodes that come right behind the one that makes it, those for the choice before those that need them.
    choices: dict[str, list[Any]] = {}
    behind: dict[str, list[Any]] = {}
    for mixture in mixtures:
        title = f"{mixture.router or mixture.choice}/rank"
        here, low, high, inside, own = (f"{title}/{part}" for part in ("here", "low", "high", "inside", "own"))
        part, masked, partial = f"{title}/part", f"{title}/share", f"{title}/partial"
        choosing = [
            helper.make_node("Sub", [mixture.choice, "experts/first"], [here], f"{title}/Sub"),
            helper.make_node("GreaterOrEqual", [here, "experts/none"], [low], f"{title}/GreaterOrEqual"),
            helper.make_node("Less", [here, "experts/count"], [high], f"{title}/Less"),
            helper.make_node("And", [low, high], [inside], f"{title}/And"),
            helper.make_node("Where", [inside, here, "experts/none"], [own], f"{title}/Where"),
        ]
        sharing = [
            helper.make_node("CastLike", [inside, mixture.share], [part], f"{title}/CastLike"),
            helper.make_node("Mul", [mixture.share, part], [masked], f"{title}/Mul"),
        ]
        adding = [
            helper.make_node("AllReduce", [partial], [mixture.answer], f"{title}/AllReduce", domain="com.microsoft")
        ]
        for node in graph.node:
            if node.name in mixture.readers:
                replace_name(node.input, mixture.choice, own)
            if node.name == mixture.sharer:
                replace_name(node.input, mixture.share, masked)
            if mixture.answer in node.output:
                replace_name(node.output, mixture.answer, partial)
        choices.setdefault(mixture.choice, []).extend(choosing)
        behind.setdefault(mixture.share, []).extend(sharing)
        behind.setdefault(partial, []).extend(adding)
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for told in (choices, behind):
            for name in node.output:
                nodes += told.get(name, ())
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    if all(entry.domain != "com.microsoft" for entry in ranked.opset_import):
        ranked.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return ranked
