"""OnnxFloatToFloat16 and OrtMixedPrecision: float32 graphs in half precision, as a whole or but for sensitive parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import PassError
from drupe.core.model import Model
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig, check_node_names
from drupe.plugins.onnx.idle import absent_operators, tell_idle
from drupe.plugins.onnx.index_arithmetic import index_arithmetic

__all__ = ["OnnxFloatToFloat16", "OnnxFloatToFloat16Config", "OrtMixedPrecision", "OrtMixedPrecisionConfig", "halve"]


class OnnxFloatToFloat16Config(GraphPassConfig):
    """What becomes half precision."""

    keep_io_types: bool | list[str] = Field(
        False, description="Inputs and outputs stay float32: all (true), or those that are named."
    )
    op_block_list: list[str] | None = Field(
        None, description="Operators that stay float32; default: those without half precision kernels."
    )
    op_include_list: list[str] | None = Field(
        None, description="Only these operators become half precision, less those of op_block_list."
    )
    node_block_list: list[str] | None = Field(None, description="Names of nodes that stay float32.")
    min_positive_val: float = Field(5.96e-08, gt=0, description="Smaller weights are rounded up to this.")
    max_finite_val: float = Field(65504.0, gt=0, le=65504.0, description="Larger weights are cut to this.")
    use_symbolic_shape_infer: bool = Field(
        True, description="Infer types through fused operators as well, where onnxruntime's inference can."
    )
    disable_shape_infer: bool = Field(False, description="Use the types that the graph states already.")


class OnnxFloatToFloat16(GraphPass):
    """Converts a float32 graph to float16 (onnxruntime.transformers.float16)."""

    Config: ClassVar[type[PassConfig]] = OnnxFloatToFloat16Config
    version = 2

    def outcome(self, attributes: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
        """The graph is float16."""
        return {"precision": "fp16"}

    def rewrite(
        self, proto: Any, path: Path, model: Model, config: OnnxFloatToFloat16Config, context: PassContext
    ) -> Any:
        """Convert."""
        check_node_names(self.spec.name, proto, "node_block_list", config.node_block_list)
        blocked = config.op_block_list
        tell_idle(self.spec.name, path.name, absent_operators(proto, op_block_list=blocked), context)
        if config.op_include_list is not None:
            present = {node.op_type for node in proto.graph.node}
            absent = [name for name in config.op_include_list if name not in present]
            if absent:
                raise PassError(
                    f"{self.spec.name}: op_include_list names {', '.join(absent)}; the graph has {_listed(present)}"
                )
            blocked = sorted({*(blocked or ()), *(present - set(config.op_include_list))})
        return halve(
            self.spec.name,
            proto,
            context,
            symbolic=config.use_symbolic_shape_infer and not config.disable_shape_infer,
            keep_io_types=config.keep_io_types,
            op_block_list=blocked,
            node_block_list=config.node_block_list,
            min_positive_val=config.min_positive_val,
            max_finite_val=config.max_finite_val,
            disable_shape_infer=config.disable_shape_infer,
        )


class OrtMixedPrecisionConfig(GraphPassConfig):
    """Which operators stay float32."""

    op_block_list: list[str] = Field(
        default=["SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "Relu", "Add"],
        description="Operators that stay float32: sums and norms lose most in half precision.",
    )
    atol: float = Field(
        1e-6,
        ge=0,
        description="The last MatMul becomes half precision only if its weights change by no more than this.",
    )


class OrtMixedPrecision(GraphPass):
    """Converts to float16 but for sensitive operators, and for the head where its weights would lose by it."""

    Config: ClassVar[type[PassConfig]] = OrtMixedPrecisionConfig
    version = 3

    def outcome(self, attributes: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
        """The graph is float16 in most places."""
        return {"precision": "fp16"}

    def rewrite(
        self, proto: Any, path: Path, model: Model, config: OrtMixedPrecisionConfig, context: PassContext
    ) -> Any:
        """Find the head, and convert the rest."""
        if "op_block_list" in config.model_fields_set:
            tell_idle(self.spec.name, path.name, absent_operators(proto, op_block_list=config.op_block_list), context)
        head = _head(proto)
        kept: list[str] = []
        outputs: list[str] = []
        if head is not None:
            node, weight = head
            change = _change(weight)
            context.report["head"] = {"node": node.name, "change_in_half_precision": change}
            if change > config.atol:
                kept, outputs = [node.name], [proto.graph.output[0].name]
        return halve(
            self.spec.name,
            proto,
            context,
            symbolic=True,
            keep_io_types=outputs,
            op_block_list=sorted({*config.op_block_list, *_without_half()}),
            node_block_list=kept,
        )


def _without_half() -> Sequence[str]:
    """Return the operators that onnxruntime's converter keeps in float32 by itself: they have no other form."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    return list(DEFAULT_OP_BLOCK_LIST)


def halve(name: str, proto: Any, context: PassContext, *, symbolic: bool, **options: Any) -> Any:
    """Return the graph in half precision. Raises PassError when nothing in it is float32."""
    import onnx
    from onnx import TensorProto
    from onnxruntime.transformers.onnx_model import OnnxModel

    for value in (*proto.graph.input, *proto.graph.output):
        # Maps are made by operators that stay as they are.
        inner = getattr(value.type, value.type.WhichOneof("value") or "tensor_type")
        if (
            "elem_type" in inner.DESCRIPTOR.fields_by_name
            and isinstance(inner.elem_type, onnx.TypeProto)
            and (inner.elem_type.tensor_type.elem_type == TensorProto.FLOAT)
        ):
            raise PassError(
                f"{name}: {value.name} is a sequence of tensors, or an optional one, which onnxruntime's converter "
                "leaves in float32 while it converts what is behind it; make tensors of it in the graph"
            )
    floats = [t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT]
    if not floats and not any(i.type.tensor_type.elem_type == TensorProto.FLOAT for i in proto.graph.input):
        raise PassError(f"{name}: the graph has neither weights nor inputs of float32")
    if symbolic and not _inferable(proto, context.output_dir.parent):
        context.log.warning("%s: onnxruntime's symbolic shape inference fails on this graph; onnx's is used", name)
        symbolic = False
    options["node_block_list"] = [*(options.get("node_block_list") or ()), *index_arithmetic(proto)]
    model = OnnxModel(proto)
    model.convert_float_to_float16(use_symbolic_shape_infer=symbolic, **options)
    result = model.model
    left = sum(t.data_type == TensorProto.FLOAT for t in result.graph.initializer)
    context.report["float32_weights"] = {"before": len(floats), "after": left}
    return result


def _inferable(proto: Any, scratch: Path) -> bool:
    import contextlib

    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    # Where it fails it leaves the graph in the working directory.
    with contextlib.chdir(scratch):
        try:
            return SymbolicShapeInference.infer_shapes(proto, auto_merge=True, guess_output_rank=False) is not None
        except Exception:
            return False


def _head(proto: Any) -> tuple[Any, Any] | None:
    """Return the MatMul or Gemm that makes the first output, and its weights; None where another operator does."""
    made_by = {output: node for node in proto.graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    node = made_by.get(proto.graph.output[0].name)
    while node is not None and node.op_type in ("Cast", "Add", "Identity", "Reshape"):
        node = next((made_by[name] for name in node.input if name in made_by), None)
    if node is None or node.op_type not in ("MatMul", "Gemm"):
        return None
    weight = next((weights[name] for name in node.input if name in weights), None)
    return (node, weight) if weight is not None else None


def _change(tensor: Any) -> float:
    import numpy as np
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor).astype(np.float32)
    return float(np.abs(values - values.astype(np.float16).astype(np.float32)).max(initial=0.0))


def _listed(names: Sequence[str] | set[str]) -> str:
    return ", ".join(sorted(names)[:12])
