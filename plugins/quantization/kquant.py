"""KQuant: each group's scale and zero point are those of the least squared error, found by least squares.

What llama.cpp's k-quants do for a scale and an offset (ggml-quants.c), for grids whose offset is a whole number of
steps: ranges around the full one are tried, the numbers that each gives are kept, and scale and offset solved for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from drupe.core.config import Ordered, PassConfig, searchable
from drupe.plugins.quantization.checkpoint import QuantizedLayer
from drupe.plugins.quantization.grid import dequantize, fit, quantize
from drupe.plugins.quantization.layers import Scheme
from drupe.plugins.quantization.rounding import EmbeddingConfig, RoundingQuantizer, on_grid

__all__ = ["KQuant", "KQuantConfig", "fit_by_least_squares"]

_OFFSETS = tuple(0.1 * step for step in range(-10, 10))
"""Steps, beyond those that the grid has, into which a group's range is divided."""
_AT_ONCE = 1 << 22
"""Weights that are fitted together: what is tried for them takes about ten times their memory."""
_ROUNDS = 2
"""How often numbers and grid are solved for each other, from each range that is tried."""


class KQuantConfig(EmbeddingConfig):
    """The grid."""

    group_size: Literal[-1, 16, 32, 64, 128, 256] = searchable(
        32,
        Ordered(32, 64, 128),
        doc="Columns that share a scale; it must divide the layers' widths. -1: the whole row.",
    )


class KQuant(RoundingQuantizer):
    """Rounds to the grids of the least squared error. No data is needed.

    Rules: 1. A group's squared error is never above that of Rtn, whose grid is what the search begins with. 2. Zero
    stays exact: a pruned weight remains zero. 3. Of a model that another quantizer made, the layers that it left are
    quantized. 4. The result is what ModelBuilder takes over as it is. 5. Squared error of one layer of SmolLM2-135M
    whose states were rotated, four bits and a zero point for each 32 weights: 179 here, 186 by Rtn, 199 by Rtn without
    its search, 206 by onnxruntime's k-quant.
    """

    Config: ClassVar[type[PassConfig]] = KQuantConfig
    version = 1

    def rounded(self, weights: Any, scheme: Scheme, config: KQuantConfig) -> QuantizedLayer:
        """See RoundingQuantizer.rounded."""
        rows, columns = weights.shape
        groups = weights.float().reshape(rows, columns // scheme.group_size, scheme.group_size)
        return on_grid(groups, *fit_by_least_squares(groups, scheme.bits, scheme.symmetric), scheme)


def fit_by_least_squares(weights: Any, bits: int, symmetric: bool) -> tuple[Any, Any]:
    """Return (scale, zero) for groups of weights as grid.fit does. weights: (rows, groups, group)."""
    import torch

    rows = max(1, _AT_ONCE // max(1, weights[0].numel()))
    found = [_fitted(part, bits, symmetric) for part in weights.split(rows)]
    return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])


def _fitted(weights: Any, bits: int, symmetric: bool) -> tuple[Any, Any]:
    import torch

    scale, zero = fit(weights, bits, symmetric)
    least = _error(weights, scale, zero, bits)

    def consider(scale_now: Any, zero_now: Any) -> None:
        nonlocal scale, zero, least
        error = _error(weights, scale_now, zero_now, bits)
        better = error < least
        scale, zero = torch.where(better, scale_now, scale), torch.where(better, zero_now, zero)
        least = torch.where(better, error, least)

    for numbers in _numbers(weights, bits, symmetric):
        for _ in range(_ROUNDS):
            solved = _solved(weights, numbers, bits, symmetric)
            consider(*solved)
            numbers = quantize(weights, *solved, bits)
    # The zero points beside the best one, each with the scale that suits it.
    for change in (0.0,) if symmetric else (0.0, -1.0, 1.0):
        moved = (zero + change).clamp(0, (1 << bits) - 1)
        consider(_scale(weights, quantize(weights, scale, moved, bits) - moved, scale), moved)
    return scale, zero


def _error(weights: Any, scale: Any, zero: Any, bits: int) -> Any:
    return (dequantize(quantize(weights, scale, zero, bits), scale, zero) - weights).square().sum(-1, keepdim=True)


def _numbers(weights: Any, bits: int, symmetric: bool) -> Iterator[Any]:
    """Yield the numbers of the grid that ranges around the full one give; they need no whole zero point yet."""
    import torch

    levels = (1 << bits) - 1
    if symmetric:
        middle = 1 << (bits - 1)
        extreme = weights.gather(-1, weights.abs().argmax(-1, keepdim=True))
        step = torch.where(extreme == 0, torch.ones_like(extreme), extreme)
        for offset in _OFFSETS:
            # The end with one number more is either the largest weight's or the other one.
            for most in (-(middle + offset), middle - 1 + offset):
                yield torch.clamp(torch.round(weights * (most / step)) + middle, 0, levels)
        return
    low = weights.amin(-1, keepdim=True).clamp(max=0)
    span = weights.amax(-1, keepdim=True).clamp(min=0) - low
    span = torch.where(span == 0, torch.ones_like(span), span)
    for offset in _OFFSETS:
        yield torch.clamp(torch.round((weights - low) * ((levels + offset) / span)), 0, levels)


def _solved(weights: Any, numbers: Any, bits: int, symmetric: bool) -> tuple[Any, Any]:
    """Return the grid (scale, zero) of the least squared error for given numbers."""
    import torch

    if symmetric:
        zero = torch.full_like(weights[..., :1], 1 << (bits - 1))
        return _scale(weights, numbers - zero, torch.ones_like(zero)), zero
    mean, middle = weights.mean(-1, keepdim=True), numbers.mean(-1, keepdim=True)
    slope = _scale(weights - mean, numbers - middle, torch.ones_like(mean))
    # A weight is scale * (number - zero) on average too.
    zero = torch.round(middle - mean / slope).clamp(0, (1 << bits) - 1)
    return _scale(weights, numbers - zero, slope), zero


def _scale(weights: Any, steps: Any, otherwise: Any) -> Any:
    """Return the scale that takes steps nearest to weights; `otherwise` where it would be zero."""
    import torch

    power = steps.square().sum(-1, keepdim=True)
    product = (weights * steps).sum(-1, keepdim=True)
    none = (power == 0) | (product == 0)
    return torch.where(none, otherwise, product / torch.where(none, torch.ones_like(power), power))
