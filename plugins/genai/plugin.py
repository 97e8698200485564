"""Registers the passes ModelBuilder and StaticLLM, and the genai runtime."""

from __future__ import annotations

from drupe.core.hookspecs import hookimpl
from drupe.core.specs import PassSpec, RuntimeSpec

_PACKAGES = ("onnxruntime-genai", "onnxruntime", "onnx-ir", "torch", "transformers")


@hookimpl
def drupe_passes() -> list[PassSpec]:
    """Contribute the passes that make models for onnxruntime-genai."""
    return [
        PassSpec(
            name="ModelBuilder",
            target="drupe.plugins.genai.model_builder:ModelBuilder",
            summary="Build an ONNX Runtime GenAI model, quantized as asked",
            aliases=("GenAIModelExporter",),
            accepts={"hf"},  # type: ignore[arg-type]
            produces="genai",
            precisions={"int4", "int8", "fp16", "bf16", "fp32"},  # type: ignore[arg-type]
            requires=("onnxruntime-genai>=0.18", "torch>=2.7", "transformers>=5.10"),
            key_packages=_PACKAGES,
            accelerator_matters=True,
        ),
        PassSpec(
            name="StaticLLM",
            target="drupe.plugins.genai.static_llm:StaticLLM",
            summary="Give a decoder's graphs fixed lengths: one for prompts, one for a token",
            accepts={"genai", "composite"},  # type: ignore[arg-type]
            produces="genai",
            requires=("onnx>=1.19", "onnxruntime>=1.22", "onnx-ir>=0.1.16"),
            key_packages=("onnx", "onnxruntime", "onnx-ir"),
        ),
    ]


@hookimpl
def drupe_runtimes() -> list[RuntimeSpec]:
    """Contribute the genai runtime."""
    return [
        RuntimeSpec(
            name="genai",
            target="drupe.plugins.genai.runtime:GenAIRuntime",
            summary="onnxruntime-genai",
            kinds={"genai"},  # type: ignore[arg-type]
            accelerators={"cpu", "gpu", "npu"},  # type: ignore[arg-type]
            capabilities={"generate", "score"},  # type: ignore[arg-type]
            requires=("onnxruntime-genai>=0.18",),
            key_packages=("onnxruntime-genai", "onnxruntime"),
        ),
    ]
