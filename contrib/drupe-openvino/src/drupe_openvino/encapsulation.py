"""Wraps an IR in an ONNX model that ONNX Runtime's OpenVINO execution provider opens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from drupe import ConfigError, Model, Pass, PassConfig, PassContext
from pydantic import Field

from drupe_openvino.ir import ir_name
from drupe_openvino.libraries import openvino

__all__ = ["OpenVINOEncapsulation"]


class EncapsulationConfig(PassConfig):
    """For which device and version the wrapper is."""

    target_device: Literal["cpu", "gpu", "npu"] = Field("cpu", description="The device that will run it.")
    ov_version: str | None = Field(None, description="OpenVINO version to write down; default: the installed one.")
    keep_ov_dynamic_dims: bool = Field(False, description="Keep open axes open; else each must have been fixed.")
    opset_imports: list[tuple[str, int]] | None = Field(None, description="Further opset imports: [domain, version].")
    op_version: int = Field(1, ge=1, description="Version of the operator set com.microsoft.")
    reuse_cache: bool = Field(
        False, description="Read from Olive files; files are never copied needlessly, so it changes nothing."
    )
    genai_config_override: dict[str, Any] | None = Field(
        None, description="Values merged over the model's genai_config.json."
    )


class OpenVINOEncapsulation(Pass):
    """Write model.onnx with one EPContext node that names the IR.

    1. The IR stays beside it, unchanged.
    2. Types and shapes of inputs and outputs are the IR's; open axes get names of their own.
    """

    Config = EncapsulationConfig

    def run(self, model: Model, config: EncapsulationConfig, context: PassContext) -> Model:
        """See Pass.run. Raises ConfigError for open axes that must not stay, and for an override without its file."""
        import onnx
        from onnx import helper

        ov = openvino()
        name = ir_name(model)
        graph = ov.Core().read_model(model.folder / f"{name}.xml")
        inputs = [_value(item, config) for item in graph.inputs]
        outputs = [_value(item, config) for item in graph.outputs]
        version = config.ov_version or ov.get_version().split("-")[0]
        node = helper.make_node(
            "EPContext",
            [value.name for value in inputs],
            [value.name for value in outputs],
            name="OpenVINO",
            domain="com.microsoft",
            embed_mode=0,
            ep_cache_context=f"{name}.xml",
            ep_sdk_version=version,
            main_context=1,
            hardware_architecture=config.target_device,
            source="OpenVINOExecutionProvider",
            partition_name="OpenVINO",
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", config.op_version)]
        opsets += [helper.make_opsetid(domain, number) for domain, number in config.opset_imports or ()]
        wrapped = helper.make_model(
            helper.make_graph([node], "main", inputs, outputs), opset_imports=opsets, producer_name="drupe-openvino"
        )
        onnx.save(wrapped, context.output_dir / "model.onnx")
        if config.genai_config_override is not None:
            path = model.folder / "genai_config.json"
            if not path.is_file():
                raise ConfigError("genai_config_override: the model has no genai_config.json to override")
            merged = _merged(json.loads(path.read_text(encoding="utf-8")), config.genai_config_override)
            (context.output_dir / path.name).write_text(json.dumps(merged, indent=4), encoding="utf-8")
        return model.derive(kind="onnx", add_dir=context.output_dir)


def _value(item: Any, config: EncapsulationConfig) -> Any:
    from onnx import TensorProto, helper

    types = {
        "f32": TensorProto.FLOAT,
        "f16": TensorProto.FLOAT16,
        "bf16": TensorProto.BFLOAT16,
        "f64": TensorProto.DOUBLE,
        "i64": TensorProto.INT64,
        "i32": TensorProto.INT32,
        "i16": TensorProto.INT16,
        "i8": TensorProto.INT8,
        "u8": TensorProto.UINT8,
        "boolean": TensorProto.BOOL,
    }
    name = item.get_any_name()
    type_name = item.get_element_type().get_type_name()
    if type_name not in types:
        raise ConfigError(f"{name} is of type {type_name}, which ONNX lacks")
    shape: list[int | str] = []
    for axis, size in enumerate(item.get_partial_shape()):
        if size.is_static:
            shape.append(size.get_length())
        elif config.keep_ov_dynamic_dims:
            shape.append(f"{name}_{axis}")
        else:
            raise ConfigError(
                f"axis {axis} of {name} is open; fix it with OpenVINOIoUpdate, or set keep_ov_dynamic_dims: true"
            )
    return helper.make_tensor_value_info(name, types[type_name], shape)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
