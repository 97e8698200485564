"""What this package contributes. Light: OpenVINO and NNCF are imported when something runs."""

from __future__ import annotations

from collections.abc import Sequence

from drupe import AcceleratorSpec, ModelKindSpec, PassSpec, RuntimeSpec, hookimpl

_PACKAGES = ("openvino",)
_NNCF = ("openvino", "nncf")


@hookimpl
def drupe_accelerators() -> Sequence[AcceleratorSpec]:
    """Contribute the device `openvino`; its providers are OpenVINO's own device names, CPU being the default."""
    return [
        AcceleratorSpec(
            name="openvino",
            target="drupe_openvino.devices:OpenVinoDevice",
            summary="Intel CPUs, GPUs and NPUs through OpenVINO.",
            providers=("CPU", "GPU", "NPU", "AUTO"),
        )
    ]


@hookimpl
def drupe_model_kinds() -> Sequence[ModelKindSpec]:
    """Contribute OpenVINO IR."""
    return [
        ModelKindSpec(
            name="openvino",
            target="drupe_openvino.kind:OpenVinoKind",
            summary="An OpenVINO IR: an .xml file and its .bin.",
            aliases=("OpenVINOModel",),
        )
    ]


@hookimpl
def drupe_runtimes() -> Sequence[RuntimeSpec]:
    """Contribute the runtime: on the device `openvino`, and where a system names ONNX Runtime's OpenVINO provider."""
    return [
        RuntimeSpec(
            name="openvino",
            target="drupe_openvino.runtime:OpenVinoRuntime",
            summary="OpenVINO's own runtime.",
            kinds=frozenset({"openvino"}),
            accelerators=frozenset({"openvino", "cpu", "gpu", "npu"}),
            providers=frozenset({"CPU", "GPU", "NPU", "AUTO", "OpenVINOExecutionProvider"}),
            capabilities=frozenset({"forward"}),
            requires=("openvino>=2026.0",),
            key_packages=_PACKAGES,
        )
    ]


@hookimpl
def drupe_passes() -> Sequence[PassSpec]:
    """Contribute conversion to OpenVINO IR, and what is done to an IR."""
    return [
        PassSpec(
            name="OpenVINOConversion",
            target="drupe_openvino.conversion:OpenVINOConversion",
            summary="Convert a Hugging Face or ONNX model to OpenVINO IR.",
            accepts=frozenset({"hf", "onnx"}),
            produces="openvino",
            requires=("openvino>=2026.0",),
            key_packages=("openvino", "torch", "transformers"),
        ),
        PassSpec(
            name="OpenVINOWeightCompression",
            target="drupe_openvino.compression:OpenVINOWeightCompression",
            summary="Compress weights to 8 or 4 bit with NNCF.",
            accepts=frozenset({"openvino"}),
            produces="openvino",
            precisions=frozenset({"int8", "int4"}),
            requires=("openvino>=2026.0", "nncf>=3.0"),
            key_packages=_NNCF,
        ),
        PassSpec(
            name="OpenVINOQuantization",
            target="drupe_openvino.quantization:OpenVINOQuantization",
            summary="Quantize weights and activations to 8 bit with NNCF and calibration data.",
            accepts=frozenset({"openvino"}),
            produces="openvino",
            precisions=frozenset({"int8"}),
            requires=("openvino>=2026.0", "nncf>=3.0"),
            key_packages=_NNCF,
        ),
        PassSpec(
            name="OpenVINOIoUpdate",
            target="drupe_openvino.io_update:OpenVINOIoUpdate",
            summary="Fix the input shapes of an IR, or free them.",
            accepts=frozenset({"openvino"}),
            produces="openvino",
            requires=("openvino>=2026.0",),
            key_packages=_PACKAGES,
        ),
        PassSpec(
            name="OpenVINOEncapsulation",
            target="drupe_openvino.encapsulation:OpenVINOEncapsulation",
            summary="Wrap an IR in an ONNX model for ONNX Runtime's OpenVINO execution provider.",
            accepts=frozenset({"openvino"}),
            produces="onnx",
            requires=("openvino>=2026.0", "onnx>=1.17"),
            key_packages=("openvino", "onnx"),
        ),
    ]
