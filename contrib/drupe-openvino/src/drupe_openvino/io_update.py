"""Fixes the input shapes of an IR, or frees them."""

from __future__ import annotations

from typing import Any

from drupe import ConfigError, Model, Pass, PassConfig, PassContext
from pydantic import Field, model_validator

from drupe_openvino.ir import ir_name, replaced, save_ir
from drupe_openvino.libraries import openvino

__all__ = ["OpenVINOIoUpdate"]


class IoUpdateConfig(PassConfig):
    """Which shapes the inputs get."""

    static: bool = Field(True, description="true: shapes as in input_shapes; false: open axes for batch and sequence.")
    input_shapes: list[list[int]] | None = Field(None, description="Shapes in the order of input_names.")
    input_names: list[str] | None = Field(
        None, description="Inputs that input_shapes is about; default: all, in order."
    )
    reuse_cache: bool = Field(
        False, description="Read from Olive files; files are never copied needlessly, so it changes nothing."
    )

    @model_validator(mode="after")
    def _shapes_go_with_static(self) -> IoUpdateConfig:
        if self.static and self.input_shapes is None:
            raise ValueError("static: true needs input_shapes")
        if not self.static and self.input_shapes is not None:
            raise ValueError("static: false opens the axes by itself; leave input_shapes out")
        return self


class OpenVINOIoUpdate(Pass):
    """Reshape the inputs.

    1. Static shapes are what NPUs need.
    2. Opened axes are the first of every input, and the second of inputs with two axes (a sequence of tokens).
    """

    Config = IoUpdateConfig

    def run(self, model: Model, config: IoUpdateConfig, context: PassContext) -> Model:
        """See Pass.run. Raises ConfigError for a name or number of inputs that does not fit the model."""
        graph = openvino().Core().read_model(model.folder / f"{ir_name(model)}.xml")
        shapes = _wanted(graph, config) if config.static else _opened(graph)
        try:
            graph.reshape(shapes)
        except RuntimeError as error:
            raise ConfigError(f"the model can't take the shapes {shapes}: {_first_line(error)}") from error
        save_ir(graph, context.output_dir, ir_name(model))
        return replaced(model, context, ())


def _wanted(graph: Any, config: IoUpdateConfig) -> dict[str, list[int]]:
    own = [item.get_any_name() for item in graph.inputs]
    names = config.input_names or own
    shapes = config.input_shapes or []
    unknown = [name for name in names if not any(name in item.get_names() for item in graph.inputs)]
    if unknown:
        raise ConfigError(f"input_names: the model has no input {', '.join(unknown)}; it has: {', '.join(own)}")
    if len(names) != len(shapes):
        raise ConfigError(f"input_shapes has {len(shapes)} shapes for {len(names)} inputs: {', '.join(names)}")
    return dict(zip(names, shapes, strict=True))


def _opened(graph: Any) -> dict[str, Any]:
    shapes = {}
    for item in graph.inputs:
        shape = item.get_partial_shape()
        for axis in range(min(len(shape), 2 if len(shape) == 2 else 1)):
            shape[axis] = -1
        shapes[item.get_any_name()] = shape
    return shapes


def _first_line(error: Exception) -> str:
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), str(error))
