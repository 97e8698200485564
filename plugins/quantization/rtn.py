"""Rtn: each weight is rounded to the nearest number of its group's grid; no data is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.model import Model
from drupe.plugins.quantization.checkpoint import QuantizedLayer
from drupe.plugins.quantization.config import QuantizerConfig, WeightQuantizer
from drupe.plugins.quantization.grid import fit, quantize
from drupe.plugins.quantization.layers import Scheme

__all__ = ["Rtn", "RtnConfig", "round_layer"]


class RtnConfig(QuantizerConfig):
    """Options of rounding."""

    embeds: bool = Field(
        False,
        description="Round the embedding's table as well. It stays in float, which is what readers of the format take.",
    )


class Rtn(WeightQuantizer):
    """Rounds to nearest. Of a model that another quantizer made, the layers that it left are quantized."""

    Config: ClassVar[type[PassConfig]] = RtnConfig
    version = 1
    keeps_quantized = True

    def quantize_layers(
        self, network: Any, chosen: Mapping[str, Scheme], model: Model, config: RtnConfig, context: PassContext
    ) -> dict[str, QuantizedLayer]:
        """Round layer by layer."""
        found = {}
        for number, (name, scheme) in enumerate(chosen.items()):
            context.progress(number, len(chosen), f"rounding {name}")
            found[name] = round_layer(network.get_submodule(name).weight.detach(), scheme, config.scale_search)
        return found

    def finish(self, state: dict[str, Any], config: RtnConfig, context: PassContext) -> None:
        """Round the embedding."""
        name = "model.embed_tokens.weight"
        if config.embeds and name in state:
            own = config.overrides.get("model.embed_tokens", {})
            width = state[name].shape[1]
            size = int(own.get("group_size", config.group_size))
            group = width if size == -1 or width % size else size
            scheme = Scheme(int(own.get("bits", config.bits)), group, config.sym)
            rounded = round_layer(state[name].float(), scheme, config.scale_search)
            state[name] = rounded.weights().to(state[name].dtype)
            context.report["embedding_bits"] = scheme.bits


def round_layer(weights: Any, scheme: Scheme, search: bool) -> QuantizedLayer:
    """Return a layer's weights (rows, columns) rounded to nearest."""
    import torch

    rows, columns = weights.shape
    groups = weights.float().reshape(rows, columns // scheme.group_size, scheme.group_size)
    scale, zero = fit(groups, scheme.bits, scheme.symmetric, search=search)
    q = quantize(groups, scale, zero, scheme.bits).to(torch.uint8).reshape(rows, columns).cpu()
    zeros = None if scheme.symmetric else zero[..., 0].to(torch.uint8).cpu()
    return QuantizedLayer(scheme.bits, scheme.group_size, q, scale[..., 0].cpu(), zeros)
