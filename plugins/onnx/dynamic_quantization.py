"""OnnxDynamicQuantization: 8-bit weights, activations quantized as they come (onnxruntime.quantization)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from drupe.core.accelerators import Accelerator
from drupe.core.config import Choice, PassConfig, searchable
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.onnx.graphs import companions, graph_path, load_graph, save_graph, scrub_graph

__all__ = ["OnnxDynamicQuantization", "OnnxDynamicQuantizationConfig"]

_QUANTIZED = ("QLinear", "Integer", "DynamicQuantizeLSTM", "QAttention", "QEmbedLayerNormalization", "DequantizeLinear")


class OnnxDynamicQuantizationConfig(PassConfig):
    """Options of onnxruntime's quantize_dynamic."""

    weight_type: Literal["QInt8", "QUInt8"] = searchable(
        "QInt8", Choice("QInt8", "QUInt8"), doc="Signed or unsigned weights; signed ones run faster on most CPUs."
    )
    per_channel: bool = searchable(
        True, Choice(True, False), doc="A scale per output channel; keeps much more of the quality."
    )
    reduce_range: bool = searchable(
        False, Choice(True, False), doc="7-bit weights, for CPUs whose 8-bit products overflow."
    )
    op_types_to_quantize: list[str] | None = Field(None, description="Operators to quantize; default: all that can be.")
    nodes_to_quantize: list[str] | None = Field(None, description="Only these nodes.")
    nodes_to_exclude: list[str] | None = Field(None, description="Not these nodes.")
    quant_preprocess: bool = Field(True, description="Infer shapes and tidy the graph first.")
    MatMulConstBOnly: bool = Field(True, description="Quantize MatMul only where the second input is a weight.")
    EnableSubgraph: bool = Field(False, description="Quantize inside If and Loop as well.")
    ForceQuantizeNoInputCheck: bool = Field(False, description="Quantize operators whose input is not quantized.")
    save_as_external_data: bool = Field(False, description="Keep the weights in a file of their own.")
    all_tensors_to_one_file: bool = Field(True, description="One file for all weights; the only way that is written.")
    external_data_name: None = Field(None, description="Not used: the file is called after the graph.")
    extra_options: Mapping[str, Any] = Field(
        default_factory=dict, description="Other options of onnxruntime's quantizer."
    )


class OnnxDynamicQuantization(Pass):
    """Quantizes the weights of MatMul, Gemm, Gather, Attention and others."""

    Config: ClassVar[type[PassConfig]] = OnnxDynamicQuantizationConfig
    version = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse a graph that is quantized already, and a device that has no kernels for it."""
        planned = super().plan(info, config, accelerator)
        if info.attributes.get("quantization"):
            raise ConfigError(f"the graph is quantized already ({info.attributes['quantization']})")
        if accelerator.device != "cpu":
            raise ConfigError("OnnxDynamicQuantization is for CPUs: other devices have no kernels for its operators")
        return planned.with_(quantization="int8-dynamic")

    def run(self, model: Model, config: OnnxDynamicQuantizationConfig, context: PassContext) -> Model:
        """Quantize below context.output_dir."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        proto = load_graph(model)
        if config.quant_preprocess:
            proto = preprocess(proto, context.output_dir.parent / "preprocessed.onnx")
        _check_names(proto, config)
        work = context.output_dir.parent / "quantized.onnx"
        options = {
            "MatMulConstBOnly": config.MatMulConstBOnly,
            "EnableSubgraph": config.EnableSubgraph,
            "ForceQuantizeNoInputCheck": config.ForceQuantizeNoInputCheck,
            # Fused operators of other domains carry no shapes; their tensors are float32.
            "DefaultTensorType": 1,
            **config.extra_options,
        }
        context.progress(0, 1, "quantizing")
        quantize_dynamic(
            proto,
            str(work),
            op_types_to_quantize=config.op_types_to_quantize,
            per_channel=config.per_channel,
            reduce_range=config.reduce_range,
            weight_type=QuantType[config.weight_type],
            nodes_to_quantize=config.nodes_to_quantize,
            nodes_to_exclude=config.nodes_to_exclude,
            use_external_data_format=proto.ByteSize() > 2**30,
            extra_options=options,
        )
        import onnx

        result = onnx.load(str(work))
        count = sum(any(mark in node.op_type for mark in _QUANTIZED) for node in result.graph.node)
        if not count:
            kinds = sorted({node.op_type for node in proto.graph.node})
            raise PassError(
                f"OnnxDynamicQuantization found nothing to quantize; the graph has {', '.join(kinds[:12])}; "
                "see op_types_to_quantize and nodes_to_exclude"
            )
        scrub_graph(result)
        name = graph_path(model).name
        save_graph(result, context.output_dir, name, external=config.save_as_external_data)
        companions(model.folder, context.output_dir)
        context.report["quantized_nodes"] = count
        context.progress(1, 1, "quantized")
        return Model.from_dir("onnx", context.output_dir, {**model.attributes, "quantization": "int8-dynamic"})


def preprocess(proto: Any, work: Path) -> Any:
    """Return the graph with inferred shapes where they can be had; quantizers read them. work: a file to write."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # Symbolic inference fails on many exported graphs, and onnx's own is enough for weights.
    quant_pre_process(proto, str(work), skip_symbolic_shape=True, skip_optimization=True)
    return onnx.load(str(work))


def _check_names(proto: Any, config: OnnxDynamicQuantizationConfig) -> None:
    known = {node.name for node in proto.graph.node}
    for field in ("nodes_to_quantize", "nodes_to_exclude"):
        for name in getattr(config, field) or ():
            if name not in known:
                import difflib

                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"OnnxDynamicQuantization: {field}: the graph has no node {name!r}{hint}")
