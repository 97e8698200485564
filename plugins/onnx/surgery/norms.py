"""Surgeons that write norms with LpNormalization, which accelerators without fused norms run well."""

from __future__ import annotations

from typing import Any

from drupe.plugins.onnx.surgery.surgeon import Surgeon, Theatre, all_nodes, constant

__all__ = ["PowReduceSumPowDiv2LpNorm", "SimplifiedLayerNormToL2Norm"]

_RMS = ("SimplifiedLayerNormalization", "RMSNormalization", "SkipSimplifiedLayerNormalization")


class SimplifiedLayerNormToL2Norm(Surgeon):
    """RMS norm of x over n numbers, times w → L2 norm of x, times (√n · w). The norm's epsilon is left out.

    A norm that adds a skip connection first becomes that addition and the norm.
    """

    def operate(self, model: Any, config: Any) -> int:
        import numpy as np

        count = 0
        for node in all_nodes(model):
            if node.op_type not in _RMS or int(_value(node, "axis", -1)) != -1:
                continue
            skips = node.op_type.startswith("Skip")
            weight = constant(node.inputs[2 if skips else 1])
            if weight is None:
                continue
            if any(value.name and (tuple(value.uses()) or value.is_graph_output()) for value in node.outputs[1:3]):
                raise self.fail(f"{node.name} gives its mean or deviation as well, which an L2 norm does not have")
            theatre = Theatre(node.graph)
            x = node.inputs[0]
            if skips:
                x = theatre.add(node, "Add", [x, node.inputs[1]], dtype=x.dtype)
                if len(node.inputs) > 3 and node.inputs[3] is not None:
                    x = theatre.add(node, "Add", [x, node.inputs[3]], dtype=x.dtype)
            scaled = (weight.astype(np.float32) * np.sqrt(weight.shape[-1])).astype(weight.dtype)
            factor = theatre.weight(f"{node.inputs[2 if skips else 1].name}_l2", scaled)
            normed = theatre.add(node, "LpNormalization", [x], axis=-1, p=2, dtype=x.dtype)
            out = theatre.add(node, "Mul", [normed, factor], dtype=node.outputs[0].dtype)
            if skips and len(node.outputs) > 3:
                node.outputs[3].replace_all_uses_with(x, replace_graph_outputs=True)
            theatre.put(out, node.outputs[0])
            count += 1
        return count


class PowReduceSumPowDiv2LpNorm(Surgeon):
    """x / (Σ x²)^½ over one axis → LpNormalization(x). A lower limit of the sum or root is left out."""

    def operate(self, model: Any, config: Any) -> int:
        count = 0
        for node in all_nodes(model):
            if node.op_type != "Div" or node.domain or node.inputs[1] is None:
                continue
            axis = _l2_axis(node.inputs[1], node.inputs[0])
            if axis is None:
                continue
            theatre = Theatre(node.graph)
            out = theatre.add(node, "LpNormalization", [node.inputs[0]], axis=axis, p=2, dtype=node.outputs[0].dtype)
            theatre.put(out, node.outputs[0])
            count += 1
        return count


def _l2_axis(value: Any, x: Any) -> int | None:
    """Return the axis over which a value is the L2 norm of x; None where it is something else."""
    node = _behind_limits(value)
    if node is None:
        return None
    if node.op_type == "ReduceL2":
        return _axis(node) if node.inputs[0] is x else None
    if node.op_type != "Sqrt" and not (node.op_type == "Pow" and _is(node.inputs[1], 0.5)):
        return None
    total = _behind_limits(node.inputs[0])
    if total is None or total.op_type not in ("ReduceSum", "ReduceSumSquare"):
        return None
    if total.op_type == "ReduceSumSquare":
        return _axis(total) if total.inputs[0] is x else None
    square = total.inputs[0].producer()
    if square is None:
        return None
    squared = (square.op_type == "Pow" and _is(square.inputs[1], 2.0)) or (
        square.op_type == "Mul" and square.inputs[0] is square.inputs[1]
    )
    base = square.inputs[0]
    inner = base.producer()
    # A norm of real numbers may take their absolute value first.
    if inner is not None and inner.op_type == "Abs":
        base = inner.inputs[0]
    return _axis(total) if squared and base is x else None


def _behind_limits(value: Any) -> Any:
    """Return the node that makes a value, looking through limits that keep it from zero and through expansion."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Clip", "Expand", "Max"):
        node = node.inputs[0].producer()
    return node


def _axis(node: Any) -> int | None:
    if int(_value(node, "keepdims", 1)) != 1:
        return None
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    listed = [int(axis) for axis in axes.reshape(-1)] if axes is not None else list(_value(node, "axes", ()))
    return listed[0] if len(listed) == 1 else None


def _is(value: Any, number: float) -> bool:
    known = constant(value)
    return known is not None and known.size == 1 and float(known.reshape(-1)[0]) == number


def _value(node: Any, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default
