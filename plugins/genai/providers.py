"""How ONNX Runtime's execution providers are called by onnxruntime-genai and its builder."""

from __future__ import annotations

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError

__all__ = ["BUILDABLE", "builder_name", "runtime_name"]

_NAMES = {
    "CPUExecutionProvider": ("cpu", None),
    "CUDAExecutionProvider": ("cuda", "cuda"),
    "DmlExecutionProvider": ("dml", "dml"),
    "WebGpuExecutionProvider": ("webgpu", "WebGPU"),
    "NvTensorRTRTXExecutionProvider": ("NvTensorRtRtx", "NvTensorRtRtx"),
    # The builder has no form of their own for these: other passes bring the CPU's into theirs.
    "QNNExecutionProvider": ("cpu", "qnn"),
    "OpenVINOExecutionProvider": ("cpu", "OpenVINO"),
    "VitisAIExecutionProvider": ("cpu", "VitisAI"),
}
"""Execution provider → (the builder's name, the runtime's name; None where it needs none)."""

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
    if provider not in _NAMES:
        raise ConfigError(f"onnxruntime-genai has no execution provider {provider}; it has {', '.join(sorted(_NAMES))}")
    return _NAMES[provider]


def builder_name(accelerator: Accelerator) -> str:
    """Return what the model builder calls the accelerator's provider. Raises ConfigError."""
    return _entry(accelerator)[0]


def runtime_name(accelerator: Accelerator) -> str | None:
    """Return what onnxruntime-genai calls it; None: the CPU, which needs no name. Raises ConfigError."""
    return _entry(accelerator)[1]
