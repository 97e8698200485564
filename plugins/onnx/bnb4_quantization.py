"""OnnxBnb4Quantization: weights on the grids NF4 and FP4 of bitsandbytes (onnxruntime's MatMulBnb4).

Dettmers et al. 2023, arXiv 2305.14314, section 3 (NormalFloat).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from drupe.core.config import Choice, Ordered, PassConfig, searchable
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model
from drupe.plugins.onnx.block_quantization import gemm_hint
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig, check_node_names

__all__ = ["OnnxBnb4Quantization", "OnnxBnb4QuantizationConfig"]


class OnnxBnb4QuantizationConfig(GraphPassConfig):
    """The grid, and which products get it."""

    quant_type: Literal["nf4", "fp4"] = searchable(
        "nf4", Choice("nf4", "fp4"), doc="nf4: steps as dense as a normal distribution; fp4: floats of four bits."
    )
    block_size: Literal[16, 32, 64, 128, 256] = searchable(
        64, Ordered(32, 64, 128), doc="Weights that share a scale: fewer keep more quality and take more room."
    )
    quantized_modules: list[str] | None = Field(
        None, min_length=1, description="Quantize only the products of these layers: q_proj, mlp.down_proj, …"
    )
    nodes_to_exclude: list[str] | None = Field(None, description="Nodes that stay as they are.")


class OnnxBnb4Quantization(GraphPass):
    """Quantizes the weights of MatMul."""

    Config: ClassVar[type[PassConfig]] = OnnxBnb4QuantizationConfig
    takes_quantized = False
    version = 1

    def outcome(self, attributes: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
        """The graph is quantized."""
        return {"quantization": config.quant_type}

    def rewrite(
        self, proto: Any, path: Path, model: Model, config: OnnxBnb4QuantizationConfig, context: PassContext
    ) -> Any:
        """Quantize with onnxruntime."""
        from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer

        check_node_names(self.spec.name, proto, "nodes_to_exclude", config.nodes_to_exclude)
        kinds = sorted({node.op_type for node in proto.graph.node})
        left = {*(config.nodes_to_exclude or ()), *self._others(proto, config.quantized_modules)}
        self._refuse_halves(proto, left)
        quantizer = MatMulBnb4Quantizer(
            proto,
            quant_type=getattr(MatMulBnb4Quantizer, config.quant_type.upper()),
            block_size=config.block_size,
            nodes_to_exclude=sorted(left),
        )
        quantizer.process()
        quantizer.model.topological_sort()
        result = quantizer.model.model
        _drop_doubles(result)
        count = sum(node.op_type == "MatMulBnb4" for node in result.graph.node)
        if not count:
            raise PassError(
                f"{self.spec.name} found nothing to quantize: no MatMul of the graph multiplies by a weight; it has "
                f"{', '.join(kinds[:12])}{gemm_hint(proto)}"
            )
        context.report["quantized_nodes"] = context.report.get("quantized_nodes", 0) + count
        return result

    def _others(self, proto: Any, modules: list[str] | None) -> set[str]:
        """Return the products that belong to none of the named layers. Raises ConfigError for one without any."""
        if modules is None:
            return set()
        names = [node.name for node in proto.graph.node if node.op_type == "MatMul"]
        chosen: set[str] = set()
        for module in modules:
            layer = re.escape(module).replace(r"\.", "[./]")
            wanted = re.compile(rf"(?:.*[./])?{layer}[./](?:base_layer[./])?MatMul$")
            found = {name for name in names if wanted.match(name)}
            if not found:
                raise ConfigError(
                    f"{self.spec.name}: quantized_modules: no MatMul belongs to {module!r}; the graph's are named "
                    f"{', '.join(names[:6])}…"
                )
            chosen |= found
        return set(names) - chosen

    def _refuse_halves(self, proto: Any, left: set[str]) -> None:
        """Raise ConfigError where a weight is stored in a type that the operator does not take."""
        from onnx import TensorProto

        kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
        for node in proto.graph.node:
            kind = kinds.get(node.input[1]) if node.op_type == "MatMul" and node.name not in left else None
            if kind not in (None, TensorProto.FLOAT, TensorProto.FLOAT16):
                raise ConfigError(
                    f"{self.spec.name}: the weights of node {node.name!r} are of type "
                    f"{TensorProto.DataType.Name(kind).lower()}; float and float16 can be quantized"
                )


def _drop_doubles(proto: Any) -> None:
    """Keep one of initializers of one name: the quantizer writes a weight that two products share twice."""
    first = {tensor.name: tensor for tensor in reversed(proto.graph.initializer)}
    kept = [tensor for tensor in proto.graph.initializer if tensor is first[tensor.name]]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
