"""The grid that weights are rounded to: each group of a row has a scale and, unless symmetric, a zero point."""

from __future__ import annotations

from typing import Any

__all__ = ["TYPE_BITS", "dequantize", "fit", "fit_to_inputs", "quantize"]

TYPE_BITS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8}
"""Types that files name where the number of bits is meant; whether a grid has a zero point is said apart."""

_SHRINK = (1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.825, 0.8)
"""Shares of the full range that are tried: a smaller step for most weights may be worth cutting the largest."""


def fit(weights: Any, bits: int, symmetric: bool, *, search: bool = True) -> tuple[Any, Any]:
    """Return (scale, zero) for groups of weights, each of the leading shape with a last axis of one.

    weights: float tensor (…, group). Numbers are scale · (q − zero) with q from 0 to 2**bits − 1. Symmetric groups have
    their zero in the middle, and the number of largest magnitude at the end that has one step more; so a scale may be
    negative. search: choose the range with the least squared error.
    """
    return fit_to_inputs(weights, None, bits, symmetric, search=search)


def fit_to_inputs(weights: Any, moments: Any, bits: int, symmetric: bool, *, search: bool = True) -> tuple[Any, Any]:
    """Return what `fit` does, chosen by the error of the layer's outputs.

    weights: (rows, groups, group). moments: the second moments (groups, group, group) of each group's inputs, or None
    for inputs that are alike.
    """
    import torch

    levels = (1 << bits) - 1
    best: tuple[Any, Any] | None = None
    least: Any = None
    for share in _SHRINK if search else _SHRINK[:1]:
        for scale, zero in _candidates(weights, bits, symmetric, share):
            change = dequantize(quantize(weights, scale, zero, bits), scale, zero) - weights
            felt = change if moments is None else torch.einsum("rgi,gij->rgj", change, moments)
            error = (felt * change).sum(-1, keepdim=True)
            if best is None:
                best, least = (scale, zero), error
            else:
                better = error < least
                best = (torch.where(better, scale, best[0]), torch.where(better, zero, best[1]))
                least = torch.where(better, error, least)
    assert best is not None and levels > 0
    return best


def _candidates(weights: Any, bits: int, symmetric: bool, share: float) -> list[tuple[Any, Any]]:
    import torch

    low, high = weights.amin(-1, keepdim=True), weights.amax(-1, keepdim=True)
    if symmetric:
        middle = 1 << (bits - 1)
        extreme = torch.where(high.abs() > low.abs(), high, low)
        scale = _nonzero(extreme * share / -middle)
        zero = torch.full_like(scale, middle)
        # The other sign gives both ends the same room, which is better where both are far out.
        even = _nonzero(extreme.abs() * share * 2 / ((1 << bits) - 1))
        return [(scale, zero), (even, zero)]
    # Zero stays exact: weights that were pruned, and padding, remain what they are.
    low, high = low.clamp(max=0) * share, high.clamp(min=0) * share
    scale = _nonzero((high - low) / ((1 << bits) - 1))
    return [(scale, torch.round(-low / scale).clamp(0, (1 << bits) - 1))]


def _nonzero(scale: Any) -> Any:
    import torch

    return torch.where(scale == 0, torch.ones_like(scale), scale)


def quantize(weights: Any, scale: Any, zero: Any, bits: int) -> Any:
    """Return q as a float tensor of whole numbers from 0 to 2**bits − 1."""
    import torch

    return torch.clamp(torch.round(weights / scale) + zero, 0, (1 << bits) - 1)


def dequantize(q: Any, scale: Any, zero: Any) -> Any:
    """Return the weights that q stands for."""
    return scale * (q - zero)
