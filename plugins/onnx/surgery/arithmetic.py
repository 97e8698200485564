"""Surgeons for products, quotients and constants: other operators that calculate the same."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from drupe.core.config import PluginConfig
from drupe.plugins.onnx.surgery.surgeon import Surgeon, Theatre, all_nodes, constant, single_use

__all__ = ["GemmToMatMulAdd", "MatMulAddToGemm", "ReciprocalMulToDiv", "ReplaceAttentionMaskValue", "flat_gemm"]


class GemmToMatMulAdd(Surgeon):
    """Gemm(a, b, c) → MatMul(a, b) + c. Weights are transposed and scaled once, at this place."""

    def operate(self, model: Any, config: Any) -> int:
        count = 0
        for node in all_nodes(model):
            if node.op_type != "Gemm" or node.domain:
                continue
            theatre = Theatre(node.graph)
            a, b, c = _attributes(node, alpha=1.0, beta=1.0)
            left, right = node.inputs[0], node.inputs[1]
            if a["transA"]:
                left = theatre.add(node, "Transpose", [left], perm=[1, 0], dtype=left.dtype)
            right = _factor(theatre, node, right, bool(a["transB"]), b)
            out = theatre.add(node, "MatMul", [left, right], dtype=node.outputs[0].dtype)
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                bias = _factor(theatre, node, node.inputs[2], False, c)
                out = theatre.add(node, "Add", [out, bias], dtype=node.outputs[0].dtype)
            theatre.put(out, node.outputs[0])
            count += 1
        return count


def _attributes(node: Any, *, alpha: float, beta: float) -> tuple[dict[str, int], float, float]:
    found = {name: int(node.attributes[name].value) if name in node.attributes else 0 for name in ("transA", "transB")}
    scale = {
        name: float(node.attributes[name].value) if name in node.attributes else default
        for name, default in (("alpha", alpha), ("beta", beta))
    }
    return found, scale["alpha"], scale["beta"]


def _factor(theatre: Theatre, node: Any, value: Any, transposed: bool, scale: float) -> Any:
    """Return a value transposed and scaled: a new weight where it is one, nodes where it is not."""
    import numpy as np

    if not transposed and scale == 1.0:
        return value
    array = constant(value)
    if array is not None:
        changed = np.ascontiguousarray(array.T if transposed else array)
        if scale != 1.0:
            changed = (changed.astype(np.float32) * scale).astype(array.dtype)
        return theatre.weight(f"{value.name}_as_factor", changed)
    if transposed:
        value = theatre.add(node, "Transpose", [value], perm=[1, 0], dtype=value.dtype)
    if scale != 1.0:
        factor = theatre.weight(f"{value.name}_scale", np.asarray(scale, dtype=value.dtype.numpy()))
        value = theatre.add(node, "Mul", [value, factor], dtype=value.dtype)
    return value


class MatMulAddToGemm(Surgeon):
    """MatMul(x, w) + b → Gemm(x, w, b) where w and b are weights; x of more than two axes is made flat around it.

    Where the graph does not tell the axes of an x, shapes are inferred first.
    """

    def operate(self, model: Any, config: Any) -> int:
        count = 0
        if any(node.op_type == "MatMul" and node.inputs[0].shape is None for node in all_nodes(model)):
            from onnx_ir.passes.common import ShapeInferencePass

            ShapeInferencePass()(model)
        for node in all_nodes(model):
            if node.op_type != "MatMul" or node.domain or not single_use(node.outputs[0]):
                continue
            add = next(iter(node.outputs[0].uses())).node
            weight = constant(node.inputs[1])
            if add.op_type != "Add" or add.domain or add.graph is not node.graph or weight is None or weight.ndim != 2:
                continue
            bias = next((value for value in add.inputs if value is not node.outputs[0]), None)
            known = constant(bias)
            if bias is None or known is None or known.size != weight.shape[1] or known.shape[-1] != weight.shape[1]:
                continue
            theatre = Theatre(node.graph)
            flat = bias if known.ndim == 1 else theatre.weight(f"{bias.name}_flat", known.reshape(-1))
            out = flat_gemm(theatre, add, node.inputs[0], node.inputs[1], flat)
            if out is None:
                continue
            theatre.put(out, add.outputs[0])
            count += 1
        return count


def flat_gemm(theatre: Theatre, before: Any, x: Any, weight: Any, bias: Any, *, transposed: bool = False) -> Any:
    """Return the output of a Gemm on the last axis of x, or None where x's number of axes is not known."""
    import numpy as np

    if x.shape is None:
        return None
    inputs = [x, weight] if bias is None else [x, weight, bias]
    if len(x.shape) == 2:
        return theatre.add(before, "Gemm", inputs, transB=int(transposed) or None, dtype=x.dtype)
    inner, outer = (weight.shape[1], weight.shape[0]) if transposed else (weight.shape[0], weight.shape[1])
    to_flat = theatre.weight("to_flat", np.asarray([-1, inner], dtype=np.int64))
    inputs[0] = theatre.add(before, "Reshape", [x, to_flat], dtype=x.dtype)
    out = theatre.add(before, "Gemm", inputs, transB=int(transposed) or None, dtype=x.dtype)
    sizes = [size if isinstance(size, int) else -1 for size in x.shape[:-1]]
    if sizes.count(-1) <= 1:
        shape = theatre.weight("from_flat", np.asarray([*sizes, outer], dtype=np.int64))
    else:
        import onnx_ir as ir

        leading = theatre.add(before, "Shape", [x], start=0, end=len(x.shape) - 1, dtype=ir.DataType.INT64)
        last = theatre.weight("last_axis", np.asarray([outer], dtype=np.int64))
        shape = theatre.add(before, "Concat", [leading, last], axis=0, dtype=ir.DataType.INT64)
    return theatre.add(before, "Reshape", [out, shape], dtype=x.dtype)


class ReciprocalMulToDiv(Surgeon):
    """a * (1 / b) → a / b."""

    def operate(self, model: Any, config: Any) -> int:
        count = 0
        for node in all_nodes(model):
            if node.op_type != "Mul" or node.domain:
                continue
            for index in (1, 0):
                reciprocal = node.inputs[index].producer() if node.inputs[index] is not None else None
                if reciprocal is not None and reciprocal.op_type == "Reciprocal" and not reciprocal.domain:
                    theatre = Theatre(node.graph)
                    ends = [node.inputs[1 - index], reciprocal.inputs[0]]
                    theatre.put(theatre.add(node, "Div", ends, dtype=node.outputs[0].dtype), node.outputs[0])
                    count += 1
                    break
        return count


class ReplaceAttentionMaskValueConfig(PluginConfig):
    """From where, to what."""

    threshold: float = Field(-3e30, lt=0, description="Constants below this are replaced.")
    replacement: float = Field(-1e4, lt=0, description="What they become; small enough for the types that follow.")


class ReplaceAttentionMaskValue(Surgeon):
    """Constants near minus infinity become a number that low precision and quantization can bear."""

    Config: ClassVar[type[PluginConfig]] = ReplaceAttentionMaskValueConfig

    def operate(self, model: Any, config: ReplaceAttentionMaskValueConfig) -> int:
        import onnx_ir as ir

        count = 0
        for graph in (model.graph, *(inner for node in all_nodes(model) for inner in _inner_graphs(node))):
            for value in graph.initializers.values():
                changed = _above(value.const_value, config)
                if changed is not None:
                    value.const_value = ir.tensor(changed, name=value.name)
                    count += 1
        for node in all_nodes(model):
            if node.op_type not in ("Constant", "ConstantOfShape") or node.domain:
                continue
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR:
                    changed = _above(attribute.value, config)
                    if changed is not None:
                        node.attributes[name] = ir.AttrTensor(name, ir.tensor(changed))
                        count += 1
                elif attribute.type == ir.AttributeType.FLOAT and attribute.value < config.threshold:
                    node.attributes[name] = ir.AttrFloat32(name, config.replacement)
                    count += 1
        return count


def _inner_graphs(node: Any) -> list[Any]:
    import onnx_ir as ir

    return [attribute.value for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH]


def _above(tensor: Any, config: ReplaceAttentionMaskValueConfig) -> Any:
    """Return the tensor's values with those below the threshold replaced; None where there are none."""
    import numpy as np

    if tensor is None or not tensor.dtype.is_floating_point():
        return None
    values = tensor.numpy()
    below = values.astype(np.float32) < config.threshold
    if not below.any():
        return None
    return np.where(below, np.asarray(config.replacement, dtype=values.dtype), values)
