"""Turns pictures inside a graph: a transposition behind an input, and what makes it needless."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from drupe.plugins.onnx.graphs import inner_graphs, rename_value, replace_name
from drupe.plugins.onnx.opset import opset_of
from drupe.plugins.onnx.splitting import inputs_of

__all__ = ["FIRST_TO_LAST", "LAST_TO_FIRST", "fold_transpose", "put_transpose"]

LAST_TO_FIRST = (0, 3, 1, 2)
"""The permutation from (batch, height, width, channels) to (batch, channels, height, width)."""
FIRST_TO_LAST = (0, 2, 3, 1)
"""The way back."""
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div")
"""What a picture is normalized with; of two operands one may be a weight."""


def put_transpose(proto: Any, name: str) -> Any:
    """Turn an input to channels last, and return the node that turns it back for all that read it."""
    from onnx import helper

    graph = proto.graph
    turned = _free_name(proto, f"{name}_nchw")
    value = next(value for value in graph.input if value.name == name)
    first = type(value)()
    first.CopyFrom(value)
    rename_value(graph, name, turned)
    value.name = name
    dims = value.type.tensor_type.shape.dim
    for axis, source in enumerate(FIRST_TO_LAST):
        dims[axis].CopyFrom(first.type.tensor_type.shape.dim[source])
    first.name = turned
    if all(known.name != turned for known in graph.value_info):
        graph.value_info.append(first)
    node = helper.make_node("Transpose", [name], [turned], _free_node(proto, f"{name}/Transpose"), perm=LAST_TO_FIRST)
    graph.node.insert(0, node)
    return graph.node[0]


def fold_transpose(proto: Any, transpose: Any) -> str | None:
    """Take a transposition to channels first out of a graph, where what follows can do without it.

    On its way to a convolution, or to a transposition back, it may pass casts and sums or products with weights.
    Returns how it went, or None where it stays; then nothing is changed.
    """
    chain: list[Any] = []
    value = transpose.output[0]
    while True:
        readers = [node for node in proto.graph.node if value in inputs_of(node)]
        if len(readers) != 1 or value not in readers[0].input or _is_output(proto, value):
            return None
        node = readers[0]
        if node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Transpose" and _permutation(node) == FIRST_TO_LAST:
            _turn_constants(proto, chain)
            _skip(proto, transpose, chain, node.output[0], node)
            return "undone by the graph's own transposition"
        if node.op_type == "Conv" and value == node.input[0] and _foldable(proto, node):
            _turn_constants(proto, chain)
            _into_kernel(proto, transpose, chain, node)
            return f"folded into {node.name or node.output[0]}"
        if not _passes(proto, node, value):
            return None
        chain.append((node, value))
        value = node.output[0]


def _all_nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for inner in inner_graphs(node):
            yield from _all_nodes(inner)


def _is_output(proto: Any, name: str) -> bool:
    return any(value.name == name for value in proto.graph.output)


def _weights(proto: Any) -> dict[str, Any]:
    """Return the tensors that never change: initializers that no caller may replace."""
    given = {value.name for value in proto.graph.input}
    return {tensor.name: tensor for tensor in proto.graph.initializer if tensor.name not in given}


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def _permutation(node: Any) -> tuple[int, ...]:
    return tuple(_attribute(node, "perm", ()))


def _passes(proto: Any, node: Any, value: str) -> bool:
    """Whether a node does the same to a picture that lies the other way round."""
    if node.op_type == "Cast":
        return True
    if node.op_type not in _ELEMENTWISE:
        return False
    others = [name for name in node.input if name != value]
    weights = _weights(proto)
    return len(others) == 1 and others[0] in weights and len(weights[others[0]].dims) <= 4


def _turn_constants(proto: Any, chain: list[Any]) -> None:
    """Give the nodes on the way weights whose channels are last. Those that others use too are copied."""
    import numpy as np
    from onnx import numpy_helper

    weights = _weights(proto)
    for node, value in chain:
        for index, name in enumerate(node.input):
            if name == value or name not in weights:
                continue
            array = numpy_helper.to_array(weights[name])
            turned = np.transpose(array.reshape((1,) * (4 - array.ndim) + array.shape), FIRST_TO_LAST)
            if array.size == 1:
                continue
            node.input[index] = _with_weight(proto, f"{name}_nhwc", np.ascontiguousarray(turned))
            _drop_unused(proto, name)


def _skip(proto: Any, transpose: Any, chain: list[Any], output: str, back: Any) -> None:
    """Take both transpositions out: what is between works on the picture as it comes."""
    from onnx import helper

    source = transpose.input[0]
    first = chain[0][0] if chain else None
    last = chain[-1][0] if chain else None
    _forget_shapes(proto, [transpose.output[0], *(node.output[0] for node, _ in chain)])
    place = list(proto.graph.node).index(back)
    proto.graph.node.remove(back)
    if first is None or last is None:
        proto.graph.node.insert(place, helper.make_node("Identity", [source], [output], back.name))
    else:
        replace_name(first.input, transpose.output[0], source)
        last.output[0] = output
    proto.graph.node.remove(transpose)


def _foldable(proto: Any, conv: Any) -> bool:
    """Whether a convolution is one of one group, with a fixed kernel, that steps and pads by whole pixels."""
    weights = _weights(proto)
    if conv.input[1] not in weights or len(weights[conv.input[1]].dims) != 4:
        return False
    padding = _attribute(conv, "auto_pad", b"NOTSET").decode()
    dilated = list(_attribute(conv, "dilations", [1, 1]))[1] != 1
    return _attribute(conv, "group", 1) == 1 and padding in ("NOTSET", "VALID") and not dilated


def _into_kernel(proto: Any, transpose: Any, chain: list[Any], conv: Any) -> None:
    """See the picture as (batch, 1, height, width × channels), which it is already where its channels are last.

    Column x × channels + c of that picture is channel c of pixel x; so is column j × channels + c of the new kernel,
    and steps and padding along the width count channels times as much.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    name = conv.input[1]
    kernel = numpy_helper.to_array(_weights(proto)[name])
    many, channels, high, wide = kernel.shape
    flat = np.transpose(kernel, (0, 2, 3, 1)).reshape(many, 1, high, wide * channels)
    steps = list(_attribute(conv, "strides", [1, 1]))
    edges = list(_attribute(conv, "pads", [0, 0, 0, 0]))
    dilations = list(_attribute(conv, "dilations", [1, 1]))
    new = {
        "kernel_shape": [high, wide * channels],
        "strides": [steps[0], steps[1] * channels],
        "pads": [edges[0], edges[1] * channels, edges[2], edges[3] * channels],
        "dilations": dilations,
        "group": 1,
    }
    for attribute in [item for item in conv.attribute if item.name in new or item.name == "auto_pad"]:
        conv.attribute.remove(attribute)
    conv.attribute.extend(helper.make_attribute(key, value) for key, value in new.items())
    conv.input[1] = _with_weight(proto, f"{name}_nhwc", np.ascontiguousarray(flat))
    _drop_unused(proto, name)
    source, turned = transpose.input[0], transpose.output[0]
    _forget_shapes(proto, [turned, *(node.output[0] for node, _ in chain)])
    if chain:
        replace_name(chain[0][0].input, turned, source)
        source = chain[-1][0].output[0]
    rows, seen = _free_name(proto, f"{source}_rows"), _free_name(proto, f"{source}_plane")
    width = next(value for value in proto.graph.input if value.name == transpose.input[0]).type.tensor_type.shape.dim[2]
    # A length of 0 is the input's own.
    sizes = [0, 0, width.dim_value * channels if width.HasField("dim_value") else -1]
    nodes = [
        helper.make_node(
            "Reshape",
            [source, _with_weight(proto, f"{rows}_shape", np.array(sizes, np.int64))],
            [rows],
            _free_node(proto, f"{rows}/Reshape"),
        )
    ]
    if opset_of(proto) >= 13:
        axis = _with_weight(proto, f"{seen}_axis", np.array([1], np.int64))
        nodes.append(helper.make_node("Unsqueeze", [rows, axis], [seen], _free_node(proto, f"{seen}/Unsqueeze")))
    else:
        nodes.append(helper.make_node("Unsqueeze", [rows], [seen], _free_node(proto, f"{seen}/Unsqueeze"), axes=[1]))
    place = list(proto.graph.node).index(conv)
    for offset, node in enumerate(nodes):
        proto.graph.node.insert(place + offset, node)
    conv.input[0] = seen
    proto.graph.node.remove(transpose)


def _forget_shapes(proto: Any, names: list[str]) -> None:
    for value in [value for value in proto.graph.value_info if value.name in names]:
        proto.graph.value_info.remove(value)


def _with_weight(proto: Any, name: str, array: Any) -> str:
    from onnx import numpy_helper

    free = _free_name(proto, name)
    proto.graph.initializer.append(numpy_helper.from_array(array, free))
    return free


def _drop_unused(proto: Any, name: str) -> None:
    if any(name in node.input for node in _all_nodes(proto.graph)) or _is_output(proto, name):
        return
    for tensor in [tensor for tensor in proto.graph.initializer if tensor.name == name]:
        proto.graph.initializer.remove(tensor)


def _free_name(proto: Any, name: str) -> str:
    graph = proto.graph
    taken = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    taken |= {output for node in _all_nodes(graph) for output in node.output}
    taken |= {wanted for node in _all_nodes(graph) for wanted in node.input}
    return _free(name, taken)


def _free_node(proto: Any, name: str) -> str:
    return _free(name, {node.name for node in _all_nodes(proto.graph)})


def _free(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number, free = number + 1, f"{name}_{number}"
    return free
