"""ExtractAdapters: the weights of an adapter leave the graph, so that one graph serves several adapters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.plugins.onnx.adapter_weights import ADAPTER_FILE, ENDINGS, AdapterWeight, find_adapter_weights, write_weights
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig

__all__ = ["ExtractAdapters", "ExtractAdaptersConfig"]

_RANK = "lora_r"


class ExtractAdaptersConfig(GraphPassConfig):
    """Where the weights go."""

    adapter_type: Literal["lora"] = Field(
        "lora", description="Kind of adapter. Of other kinds exporters fold what follows from the weights alone."
    )
    make_inputs: bool = Field(
        True,
        description="The weights become inputs of the graph. false: they stay initializers, in a file of their own "
        "beside the graph that can be replaced.",
    )
    dynamic_lora_r: bool = Field(
        True, description="With make_inputs: adapters of any rank fit. Quantized weights keep their rank."
    )
    optional_inputs: bool = Field(
        True, description="With make_inputs: without weights the graph is the base model. Not for quantized weights."
    )
    save_format: Literal["onnx_adapter", "safetensors", "numpy"] = Field(
        "onnx_adapter",
        description="Form of the weights' file; with make_inputs: false it is safetensors, where the graph points.",
    )

    @model_validator(mode="before")
    @classmethod
    def _form_of_initializers(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("make_inputs", True) is not False:
            return values
        asked = values.get("save_format", "safetensors")
        if asked != "safetensors":
            raise ValueError(f"save_format {asked} is for make_inputs: true; initializers are written as safetensors")
        return {**values, "save_format": "safetensors"}


class ExtractAdapters(GraphPass):
    """Takes a LoRA adapter's weights out of a graph.

    Rules: 1. The graph with the extracted weights gives what it gave before. 2. With optional inputs the graph without
    weights is the base. 3. The adapter's scale stays in the graph, so other adapters must have the same alpha / rank.
    """

    Config: ClassVar[type[PassConfig]] = ExtractAdaptersConfig
    version = 2

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse a graph whose adapter was taken out before."""
        if info.attributes.get("constant_inputs"):
            raise ConfigError(
                f"{self.spec.name}: the graph takes weights as inputs already ({info.attributes['constant_inputs']})"
            )
        if info.kind == "genai" and config.make_inputs and config.save_format != "onnx_adapter":
            raise ConfigError(
                f"{self.spec.name}: onnxruntime-genai loads adapters of the form onnx_adapter, not {config.save_format}"
            )
        return super().plan(info, config, accelerator)

    def outcome(self, attributes: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
        """The weights' file; the onnx runtime gives constant inputs to the graph."""
        if _exported_without(attributes):
            return {}
        name = f"{ADAPTER_FILE}{ENDINGS[config.save_format]}"
        return {
            "adapter_in_graph": None,
            "adapter_weights": name,
            "constant_inputs": name if config.make_inputs else None,
        }

    def run(self, model: Model, config: ExtractAdaptersConfig, context: PassContext) -> Model:
        """Take the weights out; a graph that was exported from a model without an adapter goes on as it is."""
        if _exported_without(model.attributes):
            context.log.warning(
                "%s: the model was exported without an adapter, or with a merged one; it goes on as it is",
                self.spec.name,
            )
            context.report["adapter"] = "none"
            return model.derive()
        return super().run(model, config, context)

    def rewrite(self, proto: Any, path: Path, model: Model, config: ExtractAdaptersConfig, context: PassContext) -> Any:
        """Take the weights out and write them."""
        from onnx import numpy_helper

        found = list(find_adapter_weights(proto))
        if not found:
            raise PassError(
                f"{self.spec.name} found no weights of a LoRA adapter in the graph; convert the model with its adapter "
                "unmerged (OnnxConversion, or ModelBuilder with use_adapter)"
            )
        tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        values = {weight.name: numpy_helper.to_array(tensors[weight.initializer]) for weight in found}
        if len(values) != len(found):
            raise PassError(f"{self.spec.name}: the graph has several adapters of one layer; keep one of them")
        if context.report.get("adapter"):
            raise PassError(f"{self.spec.name}: several graphs of the model hold an adapter; one file is written")
        file = write_weights(context.output_dir, values, config.save_format)
        left = self._without(proto, found)
        if config.make_inputs:
            self._as_inputs(proto, found, values, config)
        else:
            _as_initializers(proto, file, tensors, found)
        context.report["adapter"] = {
            "tensors": len(values),
            "bytes": sum(value.nbytes for value in values.values()),
            "file": file.name,
            "initializers_left": left,
        }
        return proto

    @staticmethod
    def _without(proto: Any, found: Sequence[AdapterWeight]) -> int:
        """Rename where the weights go in, and take them from the initializers; return how many initializers stay."""
        gone = {weight.initializer for weight in found}
        for weight in found:
            weight.node.input[weight.slot] = ""
        used = {entry for node in proto.graph.node for entry in node.input}
        kept = [tensor for tensor in proto.graph.initializer if tensor.name not in gone or tensor.name in used]
        for weight in found:
            weight.node.input[weight.slot] = weight.name
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
        return len(kept)

    def _as_inputs(
        self, proto: Any, found: Sequence[AdapterWeight], values: Mapping[str, Any], config: ExtractAdaptersConfig
    ) -> None:
        import numpy as np
        from onnx import helper, numpy_helper

        names = {weight.name for weight in found}
        for group in (proto.graph.input, proto.graph.initializer, proto.graph.value_info):
            kept = [item for item in group if item.name not in names]
            del group[:]
            group.extend(kept)
        for weight in found:
            value = values[weight.name]
            shape: list[int | str] = list(value.shape)
            if weight.rank_axis is not None and config.dynamic_lora_r:
                shape[weight.rank_axis] = _RANK
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            proto.graph.input.append(helper.make_tensor_value_info(weight.name, kind, shape))
            if config.optional_inputs and weight.rank_axis is not None:
                # An adapter of rank 0 adds nothing; where the rank is fixed, zeros do.
                sizes = list(value.shape)
                if config.dynamic_lora_r:
                    sizes[weight.rank_axis] = 0
                proto.graph.initializer.append(numpy_helper.from_array(np.zeros(sizes, value.dtype), weight.name))


def _exported_without(attributes: Mapping[str, Any]) -> bool:
    """Whether OnnxConversion made the graph of a model that had no adapter of its own, so that there is none."""
    return "opset" in attributes and not attributes.get("adapter_in_graph")


def _as_initializers(proto: Any, file: Path, tensors: Mapping[str, Any], found: Sequence[AdapterWeight]) -> None:
    """Let the graph's initializers point into a safetensors file."""
    from onnx import TensorProto

    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
    for weight in found:
        begin, end = header[weight.name]["data_offsets"]
        tensor = TensorProto()
        tensor.name, tensor.data_type = weight.name, tensors[weight.initializer].data_type
        tensor.dims.extend(tensors[weight.initializer].dims)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", file.name), ("offset", 8 + length + begin), ("length", end - begin)):
            tensor.external_data.add(key=key, value=str(value))
        proto.graph.initializer.append(tensor)
