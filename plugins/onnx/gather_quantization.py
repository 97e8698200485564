"""Tables that Gather reads (embeddings) in blocks of few bits, rounded to nearest: com.microsoft.GatherBlockQuantized.

Values are packed into uint8 along the last axis, as ONNX Runtime's operator takes them in every operator set; its zero
point of a block without one is the middle of the grid.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

__all__ = ["quantizable_gathers", "quantize_gathers"]

_FLOATS = (1, 10)
"""onnx.TensorProto's FLOAT and FLOAT16."""


def quantizable_gathers(proto: Any, excluded: Collection[str] = ()) -> list[Any]:
    """Return the graph's Gather nodes that read rows of a table of floats."""
    tables = {t.name for t in proto.graph.initializer if len(t.dims) == 2 and t.data_type in _FLOATS}
    return [
        node
        for node in proto.graph.node
        if node.op_type == "Gather" and node.input[0] in tables and node.name not in excluded and _axis(node) == 0
    ]


def quantize_gathers(proto: Any, nodes: Sequence[Any], *, bits: int, block_size: int, symmetric: bool) -> None:
    """Replace the nodes, in place; a table that only they read goes."""
    from onnx import helper, numpy_helper

    graph = proto.graph
    tables = {t.name: t for t in graph.initializer if t.name in {node.input[0] for node in nodes}}
    names: dict[str, list[str]] = {}
    for name, tensor in tables.items():
        values = numpy_helper.to_array(tensor)
        packed, scales, zeros = _packed(values.astype(np.float32), bits, block_size, symmetric)
        parts = {f"{name}_Q{bits}": packed, f"{name}_scales": scales.astype(values.dtype)}
        if zeros is not None:
            parts[f"{name}_zero_points"] = zeros
        graph.initializer.extend(numpy_helper.from_array(array, part) for part, array in parts.items())
        names[name] = list(parts)
    for node in nodes:
        table, *others = names[node.input[0]]
        made = helper.make_node(
            "GatherBlockQuantized",
            [table, node.input[1], *others],
            list(node.output),
            f"{node.name}_Q{bits}",
            domain="com.microsoft",
            gather_axis=0,
            quantize_axis=1,
            block_size=block_size,
            bits=bits,
        )
        node.CopyFrom(made)
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name not in tables or tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    if all(item.domain != "com.microsoft" for item in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _axis(node: Any) -> int:
    return next((item.i for item in node.attribute if item.name == "axis"), 0)


def _packed(
    values: np.ndarray, bits: int, block_size: int, symmetric: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return (rows, width / values a byte) numbers, (rows, blocks) scales, and zero points packed the same way."""
    rows, width = values.shape
    blocks = -(-width // block_size)
    padded = np.pad(values, ((0, 0), (0, blocks * block_size - width))).reshape(rows, blocks, block_size)
    middle, most = 1 << (bits - 1), (1 << bits) - 1
    low, high = padded.min(axis=2), padded.max(axis=2)
    if symmetric:
        # The value of largest magnitude is met exactly, by the end of the grid that reaches farther.
        scales = np.where(-low > high, low, high) / -middle
        zeros = np.full(scales.shape, middle)
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scales = (high - low) / most
        zeros = np.rint(-low / np.where(scales == 0, 1, scales)).clip(0, most)
    divisors = np.where(scales == 0, 1, scales)[..., None]
    numbers = (np.rint(padded / divisors) + zeros[..., None]).clip(0, most).astype(np.uint8)
    numbers = numbers.reshape(rows, -1)[:, :width]
    return (
        _pairs(numbers, bits),
        scales.astype(np.float32),
        None if symmetric else _pairs(zeros.astype(np.uint8), bits),
    )


def _pairs(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Pack two numbers of 4 bits into a byte, along the last axis."""
    if bits == 8:
        return numbers
    even = np.pad(numbers, ((0, 0), (0, numbers.shape[1] % 2)))
    packed: np.ndarray = (even[:, 0::2] | (even[:, 1::2] << 4)).astype(np.uint8)
    return packed
