"""Registers the quantizers of PyTorch models, what rotates, slices and prunes decoders, and the kind `sliced`."""

from __future__ import annotations

from typing import Any

from drupe.core.hookspecs import hookimpl
from drupe.core.specs import ModelKindSpec, PassSpec


def _pass(name: str, module: str, summary: str, **more: Any) -> PassSpec:
    fields: dict[str, Any] = {
        "accepts": frozenset({"hf"}),
        "produces": "hf",
        "requires": ("safetensors>=0.5", "torch>=2.7", "transformers>=5.10"),
        "key_packages": ("safetensors", "torch", "transformers"),
    }
    return PassSpec(name=name, target=f"drupe.plugins.quantization.{module}:{name}", summary=summary, **fields | more)


@hookimpl
def drupe_passes() -> list[PassSpec]:
    """Contribute the quantizers."""
    return [
        _pass(
            "AutoRound",
            "auto_round",
            "Quantize a decoder's weights with learned rounding",
            requires=("auto-round>=0.16", "safetensors>=0.5", "torch>=2.7", "transformers>=5.10"),
            key_packages=("auto-round", "safetensors", "torch", "transformers"),
        ),
        _pass(
            "AutoAWQQuantizer",
            "awq",
            "Quantize a decoder's weights after scaling up the columns that see large inputs",
            aliases=("Awq",),
        ),
        _pass("Gptq", "gptq", "Quantize a decoder's weights so that its layers' outputs change least"),
        _pass("KQuant", "kquant", "Quantize a decoder's weights on the grids of the least squared error, without data"),
        _pass(
            "LLMCompressor",
            "compressor.llm_compressor",
            "Quantize or thin out a model with llmcompressor, for vLLM",
            requires=(
                "accelerate>=1.15",
                "llmcompressor>=0.14",
                "safetensors>=0.5",
                "torch>=2.10",
                "transformers>=5.15",
            ),
            key_packages=("compressed-tensors", "llmcompressor", "safetensors", "torch", "transformers"),
            own_environment=True,
        ),
        _pass("QuaRot", "quarot", "Rotate a decoder's states so that no channel has outliers"),
        _pass(
            "QuantizationAwareTraining",
            "qat.qat",
            "Train a model with its weights and activations rounded, for an int8 graph",
            accepts=frozenset({"hf", "pytorch"}),
            produces=None,
            requires=("safetensors>=0.5", "torch>=2.7"),
        ),
        _pass("Rtn", "rtn", "Quantize a decoder's weights by rounding to nearest"),
        _pass(
            "SelectiveMixedPrecision", "mixed_precision", "Choose the layers that the next quantizer gives more bits"
        ),
        _pass(
            "SliceGPT",
            "slicing.slicegpt",
            "Cut a decoder's states, and its weights with them, to what its texts use",
            produces="sliced",
        ),
        _pass(
            "SparseGPT",
            "sparsegpt",
            "Set a decoder's weights to zero where its layers' outputs change least",
        ),
        _pass(
            "SpinQuant",
            "spinning.spinquant",
            "Rotate a decoder's states by what was learned to make rounding cost least",
        ),
        _pass(
            "TorchAO",
            "ao.torch_ao",
            "Quantize any Hugging Face model with torchao, for PyTorch",
            requires=("safetensors>=0.5", "torch>=2.7", "torchao>=0.18", "transformers>=5.15"),
            key_packages=("safetensors", "torch", "torchao", "transformers"),
        ),
    ]


@hookimpl
def drupe_model_kinds() -> list[ModelKindSpec]:
    """Contribute what SliceGPT makes."""
    return [
        ModelKindSpec(
            name="sliced",
            target="drupe.plugins.quantization.slicing.kind:SlicedKind",
            summary="Decoders that SliceGPT made.",
            aliases=("SlicedModel",),
            key_packages=("transformers",),
        )
    ]
