"""Reading and writing the graph of an `onnx` model, so that equal work gives equal files."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from drupe.core.errors import PassError
from drupe.core.model import Model
from drupe.plugins.onnx.llm_pipeline import pipeline_files

__all__ = [
    "byte_size",
    "companions",
    "context_files",
    "external_files",
    "graph_path",
    "graph_paths",
    "inner_graphs",
    "label_axes",
    "load_graph",
    "name_all_nodes",
    "name_axes",
    "name_nodes",
    "rename_value",
    "rename_values",
    "replace_name",
    "save_graph",
    "scrub_graph",
    "unknown_operators",
]

_LARGEST = 2**31 - 2**20
"""Bytes from which protobuf needs external data."""
_WEIGHTS = (".onnx", ".safetensors", ".bin", ".pt", ".pth", ".data", ".onnx_data", ".pb", ".gguf", ".index.json")


def graph_paths(model: Model) -> list[Path]:
    """Return the graphs of a staged model: one of `onnx`, those that genai_config.json names of `genai`, the
    components of `composite`.

    Raises PassError when it is not clear which they are.
    """
    if model.kind == "composite":
        return [model.folder / str(component["file"]) for component in model.attributes["components"]]
    if model.kind != "genai":
        return [graph_path(model)]
    data = json.loads((model.folder / "genai_config.json").read_text(encoding="utf-8"))
    parts = [part for part in data.get("model", {}).values() if isinstance(part, dict)]
    names = {part["filename"] for part in parts if str(part.get("filename", "")).endswith(".onnx")}
    names.update(*(pipeline_files(part) for part in parts))
    found = [model.folder / name for name in sorted(names)]
    absent = [path.name for path in found if not path.is_file()]
    if absent or not found:
        raise PassError(
            f"genai_config.json names {', '.join(absent) or 'no graph'}, which is not in the model's folder"
        )
    return found


def graph_path(model: Model) -> Path:
    """Return the graph's file of a staged onnx model. Raises PassError when it is not clear which one it is."""
    name = model.attributes.get("onnx_file")
    if name:
        return model.folder / str(name)
    found = sorted(model.folder.glob("*.onnx"))
    if len(found) != 1:
        raise PassError(f"the model holds {len(found)} graphs; expected one .onnx file, or onnx_file_name to name it")
    return found[0]


def external_files(path: Path) -> list[Path]:
    """Return the files beside a graph in which its weights lie."""
    import onnx
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    proto = onnx.load(str(path), load_external_data=False)
    names = {
        entry.value
        for tensor in _get_all_tensors(proto)
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [path.parent / name for name in sorted(names)]


def context_files(graph: Any) -> list[str]:
    """Return the names of the files beside a graph that hold what a provider compiled of it (EPContext nodes)."""
    found = []
    for node in graph.node:
        if node.op_type == "EPContext":
            told = {attribute.name: attribute for attribute in node.attribute}
            if "ep_cache_context" in told and told["embed_mode"].i == 0 and told["ep_cache_context"].s:
                found.append(told["ep_cache_context"].s.decode())
    return list(dict.fromkeys(found))


def unknown_operators(proto: Any) -> list[tuple[str, str]]:
    """Return (operator, node) for nodes that the installed ONNX Runtime has no operator for."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    known = {(schema.domain, schema.name) for schema in get_all_operator_schema()}
    # Such nodes belong to a provider that brings its own.
    known |= {("com.microsoft", "EPContext")}
    own = {(function.domain, function.name) for function in proto.functions}
    found = []
    stack = [proto.graph]
    while stack:
        for node in stack.pop().node:
            domain = "" if node.domain == "ai.onnx" else node.domain
            if (domain, node.op_type) not in known and (node.domain, node.op_type) not in own:
                found.append((f"{domain}:{node.op_type}" if domain else node.op_type, node.name or node.output[0]))
            stack.extend(inner_graphs(node))
    return found


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
            stack.extend(inner_graphs(node))
        for values in ("input", "output", "value_info", "initializer"):
            for value in getattr(graph, values, ()):
                if not isinstance(value, str):
                    value.doc_string = ""
                    if hasattr(value, "metadata_props"):
                        del value.metadata_props[:]


def name_nodes(proto: Any) -> None:
    """Name the nodes of an export after their modules: /model/layers.0/mlp/up_proj/MatMul.

    Builders do so of themselves; passes choose nodes and find cuts by these names. The older exporter puts the name of
    the module that wraps the model before them, which goes.
    """
    taken: dict[str, int] = {}
    for node in proto.graph.node:
        node.name = node.name.replace("/inner/", "/", 1) if node.name.startswith("/inner/") else node.name
        scopes = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), None)
        path = ast.literal_eval(scopes) if scopes else []
        if len(path) < 2:
            continue
        # A list is called by its place in it: layers.0 is one part of the name.
        module = re.sub(r"\.(?!\d+(?:\.|$))", "/", path[-2].removeprefix("inner."))
        name = f"/{module}/{node.op_type}" if module else f"/{node.op_type}"
        count = taken[name] = taken.get(name, -1) + 1
        node.name = f"{name}_{count}" if count else name


def name_all_nodes(proto: Any) -> None:
    """Name the nodes that have no name, for where nodes are told by name."""
    taken = {node.name for node in proto.graph.node}
    for index, node in enumerate(proto.graph.node):
        if not node.name:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)


def rename_value(graph: Any, old: str, new: str) -> None:
    """Give a value of a graph another name wherever it occurs, in graphs inside its nodes too; weights keep theirs."""
    for values in (graph.input, graph.output, graph.value_info):
        for value in values:
            if value.name == old:
                value.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            replace_name(names, old, new)
        for inner in inner_graphs(node):
            rename_value(inner, old, new)


def rename_values(node: Any, names: Mapping[str, str]) -> None:
    """Give what a node reads and makes other names, old → new, in the graphs inside it too."""
    for values in (node.input, node.output):
        for index, value in enumerate(values):
            values[index] = names.get(value, value)
    for graph in inner_graphs(node):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own |= {name for inner in graph.node for name in inner.output}
        outside = {old: new for old, new in names.items() if old not in own}
        for inner in graph.node:
            rename_values(inner, outside)
        for value in graph.output:
            value.name = outside.get(value.name, value.name)


def inner_graphs(node: Any) -> list[Any]:
    """Return the graphs inside a node: branches, and bodies of loops."""
    return [
        graph
        for attribute in node.attribute
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
    ]


def replace_name(names: Any, old: str, new: str) -> None:
    """Give a value another name in the list of what a node reads, or gives."""
    for index, name in enumerate(names):
        if name == old:
            names[index] = new


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


def label_axes(values: Any, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Give the dynamic axes of inputs or outputs the names that were asked for, whatever their names stand for."""
    for value in values:
        for axis, label in axes.get(value.name, {}).items():
            value.type.tensor_type.shape.dim[axis].dim_param = label


def byte_size(proto: Any) -> int:
    """Return how many bytes a graph takes, with those of its weights that do not lie beside it; where that is more than
    protobuf writes, those of the weights alone. Its own count raises an error there, when it has copied 2 GiB."""
    from google.protobuf.message import EncodeError
    from onnx.external_data_helper import _get_all_tensors

    weights = sum(len(tensor.raw_data) for tensor in _get_all_tensors(proto))
    if weights > _LARGEST:
        return weights
    try:
        return int(proto.ByteSize())
    except EncodeError:
        return max(weights, _LARGEST + 1)


def save_graph(
    proto: Any,
    folder: Path,
    name: str = "model.onnx",
    *,
    external: bool | None = None,
    data_name: str | None = None,
    threshold: int = 1024,
    attributes: bool = False,
) -> Path:
    """Write a graph, with its weights in one file beside it where it is too large (or where `external` asks for it).

    data_name: that file's name. threshold: bytes from which a tensor goes there. attributes: tensors of nodes'
    attributes go there too.
    """
    import onnx

    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if external or byte_size(proto) > _LARGEST:
        onnx.save_model(
            proto,
            str(path),
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=data_name or f"{path.name}.data",
            size_threshold=threshold,
            convert_attribute=attributes,
        )
    else:
        onnx.save_model(proto, str(path))
    return path


def companions(source: Path, target: Path, *, without: Set[str] = frozenset()) -> None:
    """Copy what lies beside the weights and is needed to use the model: config, tokenizer, processor.

    without: names of files that only the source's form needs.
    """
    for path in sorted(source.iterdir()):
        wanted = path.is_file() and not path.name.endswith(_WEIGHTS) and path.name not in without
        if wanted and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
