"""What quantizers that look at nothing but the weights share: layer by layer, the embedding where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from drupe.core.context import PassContext
from drupe.core.model import Model
from drupe.plugins.quantization.checkpoint import QuantizedLayer
from drupe.plugins.quantization.config import GridConfig, WeightQuantizer
from drupe.plugins.quantization.grid import quantize
from drupe.plugins.quantization.layers import Scheme

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
        table = network.get_input_embeddings()
        layer = next(name for name, module in network.named_modules() if module is table)
        name, own = f"{layer}.weight", config.overrides.get(layer, {})
        width = state[name].shape[1]
        size = int(own.get("group_size", config.group_size))
        group = width if size == -1 or width % size else size
        symmetric = bool(own.get("symmetric", own.get("sym", config.sym)))
        scheme = Scheme(int(own.get("bits", config.bits)), group, symmetric)
        state[name] = self.rounded(state[name].float(), scheme, config).weights().to(state[name].dtype)
        context.report["embedding_bits"] = scheme.bits


def on_grid(groups: Any, scale: Any, zero: Any, scheme: Scheme) -> QuantizedLayer:
    """Return a layer's weights (rows, groups, group) rounded to their grids. scale, zero: (rows, groups, 1)."""
    import torch

    q = quantize(groups, scale, zero, scheme.bits).to(torch.uint8).reshape(len(groups), -1).cpu()
    zeros = None if scheme.symmetric else zero[..., 0].to(torch.uint8).cpu()
    return QuantizedLayer(scheme.bits, scheme.group_size, q, scale[..., 0].cpu(), zeros)
