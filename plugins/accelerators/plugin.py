"""The devices that ONNX Runtime drives: CPU, GPU, NPU, each with its execution providers."""

from __future__ import annotations

from collections.abc import Sequence

from drupe.core.hookspecs import hookimpl
from drupe.core.specs import AcceleratorSpec


@hookimpl
def drupe_accelerators() -> Sequence[AcceleratorSpec]:
    """Contribute cpu, gpu and npu; providers as ONNX Runtime names them, the default first."""
    return [
        AcceleratorSpec(
            name="cpu",
            target="drupe.plugins.accelerators.devices:Cpu",
            summary="The processor.",
            providers=(
                "CPUExecutionProvider",
                "OpenVINOExecutionProvider",
                "DnnlExecutionProvider",
                "XnnpackExecutionProvider",
            ),
        ),
        AcceleratorSpec(
            name="gpu",
            target="drupe.plugins.accelerators.devices:Gpu",
            summary="A graphics card of any make.",
            aliases=("cuda",),
            providers=(
                "CUDAExecutionProvider",
                "DmlExecutionProvider",
                "ROCMExecutionProvider",
                "MIGraphXExecutionProvider",
                "TensorrtExecutionProvider",
                "NvTensorRTRTXExecutionProvider",
                "OpenVINOExecutionProvider",
                "WebGpuExecutionProvider",
                "JsExecutionProvider",
                "CoreMLExecutionProvider",
                "QNNExecutionProvider",
                "CPUExecutionProvider",
            ),
        ),
        AcceleratorSpec(
            name="npu",
            target="drupe.plugins.accelerators.devices:Npu",
            summary="A neural processing unit.",
            providers=(
                "QNNExecutionProvider",
                "VitisAIExecutionProvider",
                "OpenVINOExecutionProvider",
                "DmlExecutionProvider",
                "CoreMLExecutionProvider",
                "CANNExecutionProvider",
                "NnapiExecutionProvider",
                "CPUExecutionProvider",
            ),
        ),
    ]
