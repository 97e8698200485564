"""The model kinds `onnx` (graphs for ONNX Runtime) and `genai` (folders for ONNX Runtime GenAI), read from files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.sources import ModelConfig, ModelKind
from drupe.plugins.huggingface.files import copy_file, copy_tree

__all__ = ["GenaiConfig", "GenaiKind", "OnnxConfig", "OnnxKind"]


_LARGEST = 2**31 - 1
"""Bytes that a message of protobuf may have."""


class OnnxConfig(ModelConfig):
    """An `input_model` of type ONNXModel."""

    model_path: str | dict[str, Any] = Field(description="An .onnx file, or a folder with one.")
    onnx_file_name: str | None = Field(None, description="Which .onnx file of the folder is the model.")
    inference_settings: dict[str, Any] | None = Field(None, description="Session options and provider options.")
    use_ort_extensions: bool = Field(False, description="The model needs the operators of onnxruntime-extensions.")
    external_initializers_file_name: str | None = Field(None, description="A file of weights given to the session.")
    constant_inputs_file_name: str | None = Field(None, description="A file of inputs that never change.")
    model_attributes: dict[str, Any] = Field(default_factory=dict, description="Facts for passes to use.")


class OnnxKind(ModelKind):
    """Reads ONNXModel. attributes["onnx_file"] names the graph's file; external data lies where the graph says."""

    Config: ClassVar[type[ModelConfig]] = OnnxConfig
    version = 1

    def references(self, config: OnnxConfig) -> Mapping[str, str | Mapping[str, Any]]:
        """See ModelKind.references. The whole folder is fetched for a file: external data lies beside it."""
        return {"model": config.model_path}

    def info(self, config: OnnxConfig, workflow_dir: Path) -> ModelInfo:
        """See ModelKind.info. Raises ConfigError for a graph of this machine that no library can read."""
        if isinstance(config.model_path, str):
            _check_size(workflow_dir / Path(config.model_path).expanduser())
        return ModelInfo("onnx", self._attributes(config))

    def load(self, config: OnnxConfig, fetched: Mapping[str, Path], context: JobContext) -> Model:
        """See ModelKind.load."""
        source, out = fetched["model"], context.output_dir
        if source.is_dir():
            name = _graph_name(source, config.onnx_file_name)
            copy_tree(source, out, context)
        elif source.is_file():
            name = source.name
            _check_size(source)
            copy_file(source, out / name)
            for location in _external_files(source):
                inside = (source.parent / location).resolve()
                if not inside.is_relative_to(source.parent.resolve()):
                    raise ConfigError(f"{source} keeps weights outside its folder: {location}")
                if not inside.is_file():
                    raise ConfigError(f"{source} keeps weights in {location}, which is not there")
                copy_file(inside, out / location)
            for extra in (config.external_initializers_file_name, config.constant_inputs_file_name):
                if extra:
                    copy_file(source.parent / extra, out / extra)
        else:
            raise ConfigError(f"{source} does not exist; expected an .onnx file or a folder with one")
        return Model.from_dir("onnx", out, {**self._attributes(config), "onnx_file": name})

    def _attributes(self, config: OnnxConfig) -> dict[str, Any]:
        known: dict[str, Any] = {
            "inference_settings": config.inference_settings,
            "use_ort_extensions": config.use_ort_extensions or None,
            "external_initializers": config.external_initializers_file_name,
            "constant_inputs": config.constant_inputs_file_name,
            "model_attributes": config.model_attributes or None,
        }
        return {key: value for key, value in known.items() if value is not None}


class GenaiConfig(ModelConfig):
    """An `input_model` of type GenAIModel."""

    model_path: str | dict[str, Any] = Field(description="A folder with genai_config.json.")


class GenaiKind(ModelKind):
    """Reads a folder that ONNX Runtime GenAI loads as it is."""

    Config: ClassVar[type[ModelConfig]] = GenaiConfig
    version = 1

    def references(self, config: GenaiConfig) -> Mapping[str, str | Mapping[str, Any]]:
        """See ModelKind.references."""
        return {"model": config.model_path}

    def load(self, config: GenaiConfig, fetched: Mapping[str, Path], context: JobContext) -> Model:
        """See ModelKind.load."""
        source = fetched["model"]
        settings = source / "genai_config.json"
        if not settings.is_file():
            raise ConfigError(f"{source} has no genai_config.json")
        data = json.loads(settings.read_text(encoding="utf-8"))
        copy_tree(source, context.output_dir, context)
        architecture = data.get("model", {}).get("type")
        attributes = {"task": "text-generation", **({"model_type": architecture} if architecture else {})}
        return Model.from_dir("genai", context.output_dir, attributes)


def _check_size(path: Path) -> None:
    """Raise ConfigError for a graph that holds more than its format can: its weights must lie in a file beside it."""
    if path.is_file() and (size := path.stat().st_size) > _LARGEST:
        raise ConfigError(
            f"{path} has {size / 1e9:.1f} GB, and an .onnx file can't have more than {_LARGEST / 1e9:.1f}. "
            "Save the model with its weights as external data (onnx.save_model, save_as_external_data=True) and name "
            "that graph"
        )


def _graph_name(folder: Path, wanted: str | None) -> str:
    if wanted is not None:
        if not (folder / wanted).is_file():
            there = ", ".join(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.onnx"))) or "none"
            raise ConfigError(f"{folder} has no {wanted}; .onnx files there: {there}")
        return wanted
    graphs = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.onnx"))
    if len(graphs) == 1 or "model.onnx" in graphs:
        return "model.onnx" if "model.onnx" in graphs else graphs[0]
    if not graphs:
        raise ConfigError(f"{folder} holds no .onnx file")
    raise ConfigError(f"{folder} holds several .onnx files ({', '.join(graphs)}); name one as onnx_file_name")


def _external_files(graph: Path) -> list[str]:
    """Return the relative paths of the files in which a graph keeps its weights."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    proto = onnx.load(graph, load_external_data=False)
    tensors = [*_of_graph(proto.graph), *_of_nodes(node for function in proto.functions for node in function.node)]
    external = [tensor for tensor in tensors if uses_external_data(tensor)]
    return sorted({entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"})


def _of_graph(graph: Any) -> Iterator[Any]:
    """Yield the tensors of a graph and of those inside it."""
    yield from graph.initializer
    yield from (tensor for sparse in graph.sparse_initializer for tensor in (sparse.values, sparse.indices))
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _of_graph(inner)
