"""Reading and writing the graph of an `onnx` model, so that equal work gives equal files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe.core.errors import PassError
from drupe.core.model import Model

__all__ = ["companions", "graph_path", "load_graph", "name_axes", "save_graph", "scrub_graph"]

_LARGEST = 2**31 - 2**20
"""Bytes from which protobuf needs external data."""
_WEIGHTS = (".onnx", ".safetensors", ".bin", ".pt", ".pth", ".data", ".onnx_data", ".pb", ".gguf", ".index.json")


def graph_path(model: Model) -> Path:
    """Return the graph's file of a staged onnx model. Raises PassError when it is not clear which one it is."""
    name = model.attributes.get("onnx_file")
    if name:
        return model.folder / str(name)
    found = sorted(model.folder.glob("*.onnx"))
    if len(found) != 1:
        raise PassError(f"the model holds {len(found)} graphs; expected one .onnx file, or onnx_file_name to name it")
    return found[0]


def load_graph(model: Model) -> Any:
    """Return the onnx.ModelProto of a staged model, its weights in memory."""
    import onnx

    return onnx.load(str(graph_path(model)))


def scrub_graph(proto: Any) -> None:
    """Remove what exporters note beside the graph: source paths, stack traces, names of this machine."""
    stack = [proto.graph, *proto.functions]
    proto.doc_string = ""
    while stack:
        graph = stack.pop()
        graph.doc_string = ""
        del graph.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
            stack.extend(attribute.g for attribute in node.attribute if attribute.HasField("g"))
            for attribute in node.attribute:
                stack.extend(attribute.graphs)
        for values in ("input", "output", "value_info", "initializer"):
            for value in getattr(graph, values, ()):
                if not isinstance(value, str):
                    value.doc_string = ""
                    if hasattr(value, "metadata_props"):
                        del value.metadata_props[:]


def name_axes(proto: Any, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Give the dynamic axes of the inputs, and of everything that follows them, the names that were asked for."""
    renamed: dict[str, str] = {}
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, label in axes.get(value.name, {}).items():
            if dims[axis].dim_param:
                renamed[dims[axis].dim_param] = label
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in renamed:
                dim.dim_param = renamed[dim.dim_param]


def save_graph(proto: Any, folder: Path, name: str = "model.onnx", *, external: bool | None = None) -> Path:
    """Write a graph, with its weights in one file beside it where it is too large (or where `external` asks for it)."""
    import onnx

    path = folder / name
    large = proto.ByteSize() > _LARGEST
    if external or large:
        data = f"{name}.data"
        onnx.save_model(
            proto,
            str(path),
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=data,
            size_threshold=1024,
        )
    else:
        onnx.save_model(proto, str(path))
    return path


def companions(source: Path, target: Path) -> None:
    """Copy what lies beside the weights and is needed to use the model: config, tokenizer, processor."""
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.endswith(_WEIGHTS) and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
