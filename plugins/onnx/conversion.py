"""OnnxConversion: a Hugging Face model or a module → an ONNX graph, by torch.export or by the older exporter."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.onnx.adapter_weights import adapter_parameters, name_adapter_weights
from drupe.plugins.onnx.examples import example_inputs
from drupe.plugins.onnx.export_outputs import ExportOutputs, export_outputs, output_axes
from drupe.plugins.onnx.exporter_errors import ExporterFailed, HoldsHereOnly, exporter_failed
from drupe.plugins.onnx.graphs import companions, label_axes, name_axes, name_nodes, save_graph, scrub_graph
from drupe.plugins.onnx.modules import by_export, by_tracing, export_call, export_module
from drupe.plugins.onnx.other_sizes import check_other_sizes
from drupe.plugins.onnx.past import PastNames, check_steps, past_call, past_names, stepwise
from drupe.plugins.onnx.quantized_weights import store_quantized_weights

__all__ = ["OnnxConversion", "OnnxConversionConfig"]

_KEPT = ("task", "architecture", "model_type", "model_attributes", "split", "split_assignments")
"""Attributes of the source that hold for the graph as well."""
_FIRST_EXPORTED = 18
"""The oldest operator set that torch.export writes; older ones are reached by the other exporter only."""
_LAST_TRACED = 20
"""The newest operator set that the older exporter writes."""
_TRAINED = "qat"
"""The quantization of a model whose scales were found in training."""
_FIRST_QUANTIZED = 13
"""The oldest operator set whose QuantizeLinear has a scale per channel."""


class OnnxConversionConfig(PassConfig):
    """Options of the export."""

    target_opset: int = Field(20, ge=11, le=24, description="Version of the ONNX operator set.")
    use_dynamo_exporter: bool | None = Field(
        None,
        description="true: torch.export; false: the older exporter, which traces one call. Not given: torch.export "
        "where it writes target_opset (18 and newer), and the older one for a Hugging Face model that it can't export.",
    )
    dynamic: bool = Field(True, description="Batch and sequence may have any length; false fixes the example's shapes.")
    save_as_external_data: bool = Field(False, description="Keep the weights in a file of their own.")
    all_tensors_to_one_file: bool = Field(True, description="One file for all weights; the only way that is written.")
    external_data_name: str | None = Field(None, description="Name of the file with the weights.")
    torch_dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None,
        description="Convert the weights first. Not given: as they are stored, but bfloat16 as float32, which holds "
        "the same numbers and runs everywhere.",
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where the model is exported.")
    merge_adapter_weights: bool = Field(
        False,
        description="Merge an adapter into the base before the export. false: a LoRA stays apart in the graph, as "
        "ExtractAdapters wants it.",
    )
    optimize: bool = Field(True, description="Fold constants and remove dead nodes.")
    past_key_value_name: str = Field(
        "past_key_values",
        description="The argument of the model's forward call that takes the keys and values of the tokens before, "
        "where the graph is to take them (task: text-generation-with-past, or io_config with kv_cache).",
    )

    @property
    def dynamo(self) -> bool:
        """Whether torch.export does the work."""
        return self.target_opset >= _FIRST_EXPORTED if self.use_dynamo_exporter is None else self.use_dynamo_exporter

    @property
    def exporter(self) -> Mapping[str, Any]:
        """What the export of a module is told."""
        return {
            "opset": self.target_opset, "dynamo": self.dynamo, "dynamic": self.dynamic, "optimize": self.optimize,
            "dtype": self.torch_dtype, "device": self.device,
        }  # fmt: skip


class OnnxConversion(Pass):
    """Exports the forward call of the model's task.

    A decoder whose task is text-generation-with-past, or whose io_config says kv_cache, goes on from the keys and
    values of the tokens before: the graph takes past_key_values.N.key and .value (batch, heads, past, size), of length
    0 in a first step, and gives present.N.key and .value. Others take the whole text at each call.
    """

    Config: ClassVar[type[PassConfig]] = OnnxConversionConfig
    version = 5

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse what can't be exported."""
        planned = super().plan(info, config, accelerator)
        if not config.all_tensors_to_one_file:
            raise ConfigError("OnnxConversion writes external weights to one file; leave all_tensors_to_one_file true")
        quantization = info.attributes.get("quantization")
        if quantization and quantization != _TRAINED:
            raise ConfigError(
                f"OnnxConversion exports float models; this one is quantized ({quantization}): let ModelBuilder take "
                "it, or quantize the graph behind the export, with OnnxBlockWiseRtnQuantization for example"
            )
        if quantization == _TRAINED:
            if config.torch_dtype not in (None, "float32"):
                raise ConfigError(
                    f"OnnxConversion: the scales of a model trained for quantization hold for float32; leave "
                    f"torch_dtype ({config.torch_dtype}) out"
                )
            if config.target_opset < _FIRST_QUANTIZED:
                raise ConfigError(
                    f"OnnxConversion: scales per channel need opset {_FIRST_QUANTIZED} or newer, not "
                    f"{config.target_opset}"
                )
        if config.dynamo and config.target_opset < _FIRST_EXPORTED:
            raise ConfigError(
                f"OnnxConversion: torch.export writes opset 18 and newer, not {config.target_opset}; "
                "set use_dynamo_exporter: false for an older one"
            )
        if info.attributes.get("components"):
            if info.attributes.get("adapter"):
                raise ConfigError(
                    "OnnxConversion: the model's components are built by its script, which knows no adapter; put "
                    "MergeAdapterWeights before it"
                )
            return ModelInfo("composite", _attributes(info, config))
        return ModelInfo(planned.kind, _attributes(info, config))

    def run(self, model: Model, config: OnnxConversionConfig, context: PassContext) -> Model:
        """Export below context.output_dir, tokenizer and config beside the graph."""
        if model.attributes.get("components"):
            return self._components(model, config, context)
        own: dict[str, Any] = {}
        if model.kind == "pytorch":
            proto, own = export_module(model, context, **config.exporter)
        else:
            proto = self._exported(model, config, context)
        if model.attributes.get("quantization") == _TRAINED:
            context.report["quantized"] = store_quantized_weights(proto)
        scrub_graph(proto)
        path = save_graph(
            proto, context.output_dir, external=config.save_as_external_data, data_name=config.external_data_name
        )
        loader = {"sliced_decoder.py"} if model.kind == "sliced" else set()
        companions(model.folder, context.output_dir, without=loader)
        context.progress(1, 1, "exported")
        attributes = {**own, **_attributes(model.info, config), "onnx_file": path.name}
        return Model.from_dir("onnx", context.output_dir, attributes)

    def _components(self, model: Model, config: OnnxConversionConfig, context: PassContext) -> Model:
        """Export each part that the script builds into a folder of its name."""
        from drupe.plugins.huggingface.components import components

        # Traced attention in its plain form is what ONNX Runtime's fusions look for.
        plain: dict[str, Any] = {} if config.dynamo else {"attn_implementation": "eager"}
        written = []
        for part in components(model, context, **plain):
            context.log.info("exporting %s", part.name)
            proto = export_call(part.module, part.inputs, part.told, context, **config.exporter)
            scrub_graph(proto)
            folder = context.output_dir / part.name
            path = save_graph(proto, folder, external=config.save_as_external_data, data_name=config.external_data_name)
            written.append({"name": part.name, "file": path.relative_to(context.output_dir).as_posix()})
        companions(model.folder, context.output_dir)
        return Model.from_dir(
            "composite", context.output_dir, {**_attributes(model.info, config), "components": written}
        )

    def _exported(self, model: Model, config: OnnxConversionConfig, context: PassContext) -> Any:
        """Export a Hugging Face model; by the older exporter where torch.export fails and was not asked for by name."""
        try:
            return self._by_either_attention(model, config, context)
        except ExporterFailed as error:
            if config.use_dynamo_exporter is not None or config.target_opset > _LAST_TRACED:
                raise
            context.log.warning("%s: by torch.export, %s; the older exporter traces one call", self.spec.name, error)
            context.report["exporter"] = f"the older one, since by torch.export {error}"
        return self._hugging_face(model, config.model_copy(update={"use_dynamo_exporter": False}), context)

    def _by_either_attention(self, model: Model, config: OnnxConversionConfig, context: PassContext) -> Any:
        """Export a Hugging Face model; with attention in its plain form where the exporter can't write the fused one.

        torch 2.13 takes what its own attention gives for laid out otherwise when it has biases of open lengths (T5)."""
        try:
            return self._hugging_face(model, config, context)
        except HoldsHereOnly:
            raise
        except ExporterFailed:
            chosen = "attn_implementation" in (model.attributes.get("load_kwargs") or {})
            if not config.dynamo or chosen:
                raise
            context.log.info("%s: once more, with attention in its plain form", self.spec.name)
            try:
                proto = self._hugging_face(model, config, context, attn_implementation="eager")
            except (ExporterFailed, ValueError):
                # What failed first is what the user should read.
                proto = None
            if proto is None:
                raise
        context.report["attention"] = "in its plain form, since torch.export can't write the fused one of this model"
        return proto

    def _hugging_face(self, model: Model, config: OnnxConversionConfig, context: PassContext, **options: Any) -> Any:
        import torch

        from drupe.plugins.huggingface.loading import load_model

        adapter = bool(model.attributes.get("adapter"))
        # Traced attention in its plain form is what ONNX Runtime's fusions look for.
        plain: dict[str, Any] = options if config.dynamo else {"attn_implementation": "eager"}
        loaded = load_model(model, device=config.device, with_adapter=adapter, **plain)
        if adapter and config.merge_adapter_weights:
            loaded = loaded.merge_and_unload()
        if config.torch_dtype:
            loaded = loaded.to(getattr(torch, config.torch_dtype))
        elif loaded.dtype is torch.bfloat16 and not (model.attributes.get("load_kwargs") or {}).get("dtype"):
            # ONNX Runtime has kernels for bfloat16 on few devices; float32 holds the same numbers.
            loaded = loaded.float()
            context.report["dtype"] = "stored as bfloat16, exported as float32; torch_dtype: bfloat16 keeps it"
        loaded.eval()
        apart: dict[str, Any] = {}
        if adapter and not config.merge_adapter_weights:
            apart = adapter_parameters(self.spec.name, loaded)
            context.report["adapter"] = f"kept apart in the graph, {len(apart)} weights"
            # The layers are adapted in place; the base's own forward call is what the task knows.
            loaded = loaded.get_base_model()
        _gather_experts(loaded)
        past = _past(model.info)
        if past is not None:
            proto = _export_steps(loaded, past, model, config, context)
        else:
            inputs, axes = example_inputs(model, loaded, _parameters(loaded))
            constants = {"use_cache": False} if "use_cache" in _parameters(loaded) else {}
            told = model.attributes.get("io_config")
            outputs = export_outputs(loaded, inputs, constants, told if isinstance(told, Mapping) else {})
            context.progress(0, 1, "exporting")
            proto = _export(loaded, inputs, constants, outputs, axes if config.dynamic else {}, config, context)
        if apart:
            name_adapter_weights(self.spec.name, proto, apart)
        return proto


def _gather_experts(loaded: Any) -> None:
    """Let a mixture of experts take each token's weights from tables: its other ways have no operators in ONNX."""
    if any(type(module).__name__.endswith("Experts") for module in loaded.modules()) and hasattr(
        loaded, "set_experts_implementation"
    ):
        loaded.set_experts_implementation("batched_mm")


def _attributes(source: ModelInfo, config: OnnxConversionConfig) -> dict[str, Any]:
    kept = {key: value for key, value in source.attributes.items() if key in _KEPT}
    apart = bool(source.attributes.get("adapter")) and not config.merge_adapter_weights
    more: dict[str, Any] = {"adapter_in_graph": True} if apart else {}
    if source.kind == "hf" and _past(source) is not None:
        kept["task"] = "text-generation-with-past"
    if source.attributes.get("quantization") == _TRAINED:
        more["quantization"] = "int8-static"
    return {**kept, "opset": config.target_opset, **more}


def _past(source: ModelInfo) -> PastNames | None:
    return past_names(source.attributes.get("task"), source.attributes.get("io_config"))


def _parameters(loaded: Any) -> list[str]:
    return list(inspect.signature(loaded.forward).parameters)


def _export(
    loaded: Any,
    inputs: Mapping[str, Any],
    constants: Mapping[str, Any],
    outputs: ExportOutputs,
    axes: Mapping[str, Mapping[int, str]],
    config: OnnxConversionConfig,
    context: PassContext,
) -> Any:
    import torch

    moved = {name: value.to(config.device) for name, value in inputs.items()}
    names = list(outputs.names)
    wrapped = _ordered(loaded, list(moved), constants, outputs.sources)
    try:
        if config.dynamo and outputs.whole:
            dims = {label: torch.export.Dim.DYNAMIC for found in axes.values() for label in found.values()}
            dynamic = {name: {axis: dims[label] for axis, label in axes.get(name, {}).items()} for name in moved}
            program = torch.onnx.export(
                loaded,
                (),
                kwargs={**moved, **constants},
                dynamic_shapes={**dynamic, **dict.fromkeys(constants)} if axes else None,
                opset_version=config.target_opset,
                output_names=names,
                optimize=config.optimize,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            proto = program.model_proto
            name_axes(proto, axes)
            name_nodes(proto)
        elif config.dynamo:
            proto = by_export(wrapped, moved, names, axes, config.target_opset, config.optimize)
        else:
            every = {**axes, **output_axes(moved, outputs, axes)}
            target = context.output_dir.parent / "export.onnx"
            proto = by_tracing(wrapped, moved, names, every, config.target_opset, config.optimize, target)
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        raise exporter_failed(error, dynamo=config.dynamo) from error
    check_other_sizes(proto, wrapped, moved, names, axes, dynamo=config.dynamo)
    return proto


def _export_steps(
    loaded: Any, names: PastNames, model: Model, config: OnnxConversionConfig, context: PassContext
) -> Any:
    """Export a decoder that goes on from keys and values."""
    import torch

    told = model.attributes.get("io_config")
    parameter = config.past_key_value_name
    call = past_call(loaded, names, told, dynamic=config.dynamic, parameter=parameter, device=config.device)
    wrapped = stepwise(loaded, call, parameter)
    context.progress(0, 1, "exporting")
    outputs = list(call.outputs)
    try:
        if config.dynamo:
            proto = by_export(wrapped, call.inputs, outputs, call.axes, config.target_opset, config.optimize)
            label_axes(proto.graph.output, call.axes)
        else:
            target = context.output_dir.parent / "export.onnx"
            proto = by_tracing(wrapped, call.inputs, outputs, call.axes, config.target_opset, config.optimize, target)
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        raise exporter_failed(error, dynamo=config.dynamo) from error
    check_steps(proto, wrapped, call)
    context.report["past"] = f"keys and values of {len(call.pairs)} layers go in and out"
    return proto


def _ordered(loaded: Any, names: Sequence[str], constants: Mapping[str, Any], sources: Sequence[str]) -> Any:
    """Wrap a model so that it takes its inputs by position, as tracing wants, and gives the outputs that are asked."""
    import torch

    class Ordered(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = loaded

        def forward(self, *values: Any) -> Any:
            outputs = self.inner(**dict(zip(names, values, strict=True)), **constants, return_dict=True)
            return tuple(outputs[name] for name in sources)

    return Ordered().eval()
