"""How ONNX Runtime's execution providers are called by onnxruntime-genai and its builder."""

from __future__ import annotations

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError
from drupe.plugins.onnx.provider_table import compiling_providers

__all__ = ["BUILDABLE", "builder_name", "runtime_name"]

_NAMES = {
    "CPUExecutionProvider": ("cpu", None),
    "CUDAExecutionProvider": ("cuda", "cuda"),
    "DmlExecutionProvider": ("dml", "dml"),
    "WebGpuExecutionProvider": ("webgpu", "WebGPU"),
}
"""Execution provider → (the builder's name, the runtime's name; None where it needs none); others compile graphs."""

BUILDABLE = {
    "cpu": ("fp32", "int4", "int8"),
    "cuda": ("fp32", "fp16", "bf16", "int4", "int8"),
    "dml": ("fp16", "int4"),
    "webgpu": ("fp16", "int4", "int8"),
    "NvTensorRtRtx": ("fp16", "bf16", "int4"),
}
"""The builder's name of a provider → the precisions that it builds and that run there."""


def _entry(accelerator: Accelerator) -> tuple[str, str | None]:
    provider = accelerator.execution_provider
    if provider is None:
        provider = {"gpu": "CUDAExecutionProvider"}.get(accelerator.device, "CPUExecutionProvider")
    compiling = {name: (known.builder, known.genai) for name, known in compiling_providers().items() if known.builder}
    names: dict[str, tuple[str, str | None]] = {**_NAMES, **compiling}
    if provider not in names:
        raise ConfigError(f"onnxruntime-genai has no execution provider {provider}; it has {', '.join(sorted(names))}")
    return names[provider]


def builder_name(accelerator: Accelerator) -> str:
    """Return what the model builder calls the accelerator's provider. Raises ConfigError."""
    return _entry(accelerator)[0]


def runtime_name(accelerator: Accelerator) -> str | None:
    """Return what onnxruntime-genai calls it; None: the CPU, which needs no name. Raises ConfigError."""
    return _entry(accelerator)[1]
