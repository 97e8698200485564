"""A user's graph in the form that libraries know: what other tools write, and the format allows, is written plainly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drupe.plugins.onnx.graphs import inner_graphs, save_graph

__all__ = ["make_plain", "read_plain"]

_FREE_WEIGHTS = 4
"""The first version of the format whose weights need not be inputs."""


def read_plain(path: Path, scratch: Path) -> tuple[Any, Path]:
    """Return a graph with its weights, plainly written, and its file: the given one, or one below `scratch` where
    anything had to be written otherwise."""
    import onnx

    proto = onnx.load(str(path))
    if not make_plain(proto):
        return proto, path
    # Saving moves the weights of large graphs out of the message; the copy that is read back has them.
    return proto, save_graph(_copy(proto), scratch / "plain" / path.parent.name, path.name)


def make_plain(proto: Any) -> bool:
    """Rewrite a graph in place; say whether anything was otherwise.

    1. Sparse weights become dense. 2. Weights that are inputs as well, as the oldest files and older exporters have
    them, are weights alone: ONNX Runtime folds and quantizers round only those. 3. The standard operators' domain has
    its short name. 4. Nodes of one graph have different names, where they have any.
    """
    found = [_dense(graph) for graph in _graphs(proto.graph)]
    found += [_without_inputs(proto), _short_domain(proto)]
    found += [_different_names(graph) for graph in _graphs(proto.graph)]
    return any(found)


def _copy(proto: Any) -> Any:
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    return copied


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from _graphs(inner)


def _dense(graph: Any) -> bool:
    """Write sparse weights, as initializers or in Constant nodes, as plain ones (onnx.proto: SparseTensorProto)."""
    from onnx import numpy_helper

    sparse = list(graph.sparse_initializer)
    for tensor in sparse:
        graph.initializer.append(numpy_helper.from_array(_filled(tensor), tensor.values.name))
    del graph.sparse_initializer[:]
    constants = [node for node in graph.node if node.op_type == "Constant" and node.domain in ("", "ai.onnx")]
    told = [(node, entry) for node in constants for entry in node.attribute if entry.name == "sparse_value"]
    for node, entry in told:
        value = numpy_helper.from_array(_filled(entry.sparse_tensor), node.output[0])
        del node.attribute[:]
        attribute = node.attribute.add(name="value", type=entry.TENSOR)
        attribute.t.CopyFrom(value)
    return bool(sparse or told)


def _filled(tensor: Any) -> Any:
    """Return the array of a sparse tensor: indices are of the flat array (n), or of each axis (n, rank)."""
    import numpy as np
    from onnx import numpy_helper

    values, places = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
    array = np.zeros(tuple(tensor.dims), values.dtype)
    if places.ndim == 2:
        array[tuple(places.T)] = values
    else:
        array.reshape(-1)[places] = values
    return array


def _without_inputs(proto: Any) -> bool:
    weights = {tensor.name for tensor in proto.graph.initializer}
    kept = [value for value in proto.graph.input if value.name not in weights]
    if len(kept) == len(proto.graph.input):
        return False
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    proto.ir_version = max(proto.ir_version, _FREE_WEIGHTS)
    return True


def _short_domain(proto: Any) -> bool:
    nodes = [node for graph in _graphs(proto.graph) for node in graph.node]
    nodes += [node for function in proto.functions for node in function.node]
    imports = [*proto.opset_import, *(entry for function in proto.functions for entry in function.opset_import)]
    long = [entry for entry in (*imports, *nodes) if entry.domain == "ai.onnx"]
    for entry in long:
        entry.domain = ""
    return bool(long)


def _different_names(graph: Any) -> bool:
    taken: set[str] = set()
    every = {node.name for node in graph.node}
    changed = False
    for node in graph.node:
        if node.name and node.name in taken:
            number = 1
            while f"{node.name}_{number}" in every:
                number += 1
            node.name, changed = f"{node.name}_{number}", True
            every.add(node.name)
        taken.add(node.name)
    return changed
