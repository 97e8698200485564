"""What quantizers that look at nothing but the weights share: layer by layer, the embedding where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field

from drupe.core.context import PassContext
from drupe.core.model import Model
from drupe.plugins.quantization.checkpoint import QuantizedLayer
from drupe.plugins.quantization.config import GridConfig, WeightQuantizer
from drupe.plugins.quantization.grid import quantize
from drupe.plugins.quantization.layers import Scheme, embedding_name

__all__ = ["EmbeddingConfig", "RoundingQuantizer", "on_grid"]


class EmbeddingConfig(GridConfig):
    """The grid, and whether the embedding is put on it."""

    embeds: bool = Field(
        False,
        description="Round the embedding's table as well. It stays in float, which is what readers of the format take.",
    )


class RoundingQuantizer(WeightQuantizer):
    """Subclasses implement `rounded`. Of a model that another quantizer made, the layers that it left are quantized."""

    keeps_quantized = True

    def rounded(self, weights: Any, scheme: Scheme, config: Any) -> QuantizedLayer:
        """Return a layer's weights (rows, columns) on their grid."""
        raise NotImplementedError

    def quantize_layers(
        self, network: Any, chosen: Mapping[str, Scheme], model: Model, config: Any, context: PassContext
    ) -> dict[str, QuantizedLayer]:
        """Round layer by layer."""
        found = {}
        for number, (name, scheme) in enumerate(chosen.items()):
            context.progress(number, len(chosen), f"rounding {name}")
            found[name] = self.rounded(network.get_submodule(name).weight.detach(), scheme, config)
        return found

    def finish(self, network: Any, state: dict[str, Any], config: Any, context: PassContext) -> None:
        """Round the embedding."""
        if not config.embeds:
            return
        layer = embedding_name(network)
        name = f"{layer}.weight"
        scheme = Scheme(config.bits, config.group_size, config.sym).with_(config.overrides.get(layer, {}))
        width = state[name].shape[1]
        if scheme.group_size == -1 or width % scheme.group_size:
            scheme = replace(scheme, group_size=width)
        state[name] = self.rounded(state[name].float(), scheme, config).weights().to(state[name].dtype)
        context.report["embedding_bits"] = scheme.bits


def on_grid(groups: Any, scale: Any, zero: Any, scheme: Scheme) -> QuantizedLayer:
    """Return a layer's weights (rows, groups, group) rounded to their grids. scale, zero: (rows, groups, 1)."""
    import torch

    q = quantize(groups, scale, zero, scheme.bits).to(torch.uint8).reshape(len(groups), -1).cpu()
    zeros = None if scheme.symmetric else zero[..., 0].to(torch.uint8).cpu()
    return QuantizedLayer(scheme.bits, scheme.group_size, q, scale[..., 0].cpu(), zeros)
