"""Made-up inputs by the shapes that a model tells, for where there are no data."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from drupe.plugins.metrics.sequence_lengths import LENGTHS, sequence_lengths

if TYPE_CHECKING:
    import numpy as np

__all__ = ["NONE", "made_up_inputs"]

NONE: Mapping[str, int] = MappingProxyType({})
_LENGTH = 32
"""Length of sequences that nothing is said of."""


def made_up_inputs(
    shapes: Mapping[str, tuple[tuple[int | str, ...], Any]],
    *,
    seed: int,
    batch_size: int = 1,
    lengths: Mapping[str, int] = NONE,
    below: Mapping[str, int] = NONE,
    past: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
    """Return input name → array.

    shapes: name → (shape, dtype), axes of no fixed length by name. lengths: of named axes; of the others the first is
    the batch and the rest are 32; one that is named as a sum (past_sequence_length + 1) has the sum of its parts.
    below: integers of an input are less than this (2). past: how inputs begin that hold keys and values of earlier
    tokens, of which there are none where lengths don't say; not given, they are made up as others are.
    """
    import numpy as np

    earlier = {axis for name, (shape, _) in shapes.items() if name.startswith(past) for axis in shape[1:]}

    def length(axis: int | str, default: int) -> int:
        if isinstance(axis, int) and axis > 0:
            return axis
        text = str(axis)
        if text in lengths:
            return lengths[text]
        if " + " in text:
            return sum(length(part, 0 if part in earlier else _LENGTH) for part in text.split(" + "))
        return int(text) if text.isdigit() else default

    random = np.random.default_rng(seed)
    inputs = {}
    for name, (shape, dtype) in shapes.items():
        rest = 0 if name.startswith(past) else _LENGTH
        sizes = [length(axis, batch_size if position == 0 else rest) for position, axis in enumerate(shape)]
        if "mask" in name:
            inputs[name] = np.ones(sizes, dtype)
        elif np.issubdtype(np.dtype(dtype), np.floating):
            inputs[name] = random.standard_normal(sizes).astype(dtype)
        elif name == "position_ids" and sizes:
            inputs[name] = np.broadcast_to(np.arange(sizes[-1]), sizes).astype(dtype)
        else:
            inputs[name] = random.integers(0, below.get(name, 2), sizes).astype(dtype)
    ids = inputs.get("input_ids")
    if ids is not None and ids.ndim == 2:
        behind = next((a.shape[2] for n, a in inputs.items() if n.startswith("past_key") and a.ndim == 4), 0)
        total = ids.shape[1] + behind
        inputs |= {name: sequence_lengths(name, [total] * len(ids), total) for name in LENGTHS if name in inputs}
    return inputs
