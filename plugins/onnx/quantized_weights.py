"""Writes the weights of a graph with QuantizeLinear and DequantizeLinear as the whole numbers that they stand for.

Exporters of fake-quantized modules leave a float weight in front of each pair. Here the weight itself becomes int8, a
transposition behind it is done once, and biases become int32 in the scale of their layer's products, which is what
runtimes fuse into integer operators (ONNX QuantizeLinear-13, DequantizeLinear-13). No value changes by more than a
rounding of a bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["store_quantized_weights"]

_BIASED = ("Conv", "ConvTranspose", "Gemm")
_LARGEST_BIAS = 2**31 - 1
_MAKERS = ("Constant", "Identity", "Cast", "DequantizeLinear")


def store_quantized_weights(proto: Any) -> dict[str, int]:
    """Change the graph in place; return how many weights and biases became whole numbers."""
    graph = _Graph(proto)
    weights = sum(_store_weight(graph, node) for node in graph.nodes("QuantizeLinear"))
    for node in graph.nodes("Transpose"):
        _transpose_once(graph, node)
    biases = sum(_store_bias(graph, node) for kind in _BIASED for node in graph.nodes(kind))
    for node in graph.nodes("Flatten"):
        _reshape_in_place_of(graph, node)
    graph.drop_unused()
    return {"weights": weights, "biases": biases}


def _store_weight(graph: _Graph, node: Any) -> bool:
    """Replace a QuantizeLinear of a constant by its result."""
    import numpy as np

    weight, scale, zero = (graph.constant(name) for name in (*node.input, "")[:3])
    if weight is None or scale is None:
        return False
    zero = np.zeros(scale.shape, np.uint8) if zero is None else zero
    axis = _axis(node, weight.ndim)
    limits = np.iinfo(zero.dtype)
    # The largest tensors, so in place: the same steps as the operator's, half to even and saturating.
    numbers = weight.astype(np.float32) / _along(scale.astype(np.float32), axis, weight.ndim)
    np.rint(numbers, out=numbers)
    numbers += _along(zero.astype(np.float32), axis, weight.ndim)
    np.clip(numbers, limits.min, limits.max, out=numbers)
    graph.replace(node, numbers.astype(zero.dtype))
    return True


def _transpose_once(graph: _Graph, node: Any) -> None:
    """Put the transposition of a stored weight before its DequantizeLinear, where it is a constant's."""
    import numpy as np

    source = graph.producers.get(node.input[0])
    if source is None or source.op_type != "DequantizeLinear":
        return
    numbers, scale = graph.constant(source.input[0]), graph.constant(source.input[1])
    if numbers is None or scale is None:
        return
    order = next((list(item.ints) for item in node.attribute if item.name == "perm"), None)
    order = order or list(range(numbers.ndim))[::-1]
    axis = _axis(source, numbers.ndim)
    inputs = [graph.add(np.ascontiguousarray(numbers.transpose(order)), node.output[0]), *source.input[1:]]
    del node.attribute[:]
    if scale.ndim:
        attribute = node.attribute.add()
        attribute.name, attribute.type, attribute.i = "axis", 2, order.index(axis)
    node.op_type = "DequantizeLinear"
    node.input[:] = inputs


def _store_bias(graph: _Graph, node: Any) -> bool:
    """Give a layer of quantized inputs its bias as int32, the product of both scales as its scale."""
    import numpy as np
    from onnx import helper

    if len(node.input) < 3 or not node.input[2]:
        return False
    sources = [graph.producers[name] for name in node.input[:2] if name in graph.producers]
    if [source.op_type for source in sources] != ["DequantizeLinear"] * 2:
        return False
    plain = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type == "Gemm" and (plain.get("alpha", 1.0) != 1.0 or plain.get("beta", 1.0) != 1.0):
        return False
    bias = graph.constant(node.input[2])
    scales = [graph.constant(source.input[1]) for source in sources]
    if bias is None or bias.ndim != 1 or any(scale is None for scale in scales):
        return False
    if node.op_type == "ConvTranspose" and scales[1].ndim and scales[1].shape != bias.shape:
        return False
    scale = (scales[0].astype(np.float32) * scales[1].astype(np.float32)).reshape(-1)
    numbers = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    if np.abs(numbers).max(initial=0.0) > _LARGEST_BIAS:
        return False
    scale = scale if len(scale) > 1 else scale.reshape(())
    stored = graph.add(numbers.astype(np.int32), f"{node.input[2]}_int32")
    scaled = graph.add(scale, f"{node.input[2]}_scale")
    zero = graph.add(np.zeros(scale.shape, np.int32), f"{node.input[2]}_zero_point")
    node.input[2] = graph.before(
        node,
        helper.make_node(
            "DequantizeLinear",
            [stored, scaled, zero],
            [graph.fresh(f"{node.input[2]}_float")],
            name=f"{node.name}/Bias",
            **({"axis": 0} if scale.ndim else {}),
        ),
    )
    return True


def _reshape_in_place_of(graph: _Graph, node: Any) -> None:
    """Write a Flatten in front of a QuantizeLinear as Reshape: ONNX Runtime moves quantization before that only."""
    import numpy as np

    axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
    takers = [other.op_type for other in graph.graph.node if node.output[0] in other.input]
    if axis != 1 or not takers or set(takers) != {"QuantizeLinear"}:
        return
    del node.attribute[:]
    node.op_type = "Reshape"
    node.input.append(graph.add(np.array([0, -1], np.int64), f"{node.output[0]}_shape"))


def _axis(node: Any, ndim: int) -> int:
    return int(next((item.i for item in node.attribute if item.name == "axis"), 1)) % max(ndim, 1)


def _along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """Return a scale per channel in the shape that broadcasts along `axis`."""
    if values.ndim == 0 or values.size == 1:
        return values.reshape(())
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


class _Graph:
    """A graph whose constants can be read, wherever they are written, and replaced."""

    def __init__(self, proto: Any) -> None:
        self.graph = proto.graph
        self.tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.producers = {name: node for node in proto.graph.node for name in node.output}
        self._taken = {*self.tensors, *self.producers, *(value.name for value in proto.graph.input)}

    def nodes(self, kind: str) -> list[Any]:
        return [node for node in self.graph.node if node.op_type == kind and node.domain in ("", "ai.onnx")]

    def constant(self, name: str) -> Any:
        """Return a constant's array; None for what isn't one. Casts and copies of constants are looked through."""
        from onnx import helper, numpy_helper

        if name in self.tensors:
            return numpy_helper.to_array(self.tensors[name])
        node = self.producers.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            value = next((item for item in node.attribute if item.name == "value"), None)
            return None if value is None else numpy_helper.to_array(value.t)
        if node.op_type == "Identity":
            return self.constant(node.input[0])
        if node.op_type == "Cast":
            found = self.constant(node.input[0])
            kind = next(item.i for item in node.attribute if item.name == "to")
            return None if found is None else found.astype(helper.tensor_dtype_to_np_dtype(kind))
        return None

    def fresh(self, name: str) -> str:
        """Return a name that nothing has yet."""
        number, found = 1, name
        while found in self._taken:
            found, number = f"{name}_{number}", number + 1
        self._taken.add(found)
        return found

    def add(self, array: Any, name: str) -> str:
        """Add a constant and return its name."""
        from onnx import numpy_helper

        name = self.fresh(name)
        tensor = self.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(array, name))
        self.tensors[name] = tensor
        return name

    def replace(self, node: Any, array: Any) -> None:
        """Put a constant in a node's place."""
        from onnx import numpy_helper

        name = node.output[0]
        tensor = self.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(array, name))
        self.tensors[name] = tensor
        del self.producers[name]
        self.graph.node.remove(node)

    def before(self, node: Any, new: Any) -> str:
        """Put a node before another and return the name of what it gives."""
        index = next(i for i, item in enumerate(self.graph.node) if item.output[:] == node.output[:])
        self.graph.node.insert(index, new)
        self.producers[new.output[0]] = self.graph.node[index]
        return str(new.output[0])

    def drop_unused(self) -> None:
        """Remove constants that nothing takes any more, and the nodes that made them."""
        while True:
            kept = {value.name for value in self.graph.output} | _taken(self.graph)
            dead = [n for n in self.graph.node if n.op_type in _MAKERS and not kept.intersection(n.output)]
            for node in dead:
                self.graph.node.remove(node)
            if not dead:
                break
        for tensor in [tensor for tensor in self.graph.initializer if tensor.name not in kept]:
            self.graph.initializer.remove(tensor)


def _taken(graph: Any) -> set[str]:
    """Return the names that a graph's nodes take, those of inner graphs included."""
    found: set[str] = set()
    for node in graph.node:
        found.update(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= _taken(attribute.g) | {value.name for value in attribute.g.output}
    return found
