"""Graphs of several ranks as one graph for one process: what they exchange is a sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drupe.core.errors import PassError
from drupe.plugins.onnx.graphs import rename_values
from drupe.plugins.onnx.joining import content_of
from drupe.plugins.onnx.splitting import inputs_of

__all__ = ["joined_ranks"]


def joined_ranks(name: str, protos: Sequence[Any]) -> Any:
    """Return one onnx.ModelProto that calculates what ranks do together; it gives what the first of them gives.

    name: who asks, for messages. All take the same inputs. Each AllReduce is the sum over the ranks; weights that are
    equal in all are there once. Raises PassError for another operator that speaks to other ranks, and for ranks
    that don't meet.
    """
    import onnx
    from onnx import helper

    first = protos[0]
    inputs = {value.name for value in first.graph.input}
    shared = _shared(protos)
    nodes: list[Any] = []
    weights: list[Any] = []
    partials: list[list[str]] = []
    for rank, proto in enumerate(protos):
        if {value.name for value in proto.graph.input} != inputs:
            raise PassError(f"{name}: rank {rank} takes other inputs than rank 0")
        names = {n: f"rank{rank}/{n}" for node in proto.graph.node for n in node.output if n}
        for tensor in proto.graph.initializer:
            if tensor.name not in shared:
                names[tensor.name] = f"rank{rank}/{tensor.name}"
            if rank == 0 or tensor.name not in shared:
                weight = onnx.TensorProto()
                weight.CopyFrom(tensor)
                weight.name = names.get(tensor.name, tensor.name)
                weights.append(weight)
        sums = 0
        for node in proto.graph.node:
            if node.domain == "com.microsoft" and node.op_type in ("AllGather", "AllToAll"):
                raise PassError(
                    f"{name}: node {node.name!r} is an {node.op_type}; only AllReduce can be run in one process"
                )
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"rank{rank}/{node.name}"
            rename_values(copy, names)
            if node.domain == "com.microsoft" and node.op_type == "AllReduce":
                if rank == 0:
                    partials.append([])
                if sums >= len(partials):
                    raise PassError(f"{name}: rank {rank} has more exchanges than rank 0, in node {node.name!r}")
                partials[sums].append(copy.input[0])
                copy = helper.make_node("Identity", [f"sum{sums}"], [copy.output[0]], copy.name)
                sums += 1
            nodes.append(copy)
        if sums != len(partials):
            raise PassError(f"{name}: rank {rank} has {sums} exchanges, and rank 0 has {len(partials)}")
    nodes += [helper.make_node("Sum", parts, [f"sum{number}"], f"sum{number}") for number, parts in enumerate(partials)]
    outputs = [value.name for value in first.graph.output]
    nodes += [helper.make_node("Identity", [f"rank0/{output}"], [output], f"give/{output}") for output in outputs]
    graph = helper.make_graph(_in_order(nodes), "ranks", list(first.graph.input), list(first.graph.output), weights)
    joined = helper.make_model(graph, opset_imports=list(first.opset_import), ir_version=first.ir_version)
    joined.functions.extend(first.functions)
    return joined


def _shared(protos: Sequence[Any]) -> set[str]:
    """Return the names of the weights that are the same in all ranks."""
    known = {tensor.name: content_of(tensor) for tensor in protos[0].graph.initializer}
    for proto in protos[1:]:
        there = {tensor.name: content_of(tensor) for tensor in proto.graph.initializer}
        known = {name: content for name, content in known.items() if there.get(name) == content}
    return set(known)


def _in_order(nodes: Sequence[Any]) -> list[Any]:
    """Return nodes so that each comes behind those whose values it reads."""
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{makers[name] for name in inputs_of(node) if name in makers} for node in nodes]
    users: dict[int, list[int]] = {}
    for index, before in enumerate(needs):
        for maker in before:
            users.setdefault(maker, []).append(index)
    left = [len(before) for before in needs]
    ready = [index for index, count in enumerate(left) if not count]
    order: list[int] = []
    while ready:
        index = ready.pop()
        order.append(index)
        for user in users.get(index, ()):
            left[user] -= 1
            if not left[user]:
                ready.append(user)
    return [nodes[index] for index in order]
