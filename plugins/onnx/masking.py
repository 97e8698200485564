"""Which nodes carry values near minus infinity, by which attention masks padding and what comes later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["masking"]

_HUGE = 1e30
_CARRIERS = frozenset(
    {
        "Add", "Cast", "Concat", "ConstantOfShape", "Expand", "Gather", "Identity", "Max", "Min", "Mul", "Reshape",
        "ScatterND", "Slice", "Squeeze", "Sub", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators that hand such values on. Behind Softmax they are gone."""


def masking(proto: Any) -> list[str]:
    """Return the names of nodes that take or give such values, from the constants to Softmax, in the graph's order.

    A scale that reaches minus infinity leaves nothing of what the values are added to.
    """
    graph = proto.graph
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if not (node.op_type == "Clip" and place):
                readers.setdefault(name, []).append(node)
    found: dict[int, Any] = {}
    waiting = [node for name in _huge(proto) for node in readers.get(name, ())]
    while waiting:
        node = waiting.pop()
        if id(node) in found or node.op_type not in (*_CARRIERS, "Softmax"):
            continue
        found[id(node)] = node
        if node.op_type != "Softmax":
            waiting += [reader for name in node.output for reader in readers.get(name, ())]
    return [node.name for node in graph.node if id(node) in found]


def _huge(proto: Any) -> Iterator[str]:
    """Yield the names of constants that hold such values."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    floats = (TensorProto.FLOAT, TensorProto.DOUBLE)
    held = [(tensor.name, tensor) for tensor in proto.graph.initializer]
    for node in proto.graph.node:
        if node.op_type in ("Constant", "ConstantOfShape"):
            held += [(node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value"]
    for name, tensor in held:
        if tensor.data_type in floats and np.any(numpy_helper.to_array(tensor) < -_HUGE):
            yield name
