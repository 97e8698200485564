"""Weights in blocks of few bits, without data: round to nearest, k-quant, HQQ (onnxruntime's MatMulNBits quantizer)."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import Choice, Ordered, PassConfig, searchable
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.plugins.onnx.gather_quantization import quantizable_gathers, quantize_gathers
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig, check_node_names
from drupe.plugins.onnx.graphs import name_all_nodes
from drupe.plugins.onnx.idle import absent_operators, tell_idle

__all__ = [
    "BlockQuantizationConfig",
    "OnnxBlockWiseRtnQuantization",
    "OnnxBlockWiseRtnQuantizationConfig",
    "OnnxHqqQuantization",
    "OnnxKQuantQuantization",
    "OnnxKQuantQuantizationConfig",
    "gemm_hint",
]

_TYPE_BITS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8}
"""Types that files name where the number of bits is meant."""
_RESULTS = ("MatMulNBits", "GatherBlockQuantized", "DequantizeLinear")


class BlockQuantizationConfig(GraphPassConfig):
    """What every scheme of blocks takes."""

    bits: Literal[4, 8] = searchable(4, Ordered(4, 8), doc="Bits of a weight.")
    block_size: Literal[16, 32, 64, 128, 256] = searchable(
        128, Ordered(32, 64, 128), doc="Weights that share a scale: fewer keep more quality and take more room."
    )
    nodes_to_exclude: list[str] | None = Field(None, description="Nodes that stay as they are.")

    @field_validator("bits", mode="before")
    @classmethod
    def _named_type(cls, value: Any) -> Any:
        """A type's name is read as its bits."""
        return _TYPE_BITS.get(value, value) if isinstance(value, str) else value

    @field_validator("accuracy_level", mode="before", check_fields=False)
    @classmethod
    def _unset(cls, value: Any) -> Any:
        """null is what older files write for unset."""
        return 0 if value is None else value


class OnnxBlockWiseRtnQuantizationConfig(BlockQuantizationConfig):
    """Options of rounding to nearest."""

    is_symmetric: bool = searchable(
        True, Choice(True, False), doc="Blocks without a zero point; with one they keep more quality."
    )
    accuracy_level: Literal[0, 1, 2, 3, 4] = searchable(
        4, Choice(1, 4), doc="What products are computed in: 0 unset, 1 float32, 2 float16, 3 bfloat16, 4 int8."
    )
    nodes_to_include: list[str] | None = Field(None, description="Nodes of other operators to quantize as well.")
    op_types_to_quantize: list[Literal["MatMul", "Gather"]] | None = Field(
        None,
        min_length=1,
        description="Operators whose weights are quantized; default: MatMul, and in a graph that multiplies by no "
        "weight (the embedding of a model in parts) Gather.",
    )
    quant_format: Literal["QOperator", "QDQ"] = Field(
        "QOperator", description="MatMulNBits nodes, or DequantizeLinear before MatMul (4 bits, opset 21)."
    )

    @model_validator(mode="after")
    def _written(self) -> OnnxBlockWiseRtnQuantizationConfig:
        if self.quant_format == "QDQ" and self.bits != 4:
            raise ValueError("quant_format QDQ is written for 4 bits only; give bits 4 or quant_format QOperator")
        return self


class OnnxKQuantQuantizationConfig(BlockQuantizationConfig):
    """Options of k-quant."""

    block_size: Literal[16, 32, 64, 128, 256] = searchable(
        32, Ordered(32, 64, 128), doc="Weights that share a scale: fewer keep more quality and take more room."
    )
    accuracy_level: Literal[0, 1, 2, 3, 4] = searchable(
        4, Choice(1, 4), doc="What products are computed in: 0 unset, 1 float32, 2 float16, 3 bfloat16, 4 int8."
    )


class _BlockQuantization(GraphPass):
    """Subclasses say how their scheme is configured."""

    scheme: ClassVar[str] = ""
    takes_quantized = False

    def outcome(self, attributes: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
        """The graph is quantized."""
        return {"quantization": f"int{config.bits}-{self.scheme}"}

    def quantizer(self, proto: Any, config: Any) -> Any:
        """Return onnxruntime's quantizer of the scheme."""
        raise NotImplementedError

    def rewrite(self, proto: Any, path: Path, model: Model, config: Any, context: PassContext) -> Any:
        """Quantize with onnxruntime."""
        check_node_names(self.spec.name, proto, "nodes_to_exclude", config.nodes_to_exclude)
        # One of the schemes calls weights after their nodes.
        name_all_nodes(proto)
        asked = config.op_types_to_quantize if "op_types_to_quantize" in config.model_fields_set else None
        tell_idle(self.spec.name, path.name, absent_operators(proto, op_types_to_quantize=asked), context)
        # The quantizer may change the graph it is given.
        kinds_of = Counter(node.op_type for node in proto.graph.node)
        kinds = sorted(kinds_of)
        before = _count(proto)
        quantizer = self.quantizer(proto, config)
        with contextlib.redirect_stdout(sys.stderr):  # one of the schemes prints a progress bar
            quantizer.process()
        result = quantizer.model.model
        quantized = _count(result) - before
        if not quantized:
            raise PassError(
                f"{self.spec.name} found nothing to quantize: no MatMul of the graph multiplies by a weight; it has "
                f"{', '.join(kinds[:12])}{gemm_hint(proto)}"
            )
        if quantized < kinds_of.get("Gemm", 0) and (hint := gemm_hint(result)):
            context.log.warning("%s: most weights stay in float32%s", self.spec.name, hint)
        context.report["quantized_nodes"] = context.report.get("quantized_nodes", 0) + quantized
        return result


class OnnxBlockWiseRtnQuantization(_BlockQuantization):
    """Rounds the weights of MatMul (and Gather) to the nearest value of their block's grid."""

    Config: ClassVar[type[PassConfig]] = OnnxBlockWiseRtnQuantizationConfig
    version = 2
    scheme = "rtn"

    def rewrite(self, proto: Any, path: Path, model: Model, config: Any, context: PassContext) -> Any:
        """Quantize products, or the tables of a graph that has none."""
        weights = {tensor.name for tensor in proto.graph.initializer if len(tensor.dims) == 2}
        products = any(node.op_type == "MatMul" and node.input[1] in weights for node in proto.graph.node)
        if config.op_types_to_quantize is not None or config.nodes_to_include or products or gemm_hint(proto):
            return super().rewrite(proto, path, model, config, context)
        check_node_names(self.spec.name, proto, "nodes_to_exclude", config.nodes_to_exclude)
        gathers = quantizable_gathers(proto, config.nodes_to_exclude or ())
        if not gathers or config.quant_format == "QDQ":
            return super().rewrite(proto, path, model, config, context)
        quantize_gathers(proto, gathers, bits=config.bits, block_size=config.block_size, symmetric=config.is_symmetric)
        context.report["quantized_nodes"] = context.report.get("quantized_nodes", 0) + len(gathers)
        return proto

    def quantizer(self, proto: Any, config: Any) -> Any:
        """See _BlockQuantization.quantizer."""
        from onnxruntime.quantization import QuantFormat
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        check_node_names(self.spec.name, proto, "nodes_to_include", config.nodes_to_include)
        opset = next(item.version for item in proto.opset_import if item.domain in ("", "ai.onnx"))
        if opset < 21 and (config.quant_format == "QDQ" or "Gather" in (config.op_types_to_quantize or ())):
            raise ConfigError(
                f"{self.spec.name}: QDQ and Gather need operator set 21, the graph has {opset}; put "
                "OnnxOpVersionConversion before it, or quantize MatMul as QOperator"
            )
        return MatMulNBitsQuantizer(
            proto,
            bits=config.bits,
            block_size=config.block_size,
            is_symmetric=config.is_symmetric,
            accuracy_level=config.accuracy_level,
            nodes_to_exclude=config.nodes_to_exclude,
            nodes_to_include=config.nodes_to_include,
            quant_format=QuantFormat[config.quant_format],
            op_types_to_quantize=tuple(config.op_types_to_quantize or ("MatMul",)),
        )


class OnnxKQuantQuantization(_BlockQuantization):
    """Chooses each block's scale and zero point by least squares, as k-quants do."""

    Config: ClassVar[type[PassConfig]] = OnnxKQuantQuantizationConfig
    version = 1
    scheme = "kquant"

    def rewrite(self, proto: Any, path: Path, model: Model, config: Any, context: PassContext) -> Any:
        """Quantize; inputs that only graphs inside nodes read, or nothing, stay aside: the library trips over them."""
        read = {name for node in proto.graph.node for name in node.input}
        inputs = list(proto.graph.input)
        if all(value.name in read for value in inputs):
            return super().rewrite(proto, path, model, config, context)
        del proto.graph.input[:]
        proto.graph.input.extend(value for value in inputs if value.name in read)
        result = super().rewrite(proto, path, model, config, context)
        del result.graph.input[:]
        result.graph.input.extend(inputs)
        return result

    def quantizer(self, proto: Any, config: Any) -> Any:
        """See _BlockQuantization.quantizer. Raises ConfigError where two zero points don't fill a byte."""
        from onnxruntime.quantization.matmul_nbits_quantizer import KQuantWeightOnlyQuantConfig, MatMulNBitsQuantizer

        weights = {item.name: item.dims for item in proto.graph.initializer}
        wanted = [n for n in proto.graph.node if n.op_type == "MatMul" and len(weights.get(n.input[1], ())) == 2]
        excluded = set(config.nodes_to_exclude or ())
        for node in wanted:
            rows = weights[node.input[1]][0]
            blocks = -(-rows // config.block_size)
            if config.bits == 4 and blocks % 2 and node.name not in excluded:
                raise ConfigError(
                    f"{self.spec.name}: the {rows} inputs of node {node.name!r} make {blocks} blocks of "
                    f"{config.block_size}; 4-bit k-quants need an even number: give a smaller block_size, bits 8, or "
                    "nodes_to_exclude"
                )
        return MatMulNBitsQuantizer(
            proto,
            block_size=config.block_size,
            accuracy_level=config.accuracy_level,
            nodes_to_exclude=config.nodes_to_exclude,
            # The scheme reads its bits from here only; without an entry it takes 4.
            algo_config=KQuantWeightOnlyQuantConfig(
                customized_weight_config={node.name: {"bits": config.bits} for node in wanted}
            ),
        )


class OnnxHqqQuantization(_BlockQuantization):
    """Half-quadratic quantization: zero points are fitted to outliers as floats, for which kernels are slower."""

    Config: ClassVar[type[PassConfig]] = BlockQuantizationConfig
    version = 1
    scheme = "hqq"

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse 8 bits on a CPU, which has no kernel for them with zero points that are floats."""
        if config.bits == 8 and accelerator.device == "cpu":
            raise ConfigError(
                f"{self.spec.name}: ONNX Runtime's CPU kernels take its zero points with 4 bits only; give bits 4, or "
                "use OnnxKQuantQuantization with bits 8"
            )
        return super().plan(info, config, accelerator)

    def quantizer(self, proto: Any, config: Any) -> Any:
        """See _BlockQuantization.quantizer."""
        from onnxruntime.quantization.matmul_nbits_quantizer import HQQWeightOnlyQuantConfig, MatMulNBitsQuantizer

        return MatMulNBitsQuantizer(
            proto,
            nodes_to_exclude=config.nodes_to_exclude,
            algo_config=HQQWeightOnlyQuantConfig(block_size=config.block_size, bits=config.bits),
        )


def _count(proto: Any) -> int:
    return sum(node.op_type in _RESULTS for node in proto.graph.node)


def gemm_hint(proto: Any) -> str:
    """Return what to do about weights of Gemm nodes, which quantizers by blocks leave alone; "" where none are."""
    weights = {tensor.name for tensor in proto.graph.initializer if len(tensor.dims) == 2}
    count = sum(node.op_type == "Gemm" and node.input[1] in weights for node in proto.graph.node)
    if not count:
        return ""
    return f"; {count} Gemm nodes hold weights: put GraphSurgeries with the surgeon GemmToMatMulAdd before it"
