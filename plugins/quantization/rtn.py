"""Rtn: each weight is rounded to the nearest number of its group's grid; no data is needed."""

from __future__ import annotations

from typing import Any, ClassVar

from drupe.core.config import PassConfig
from drupe.plugins.quantization.checkpoint import QuantizedLayer
from drupe.plugins.quantization.config import QuantizerConfig
from drupe.plugins.quantization.grid import fit
from drupe.plugins.quantization.layers import Scheme
from drupe.plugins.quantization.rounding import EmbeddingConfig, RoundingQuantizer, on_grid

__all__ = ["Rtn", "RtnConfig", "round_layer"]


class RtnConfig(EmbeddingConfig, QuantizerConfig):
    """Options of rounding."""


class Rtn(RoundingQuantizer):
    """Rounds to nearest. Of a model that another quantizer made, the layers that it left are quantized."""

    Config: ClassVar[type[PassConfig]] = RtnConfig
    version = 1

    def rounded(self, weights: Any, scheme: Scheme, config: RtnConfig) -> QuantizedLayer:
        """See RoundingQuantizer.rounded."""
        return round_layer(weights, scheme, config.scale_search)


def round_layer(weights: Any, scheme: Scheme, search: bool) -> QuantizedLayer:
    """Return a layer's weights (rows, columns) rounded to nearest."""
    rows, columns = weights.shape
    groups = weights.float().reshape(rows, columns // scheme.group_size, scheme.group_size)
    scale, zero = fit(groups, scheme.bits, scheme.symmetric, search=search)
    return on_grid(groups, scale, zero, scheme)
