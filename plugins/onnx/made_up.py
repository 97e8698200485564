"""Made-up inputs of a graph, by its own shapes, for where there are no data."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from drupe.plugins.onnx.calibration import PAST

if TYPE_CHECKING:
    import numpy as np

__all__ = ["made_up_batch", "table_sizes"]

_LENGTH = 32
"""Length of made-up sequences."""
_NONE: Mapping[str, int] = MappingProxyType({})


def made_up_batch(
    inputs: Mapping[str, tuple[tuple[int | str, ...], Any]],
    *,
    seed: int,
    batch_size: int = 1,
    lengths: Mapping[str, int] = _NONE,
    below: Mapping[str, int] = _NONE,
) -> dict[str, np.ndarray]:
    """Return input name → array of a graph's inputs.

    inputs: name → (shape, dtype), axes of no fixed length by name. lengths: of named axes; the first axis is the batch,
    keys and values of earlier tokens have none, others 32. below: integers of an input are less than this (2).
    """
    import numpy as np

    random = np.random.default_rng(seed)
    batch = {}
    for name, (shape, dtype) in inputs.items():
        past = name.startswith(PAST)
        sizes = [
            size if isinstance(size, int) else lengths.get(size, batch_size if axis == 0 else 0 if past else _LENGTH)
            for axis, size in enumerate(shape)
        ]
        if "mask" in name:
            batch[name] = np.ones(sizes, dtype)
        elif np.issubdtype(dtype, np.floating):
            batch[name] = random.standard_normal(sizes).astype(dtype)
        elif name == "position_ids":
            batch[name] = np.broadcast_to(np.arange(sizes[-1]), sizes).astype(dtype)
        else:
            batch[name] = random.integers(0, below.get(name, 2), sizes).astype(dtype)
    return batch


def table_sizes(proto: Any) -> dict[str, int]:
    """Return input name → how many rows the table has that it chooses from, for inputs that look up a weight."""
    rows = {tensor.name: int(tensor.dims[0]) for tensor in proto.graph.initializer if len(tensor.dims) == 2}
    return {
        node.input[1]: rows[node.input[0]]
        for node in proto.graph.node
        if node.op_type == "Gather" and node.input[0] in rows
    }
