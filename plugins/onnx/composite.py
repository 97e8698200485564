"""The model kind `composite`: graphs that run one after another; and its runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.context import JobContext
from drupe.core.errors import EvaluationError
from drupe.core.model import Model, ModelInfo
from drupe.core.runtimes import Result, Session
from drupe.core.sources import ModelConfig, ModelKind
from drupe.plugins.onnx.runtime import OnnxRuntime, OnnxSession

__all__ = ["CompositeConfig", "CompositeKind", "CompositeRuntime"]


class CompositeConfig(ModelConfig):
    """An `input_model` of type CompositeModel."""

    model_components: list[dict[str, Any]] = Field(
        min_length=1, description="The graphs in the order in which they run, each an input_model of type ONNXModel."
    )
    model_component_names: list[str] | None = Field(None, description="A name for each; default: component_0, …")
    model_attributes: dict[str, Any] = Field(default_factory=dict, description="Facts for passes to use.")

    @model_validator(mode="after")
    def _graphs(self) -> CompositeConfig:
        for number, component in enumerate(self.model_components):
            kind = str(component.get("type", ""))
            if kind.lower() not in ("onnxmodel", "onnx"):
                raise ValueError(f"model_components[{number}] is of type {kind or 'none'}; expected ONNXModel")
            if "model_path" not in _fields(component):
                raise ValueError(f"model_components[{number}] names no model_path")
            unknown = sorted(set(_fields(component)) - {"model_path", "onnx_file_name", "model_attributes"})
            if unknown:
                raise ValueError(
                    f"model_components[{number}]: {unknown[0]} is not for a component; it takes model_path and "
                    "onnx_file_name"
                )
        names = self.names
        if len(names) != len(self.model_components):
            raise ValueError(f"{len(names)} model_component_names for {len(self.model_components)} model_components")
        if len(set(names)) != len(names):
            raise ValueError("model_component_names holds a name twice")
        if wrong := next((name for name in names if not name or "/" in name or name.startswith(".")), None):
            raise ValueError(f"model_component_names: {wrong!r} can't be the name of a folder")
        return self

    @property
    def names(self) -> list[str]:
        """The components' names."""
        return self.model_component_names or [f"component_{n}" for n in range(len(self.model_components))]


def _fields(component: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = component.get("config")
    return inner if isinstance(inner, Mapping) else {key: value for key, value in component.items() if key != "type"}


class CompositeKind(ModelKind):
    """Reads CompositeModel. attributes["components"] lists names and files in order."""

    Config: ClassVar[type[ModelConfig]] = CompositeConfig
    version = 1

    def references(self, config: CompositeConfig) -> Mapping[str, str | Mapping[str, Any]]:
        """See ModelKind.references."""
        parts = zip(config.names, config.model_components, strict=True)
        return {name: _fields(component)["model_path"] for name, component in parts}

    def info(self, config: CompositeConfig, workflow_dir: Path) -> ModelInfo:
        """See ModelKind.info."""
        return ModelInfo("composite", {"model_attributes": config.model_attributes} if config.model_attributes else {})

    def load(self, config: CompositeConfig, fetched: Mapping[str, Path], context: JobContext) -> Model:
        """See ModelKind.load."""
        from drupe.plugins.huggingface.onnx_model import OnnxConfig, OnnxKind

        components = []
        for name, component in zip(config.names, config.model_components, strict=True):
            fields = _fields(component)
            part = OnnxConfig(model_path=fields["model_path"], onnx_file_name=fields.get("onnx_file_name"))
            folder = context.output_dir / name
            folder.mkdir()
            read = OnnxKind(self.spec).load(part, {"model": fetched[name]}, replace(context, output_dir=folder))
            components.append({"name": name, "file": f"{name}/{read.attributes['onnx_file']}"})
        attributes = {**self.info(config, Path()).attributes, "components": components}
        return Model.from_dir("composite", context.output_dir, attributes)


class CompositeRuntime(OnnxRuntime):
    """Runs each graph with ONNX Runtime, in order; what one gives feeds inputs of that name in those behind it.

    Options are those of the onnx runtime, for every graph.
    """

    version = 1

    def capabilities(self, model: Model) -> Sequence[str]:
        """forward."""
        return ("forward",)

    def open(self, model: Model, accelerator: Accelerator, options: Mapping[str, Any]) -> CompositeSession:  # type: ignore[override]
        """See Runtime.open."""
        sessions: dict[str, OnnxSession] = {}
        common = {key: model.attributes[key] for key in ("use_ort_extensions",) if key in model.attributes}
        for component in model.attributes["components"]:
            part = Model("onnx", model.files, {**common, "onnx_file": component["file"]}, path=model.folder)
            sessions[str(component["name"])] = super().open(part, accelerator, options)
        return CompositeSession(sessions, model.attributes.get("outputs"))


class CompositeSession(Session):
    """Sessions in a row."""

    framework = "ONNX"

    def __init__(self, sessions: Mapping[str, OnnxSession], outputs: Sequence[str] | None) -> None:
        self._sessions = sessions
        self._outputs = outputs

    def forward(self, batch: Mapping[str, np.ndarray]) -> Result:
        """See Session.forward."""
        unknown = sorted(set(batch) - set(self.input_shapes()))
        if unknown:
            raise EvaluationError(
                f"the batch has {', '.join(unknown)}, which the model lacks; it takes {', '.join(self.input_shapes())}"
            )
        values = dict(batch)
        made: dict[str, Any] = {}
        used: set[str] = set()
        for session in self._sessions.values():
            wanted = session.input_shapes()
            outputs = session.forward({name: values[name] for name in wanted if name in values}).outputs
            used.update(name for name in wanted if name in made)
            made.update(outputs)
            values.update(outputs)
        last = self._outputs or [name for name in made if name not in used]
        return Result({name: made[name] for name in last})

    def input_shapes(self) -> Mapping[str, tuple[tuple[int | str, ...], str]]:
        """See Session.input_shapes: what no component before gives."""
        found: dict[str, tuple[tuple[int | str, ...], str]] = {}
        made: set[str] = set()
        for session in self._sessions.values():
            found.update({name: shape for name, shape in session.input_shapes().items() if name not in made})
            made.update(session.output_names)
        return found

    def close(self) -> None:
        """See Session.close."""
        for session in self._sessions.values():
            session.close()
