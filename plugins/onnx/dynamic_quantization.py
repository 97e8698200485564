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
from drupe.core.model import ModelInfo
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig, check_node_names
from drupe.plugins.onnx.preprocess import preprocess

__all__ = ["OnnxDynamicQuantization", "OnnxDynamicQuantizationConfig"]

_QUANTIZED = ("QLinear", "Integer", "DynamicQuantizeLSTM", "QAttention", "QEmbedLayerNormalization", "DequantizeLinear")


class OnnxDynamicQuantizationConfig(GraphPassConfig):
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
    extra_options: Mapping[str, Any] = Field(
        default_factory=dict, description="Other options of onnxruntime's quantizer."
    )


class OnnxDynamicQuantization(GraphPass):
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
        return planned

    def outcome(self, attributes: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
        """The graph is quantized."""
        return {"quantization": "int8-dynamic"}

    def rewrite(self, proto: Any, path: Path, config: OnnxDynamicQuantizationConfig, context: PassContext) -> Any:
        """Quantize with onnxruntime."""
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        if config.quant_preprocess:
            proto = preprocess(path, context.output_dir.parent / "preprocessed.onnx", context, skip_symbolic_shape=True)
        for field in ("nodes_to_quantize", "nodes_to_exclude"):
            check_node_names(self.spec.name, proto, field, getattr(config, field))
        work = context.output_dir.parent / "quantized.onnx"
        options = {
            "MatMulConstBOnly": config.MatMulConstBOnly,
            "EnableSubgraph": config.EnableSubgraph,
            "ForceQuantizeNoInputCheck": config.ForceQuantizeNoInputCheck,
            # Fused operators of other domains carry no shapes; their tensors are float32.
            "DefaultTensorType": 1,
            **config.extra_options,
        }
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
        result = onnx.load(str(work))
        count = sum(any(mark in node.op_type for mark in _QUANTIZED) for node in result.graph.node)
        if not count:
            kinds = sorted({node.op_type for node in proto.graph.node})
            raise PassError(
                f"OnnxDynamicQuantization found nothing to quantize; the graph has {', '.join(kinds[:12])}; "
                "see op_types_to_quantize and nodes_to_exclude"
            )
        context.report["quantized_nodes"] = count
        return result
