"""Registers the ONNX passes and the onnx runtime."""

from __future__ import annotations

from typing import Any

from drupe.core.hookspecs import hookimpl
from drupe.core.specs import PassSpec, RuntimeSpec


def _pass(name: str, module: str, summary: str, **more: Any) -> PassSpec:
    fields: dict[str, Any] = {
        "accepts": frozenset({"onnx"}),
        "produces": "onnx",
        "requires": ("onnx>=1.17", "onnxruntime>=1.22"),
        "key_packages": ("onnx", "onnxruntime", "onnx-ir"),
    }
    return PassSpec(name=name, target=f"drupe.plugins.onnx.{module}:{name}", summary=summary, **{**fields, **more})


@hookimpl
def drupe_passes() -> list[PassSpec]:
    """Contribute the ONNX passes."""
    return [
        _pass(
            "OnnxConversion",
            "conversion",
            "Export a Hugging Face model or a module as an ONNX graph",
            accepts=frozenset({"hf", "pytorch"}),
            requires=("onnx>=1.17", "onnxscript>=0.5", "torch>=2.7", "transformers>=5"),
            key_packages=("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "peft"),
        ),
        _pass(
            "OnnxDynamicQuantization", "dynamic_quantization", "Quantize weights to 8 bits, activations as they come"
        ),
    ]


@hookimpl
def drupe_runtimes() -> list[RuntimeSpec]:
    """Contribute the onnx runtime."""
    return [
        RuntimeSpec(
            name="onnx",
            target="drupe.plugins.onnx.runtime:OnnxRuntime",
            summary="ONNX Runtime",
            kinds=frozenset({"onnx"}),
            accelerators=frozenset({"cpu", "gpu", "npu"}),
            capabilities=frozenset({"forward", "score"}),
            requires=("onnxruntime>=1.22",),
            key_packages=("onnxruntime", "onnxruntime-gpu"),
        ),
    ]
