"""Rounding that gradients pass through as if it weren't there (Bengio et al. 2013, arXiv 1308.3432)."""

from __future__ import annotations

from typing import Any

import torch

from drupe.plugins.quantization.grid import dequantize, fit, quantize
from drupe.plugins.quantization.layers import Scheme

__all__ = ["rounded_inputs", "rounded_weights"]


def rounded_weights(weights: Any, scheme: Scheme) -> Any:
    """Return weights (rows, columns) on their grid, as Rtn without a search puts them there."""
    with torch.no_grad():
        groups = weights.detach().float().reshape(len(weights), -1, scheme.group_size)
        scale, zero = fit(groups, scheme.bits, scheme.symmetric, search=False)
        change = dequantize(quantize(groups, scale, zero, scheme.bits), scale, zero) - groups
    return weights + change.reshape(weights.shape).to(weights.dtype)


def rounded_inputs(states: Any, bits: int, *, symmetric: bool, per_token: bool) -> Any:
    """Return states (…, width) rounded to 2**bits numbers of each token's range, or of that of all."""
    with torch.no_grad():
        values = states.detach().float()
        places = -1 if per_token else tuple(range(values.ndim))
        low, high = values.amin(places, keepdim=True), values.amax(places, keepdim=True)
        if symmetric:
            most = (1 << (bits - 1)) - 1
            step = (torch.maximum(high, -low) / most).clamp(min=1e-12)
            change = torch.round(values / step).clamp(-most - 1, most) * step - values
        else:
            levels = (1 << bits) - 1
            low, high = low.clamp(max=0), high.clamp(min=0)
            step = ((high - low) / levels).clamp(min=1e-12)
            zero = torch.round(-low / step)
            change = (torch.round(values / step).add(zero).clamp(0, levels) - zero) * step - values
    return states + change.to(states.dtype)
