"""Made-up inputs of a graph, by its own shapes, for where there are no data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from drupe.plugins.metrics.made_up import NONE, made_up_inputs
from drupe.plugins.onnx.calibration import PAST

if TYPE_CHECKING:
    import numpy as np

__all__ = ["made_up_batch", "table_sizes"]


def made_up_batch(
    inputs: Mapping[str, tuple[tuple[int | str, ...], Any]],
    *,
    seed: int,
    batch_size: int = 1,
    lengths: Mapping[str, int] = NONE,
    below: Mapping[str, int] = NONE,
) -> dict[str, np.ndarray]:
    """Return input name → array of a graph's inputs at its first step, with no earlier tokens. See made_up_inputs."""
    return made_up_inputs(inputs, seed=seed, batch_size=batch_size, lengths=lengths, below=below, past=PAST)


def table_sizes(proto: Any) -> dict[str, int]:
    """Return input name → how many rows the table has that it chooses from, for inputs that look up a weight."""
    rows = {tensor.name: int(tensor.dims[0]) for tensor in proto.graph.initializer if len(tensor.dims) == 2}
    return {
        node.input[1]: rows[node.input[0]]
        for node in proto.graph.node
        if node.op_type == "Gather" and node.input[0] in rows
    }
