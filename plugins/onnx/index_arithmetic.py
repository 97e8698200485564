"""Which nodes of a graph calculate whole numbers in floating point, such as the buckets of relative positions.

Fewer bits there move an index to another row of a table, or out of it: such nodes stay float32.
"""

from __future__ import annotations

from typing import Any

__all__ = ["index_arithmetic"]

_WHOLE = frozenset({"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"})
_ELEMENTWISE = frozenset(
    {
        "Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "Constant", "Div", "Exp", "Expand", "Floor", "Gather",
        "Identity", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Range", "Reciprocal", "Reshape", "Round", "Sign",
        "Slice", "Sqrt", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators that indices are calculated with; what a model learned goes through others as well."""


def index_arithmetic(proto: Any) -> list[str]:
    """Return the names of nodes all of whose work ends in whole numbers, in the graph's order."""
    from onnx import TensorProto

    kinds = {int(TensorProto.DataType.Value(name)) for name in _WHOLE}
    graph = proto.graph
    makers = {name: node for node in graph.node for name in node.output if name}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    found: dict[int, Any] = {}

    def only_whole(node: Any) -> bool:
        """Whether all that reads what a node gives is found already."""
        return not any(
            name in outputs or any(id(reader) not in found for reader in readers.get(name, ())) for name in node.output
        )

    waiting = [node for node in graph.node if _casts_to(node) in kinds]
    while waiting:
        node = waiting.pop()
        if id(node) in found or not (_casts_to(node) in kinds or only_whole(node)):
            continue
        found[id(node)] = node
        waiting += [
            maker
            for name in node.input
            if (maker := makers.get(name)) is not None
            and maker.op_type in _ELEMENTWISE
            and _casts_to(maker) not in kinds
        ]
    return [node.name for node in graph.node if id(node) in found and node.op_type not in ("Cast", "Identity")]


def _casts_to(node: Any) -> int | None:
    if node.op_type != "Cast":
        return None
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "to"), None)
