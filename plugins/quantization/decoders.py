"""What passes over float weights refuse before work."""

from __future__ import annotations

from drupe.core.errors import ConfigError
from drupe.core.model import ModelInfo

__all__ = ["check_float", "check_float_decoder", "check_zeros_stay"]


def check_float(name: str, info: ModelInfo, *, takes: str | None = None) -> None:
    """Raise ConfigError for adapters and quantized models, except for those of the method `takes`."""
    _check_merged(name, info)
    quantization = info.attributes.get("quantization")
    if quantization and quantization != takes:
        raise ConfigError(f"{name}: the model is quantized already ({quantization})")


def check_float_decoder(name: str, does: str, info: ModelInfo) -> None:
    """Raise ConfigError for adapters, quantized models and models that are no decoders.

    name: the pass's; does: what it does to a decoder, for a person ("rotates").
    """
    _check_merged(name, info)
    if quantization := info.attributes.get("quantization"):
        raise ConfigError(f"{name} goes before the quantizer; the model is quantized ({quantization})")
    architecture = info.attributes.get("architecture")
    if architecture and not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise ConfigError(f"{name} {does} decoders that generate text; the model is a {architecture}")


def check_zeros_stay(name: str, way_out: str, info: ModelInfo) -> None:
    """Raise ConfigError for a model that was pruned, in the plan of a pass that would fill its zeros.

    way_out: what to do instead, for a person.
    """
    sparsity = info.attributes.get("sparsity")
    if sparsity:
        raise ConfigError(f"{name} would fill the zeros of a model that was pruned (sparsity {sparsity}); {way_out}")


def _check_merged(name: str, info: ModelInfo) -> None:
    if info.attributes.get("adapter"):
        raise ConfigError(f"{name}: the model has an unmerged adapter; put MergeAdapterWeights before it")
