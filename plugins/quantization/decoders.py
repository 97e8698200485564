"""What passes over the weights of a float decoder refuse before work."""

from __future__ import annotations

from drupe.core.errors import ConfigError
from drupe.core.model import ModelInfo

__all__ = ["check_float_decoder"]


def check_float_decoder(name: str, does: str, info: ModelInfo) -> None:
    """Raise ConfigError for adapters, quantized models and models that are no decoders.

    name: the pass's; does: what it does to a decoder, for a person ("rotates").
    """
    if info.attributes.get("adapter"):
        raise ConfigError(f"{name}: the model has an unmerged adapter; put MergeAdapterWeights before it")
    if quantization := info.attributes.get("quantization"):
        raise ConfigError(f"{name} goes before the quantizer; the model is quantized ({quantization})")
    architecture = info.attributes.get("architecture")
    if architecture and not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise ConfigError(f"{name} {does} decoders that generate text; the model is a {architecture}")
