"""OnnxDynamicQuantization: 8-bit weights, activations quantized as they come (onnxruntime.quantization)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import Choice, PassConfig, searchable
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig, check_node_names
from drupe.plugins.onnx.graphs import byte_size
from drupe.plugins.onnx.idle import absent_operators, tell_idle
from drupe.plugins.onnx.preprocess import preprocess
from drupe.plugins.onnx.tensor_overrides import refuse_overrides

__all__ = ["OnnxDynamicQuantization", "OnnxDynamicQuantizationConfig", "quantize_dynamically"]

_PRODUCTS = frozenset({"MatMul", "Gemm"})
"""Operators whose second input is a weight that gets a scale for each channel."""
_QUANTIZED = ("QLinear", "Integer", "DynamicQuantizeLSTM", "QAttention", "QEmbedLayerNormalization", "DequantizeLinear")


class OnnxDynamicQuantizationConfig(GraphPassConfig):
    """Options of onnxruntime's quantize_dynamic."""

    precision: Literal["int8", "uint8"] = searchable(
        "int8", Choice("int8", "uint8"), doc="Signed or unsigned weights; signed ones run faster on most CPUs."
    )
    per_channel: bool = searchable(
        True, Choice(True, False), doc="A scale per output channel; keeps much more of the quality."
    )
    reduce_range: bool = searchable(
        False, Choice(True, False), doc="7-bit weights, for CPUs whose 8-bit products overflow."
    )
    op_types_to_quantize: list[str] | None = Field(None, description="Operators to quantize; default: all that can be.")
    op_types_to_exclude: list[str] | None = Field(None, description="Operators to leave as they are.")
    nodes_to_quantize: list[str] | None = Field(None, description="Only these nodes.")
    nodes_to_exclude: list[str] | None = Field(None, description="Not these nodes.")
    quant_preprocess: bool = Field(True, description="Infer shapes and tidy the graph first.")
    MatMulConstBOnly: bool = Field(True, description="Quantize MatMul only where the second input is a weight.")
    EnableSubgraph: bool = Field(False, description="Quantize inside If and Loop as well.")
    ForceQuantizeNoInputCheck: bool = Field(False, description="Quantize operators whose input is not quantized.")
    extra_options: Mapping[str, Any] = Field(
        default_factory=dict, description="Other options of onnxruntime's quantizer."
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _older_type(cls, value: Any) -> Any:
        """onnxruntime's spelling is read as well."""
        return {"QInt8": "int8", "QUInt8": "uint8"}.get(value, value) if isinstance(value, str) else value


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
        refuse_overrides(self.spec.name, info)
        return planned

    def outcome(self, attributes: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
        """The graph is quantized."""
        return {"quantization": "int8-dynamic"}

    def rewrite(
        self, proto: Any, path: Path, model: Model, config: OnnxDynamicQuantizationConfig, context: PassContext
    ) -> Any:
        """Quantize with onnxruntime."""
        return quantize_dynamically(
            self.spec.name,
            proto,
            path,
            context,
            precision=config.precision,
            per_channel=config.per_channel,
            reduce_range=config.reduce_range,
            preprocessed=config.quant_preprocess,
            op_types=config.op_types_to_quantize,
            excluded_types=config.op_types_to_exclude,
            nodes=config.nodes_to_quantize,
            excluded=config.nodes_to_exclude,
            options={
                "MatMulConstBOnly": config.MatMulConstBOnly,
                "EnableSubgraph": config.EnableSubgraph,
                "ForceQuantizeNoInputCheck": config.ForceQuantizeNoInputCheck,
                **config.extra_options,
            },
        )


def quantize_dynamically(
    name: str,
    proto: Any,
    path: Path,
    context: PassContext,
    *,
    precision: str,
    per_channel: bool,
    reduce_range: bool,
    preprocessed: bool,
    op_types: Sequence[str] | None,
    excluded_types: Sequence[str] | None,
    nodes: Sequence[str] | None,
    excluded: Sequence[str] | None,
    options: Mapping[str, Any],
) -> Any:
    """Return the graph with weights of 8 bits. Raises ConfigError for an unknown node, PassError for no effect."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if preprocessed:
        proto = preprocess(path, context.output_dir.parent / "preprocessed.onnx", context, skip_symbolic_shape=True)
    check_node_names(name, proto, "nodes_to_quantize", nodes)
    check_node_names(name, proto, "nodes_to_exclude", excluded)
    # onnxruntime makes a MatMul and an Add of each Gemm first.
    gemm = any(node.op_type == "Gemm" for node in proto.graph.node)
    wanted = [kind for kind in op_types or () if not (gemm and kind == "MatMul")]
    lists = {"op_types_to_quantize": wanted, "op_types_to_exclude": excluded_types}
    tell_idle(name, path.name, absent_operators(proto, **lists), context)
    if per_channel:
        _part_weights(proto.graph)
    left = {node.name for node in proto.graph.node if node.op_type in set(excluded_types or ())}
    work = context.output_dir.parent / "quantized.onnx"
    quantize_dynamic(
        proto,
        str(work),
        op_types_to_quantize=list(op_types) if op_types else None,
        per_channel=per_channel,
        reduce_range=reduce_range,
        weight_type=QuantType.QInt8 if precision == "int8" else QuantType.QUInt8,
        nodes_to_quantize=list(nodes) if nodes else None,
        nodes_to_exclude=[*(excluded or ()), *sorted(left)],
        use_external_data_format=byte_size(proto) > 2**30,
        # Fused operators of other domains carry no shapes; their tensors are float32.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, **options},
    )
    result = onnx.load(str(work))
    count = sum(any(mark in node.op_type for mark in _QUANTIZED) for node in result.graph.node)
    if not count:
        kinds = sorted({node.op_type for node in proto.graph.node})
        raise PassError(
            f"{name} found nothing to quantize; the graph has {', '.join(kinds[:12])}; "
            "see op_types_to_quantize and nodes_to_exclude"
        )
    context.report["quantized_nodes"] = count
    return result


def _part_weights(graph: Any) -> None:
    """Give what reads a product's weight besides (a tied embedding, a transposition) a copy: onnxruntime's quantizer
    can't make floats of a weight that has a scale for each channel."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    products = {node.input[1] for node in graph.node if node.op_type in _PRODUCTS and len(node.input) > 1}
    for name in sorted(products & set(weights)):
        others = [
            (node, place)
            for node in graph.node
            for place, read in enumerate(node.input)
            if read == name and not (node.op_type in _PRODUCTS and place == 1)
        ]
        if not others:
            continue
        copied = graph.initializer.add()
        copied.CopyFrom(weights[name])
        copied.name = f"{name}_beside"
        for node, place in others:
            node.input[place] = copied.name
