"""Fake quantizers: what rounds a weight or an activation to a grid while gradients pass (Jacob et al. 2018).

Activations take the range that a moving average of their batches shows, weights that of their values. A frozen
quantizer keeps its scales, and rounds in the ranges that ONNX has types for, so that exporters write QuantizeLinear and
DequantizeLinear.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import torch

from drupe.core.errors import ConfigError

__all__ = ["Grid", "Quantizer", "WeightQuantizer"]

_EXPORTED = ((0, 255), (-128, 127))
"""Ranges that ONNX has a type for."""
_SMALLEST = float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class Grid:
    """The whole numbers that values become: from `low` to `high`, both included.

    symmetric: the range lies around zero, which is the whole number 0 (127.5 rounded for unsigned ones). per_channel:
    each output channel of a weight has a scale. averaging: share of a new batch in the moving average of the range.
    """

    low: int
    high: int
    symmetric: bool = False
    per_channel: bool = False
    averaging: float = 0.01

    @classmethod
    def of_weights(cls, bits: int, per_channel: bool) -> Self:
        """Signed, around zero; the lowest number is left out, so that both signs reach equally far."""
        return cls(1 - (1 << (bits - 1)), (1 << (bits - 1)) - 1, True, per_channel)

    @classmethod
    def of_activations(cls, bits: int, symmetric: bool) -> Self:
        """Unsigned with a zero point, or signed around zero."""
        if symmetric:
            return cls(-(1 << (bits - 1)), (1 << (bits - 1)) - 1, True)
        return cls(0, (1 << bits) - 1)

    @property
    def container(self) -> tuple[int, int]:
        """The range of the ONNX type that holds the numbers. Raises ConfigError where none of 8 bits does."""
        for low, high in _EXPORTED:
            if low <= self.low and self.high <= high:
                return low, high
        raise ConfigError(f"whole numbers from {self.low} to {self.high} fit neither int8 nor uint8")

    def fit(self, low: Any, high: Any) -> tuple[Any, Any]:
        """Return (scale, zero_point) tensors, float32 and int32, for ranges of the same shape."""
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        if self.symmetric:
            zero = (self.low + self.high + 1) // 2
            reach = min(zero - self.low, self.high - zero) or self.high - zero
            scale = (torch.maximum(-low, high) / reach).clamp(min=_SMALLEST)
            return scale, torch.full_like(scale, zero, dtype=torch.int32)
        scale = ((high - low) / (self.high - self.low)).clamp(min=_SMALLEST)
        zero_point = self.low - torch.round(low / scale)
        return scale, zero_point.clamp(self.low, self.high).to(torch.int32)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)


class Quantizer(torch.nn.Module):  # type: ignore[misc]
    """Rounds an activation: one scale for the whole tensor.

    While training, each batch moves the range. Before the first batch, values pass as they are.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.frozen: tuple[float, float] | None = None
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))
        self.register_buffer("range", torch.zeros(2))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, values: Any) -> Any:
        """Return the values rounded to the grid; of another type than float they pass."""
        if not isinstance(values, torch.Tensor) or not values.is_floating_point():
            return values
        grid = self.grid
        if self.frozen is not None:
            low, high = grid.container
            if (low, high) != (grid.low, grid.high):
                values = values.clamp(*self.frozen)
            if _exporting():
                return _as_operators(values, self.scale, self.zero_point, low, None)
            return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero_point, low, high)
        if self.training:
            self._observe(values.detach())
        if not self.seen:
            return values
        return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero_point, grid.low, grid.high)

    @property
    def seen(self) -> bool:
        """Whether a batch has shown the range."""
        return bool(self.batches)

    def _observe(self, values: Any) -> None:
        if not values.numel():
            return
        found = torch.stack(torch.aminmax(values.float()))
        self.batches += 1
        # The first batches count alike; a fixed share would leave the range where the very first one put it.
        share = max(self.grid.averaging, 1.0 / int(self.batches))
        self.range.lerp_(found.to(self.range), share)
        scale, zero_point = self.grid.fit(*self.range)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def freeze(self) -> None:
        """Keep scale and zero point from now on."""
        scale, zero = float(self.scale), int(self.zero_point)
        self.frozen = ((self.grid.low - zero) * scale, (self.grid.high - zero) * scale)


class WeightQuantizer(torch.nn.Module):  # type: ignore[misc]
    """Rounds a weight, as a parametrization of it: a scale for each output channel, or one for all.

    axis: that of the output channels. Its scales follow the weight until it is frozen. Before a batch norm that learns
    on, the weight is rounded as it will be when the norm is folded into it (Jacob et al. 2018, section 3.2).
    """

    def __init__(self, grid: Grid, axis: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.grid = grid
        self.axis = axis
        self.frozen = False
        # In a tuple, so that the norm is not taken for a part of this module.
        self._norm: tuple[Any, ...] = ()
        count = shape[axis] if grid.per_channel else 1
        self.register_buffer("scale", torch.ones(count))
        self.register_buffer("zero_point", torch.zeros(count, dtype=torch.int32))

    def forward(self, weight: Any) -> Any:
        """Return the weight rounded to the grid."""
        if self._norm:
            factor = self._factor(*self._norm).reshape([-1 if axis == self.axis else 1 for axis in range(weight.dim())])
            return self._rounded(weight * factor) / factor
        return self._rounded(weight)

    def before(self, norm: Any) -> None:
        """Round for the batch norm that takes the layer's output; None: for nothing."""
        self._norm = () if norm is None else (norm,)

    def _factor(self, norm: Any) -> Any:
        """Return what folding will multiply each channel's weights by, shape (channels,)."""
        with torch.no_grad():
            factor = torch.rsqrt(norm.running_var + norm.eps)
            if norm.weight is not None:
                factor = factor * norm.weight
            # A channel that the norm switches off keeps a weight to learn with.
            return torch.where(factor.abs() < _SMALLEST, torch.ones_like(factor), factor)

    def _rounded(self, weight: Any) -> Any:
        if not self.frozen:
            self._observe(weight.detach())
        # A frozen weight lies on the grid, so the wider range of the type changes nothing.
        low, high = self.grid.container if self.frozen else (self.grid.low, self.grid.high)
        if self.frozen and _exporting():
            if self.grid.per_channel:
                return _as_operators(weight, self.scale, self.zero_point, low, self.axis)
            return _as_operators(weight, self.scale[0], self.zero_point[0], low, None)
        if self.grid.per_channel:
            return torch.fake_quantize_per_channel_affine(weight, self.scale, self.zero_point, self.axis, low, high)
        return torch.fake_quantize_per_tensor_affine(weight, self.scale[0], self.zero_point[0], low, high)

    def _observe(self, weight: Any) -> None:
        if self.grid.per_channel:
            rows = weight.movedim(self.axis, 0).flatten(1)
            scale, zero_point = self.grid.fit(rows.amin(1), rows.amax(1))
        else:
            scale, zero_point = self.grid.fit(weight.amin().reshape(1), weight.amax().reshape(1))
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def freeze(self) -> None:
        """Keep the scales from now on."""
        self.frozen = True


def _exporting() -> bool:
    """Whether torch.export runs for an ONNX graph: it knows no shape of what a fake quantization gives."""
    return bool(torch.onnx.is_in_onnx_export() and torch.compiler.is_exporting() and hasattr(torch.onnx, "ops"))


def _as_operators(values: Any, scale: Any, zero_point: Any, low: int, axis: int | None) -> Any:
    """Return values as QuantizeLinear and DequantizeLinear give them, written as these operators."""
    dtype = torch.int8 if low < 0 else torch.uint8
    zero = zero_point.to(dtype)
    attributes = {} if axis is None else {"axis": axis}
    shape = tuple(values.shape)
    numbers = torch.onnx.ops.symbolic("QuantizeLinear", (values, scale, zero), attributes, dtype=dtype, shape=shape)
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", (numbers, scale, zero), attributes, dtype=values.dtype, shape=shape
    )
