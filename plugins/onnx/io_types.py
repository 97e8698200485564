"""OnnxIODataTypeConverter: other types for a graph's inputs and outputs, with casts just inside."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig
from drupe.plugins.onnx.graphs import inner_graphs, replace_name

__all__ = ["OnnxIODataTypeConverter", "OnnxIODataTypeConverterConfig", "retype"]

_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10,
    "float64": 11, "uint32": 12, "uint64": 13, "bfloat16": 16,
}  # fmt: skip
"""Name → number of onnx.TensorProto.DataType."""


class OnnxIODataTypeConverterConfig(GraphPassConfig):
    """Which inputs and outputs get which type."""

    name_pattern: str = Field("logits", description="Regular expression; names in which it is found are converted.")
    source_dtype: int = Field(10, description="Only inputs and outputs of this type: its name, or onnx's number.")
    target_dtype: int = Field(1, description="The type that they get.")

    @field_validator("source_dtype", "target_dtype", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in _TYPES:
                raise ValueError(f"unknown type {value!r}; expected {', '.join(_TYPES)}")
            return _TYPES[value]
        if value not in _TYPES.values():
            raise ValueError(f"{value!r} is no number of an onnx type; expected one of {', '.join(_TYPES)}")
        return value

    @field_validator("name_pattern")
    @classmethod
    def _pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from error
        return value


class OnnxIODataTypeConverter(GraphPass):
    """Converts the types of inputs and outputs whose names match."""

    Config: ClassVar[type[PassConfig]] = OnnxIODataTypeConverterConfig
    version = 1

    def rewrite(
        self, proto: Any, path: Path, model: Model, config: OnnxIODataTypeConverterConfig, context: PassContext
    ) -> Any:
        """Rename inside, cast at the border."""
        changed = retype(
            proto,
            lambda name: re.search(config.name_pattern, name) is not None,
            config.source_dtype,
            config.target_dtype,
        )
        graph = proto.graph
        if not changed:
            there = ", ".join(
                f"{value.name} ({_type_name(value.type.tensor_type.elem_type)})"
                for value in (*graph.input, *graph.output)
            )
            raise ConfigError(
                f"{self.spec.name}: no input or output matches {config.name_pattern!r} with the source type; "
                f"the graph has {there}"
            )
        context.report["converted"] = changed
        return proto


def retype(
    proto: Any, wanted: Callable[[str], bool], source: int, target: int, *, inputs_only: bool = False
) -> list[str]:
    """Give the wanted inputs and outputs of type `source` the type `target`, with casts inside; return their names.

    source, target: numbers of onnx.TensorProto.DataType.
    """
    from onnx import helper

    graph = proto.graph
    weights = {tensor.name for tensor in graph.initializer}
    first: list[Any] = []
    last: list[Any] = []
    changed: list[str] = []
    for values, outward in ((graph.input, False), (() if inputs_only else graph.output, True)):
        for value in values:
            kind = value.type.tensor_type
            if value.name in weights or kind.elem_type != source or not wanted(value.name):
                continue
            inner = f"{value.name}_as_{_type_name(source)}"
            _rename(graph, value.name, inner, outward)
            ends = ([inner], [value.name]) if outward else ([value.name], [inner])
            cast = helper.make_node("Cast", *ends, name=f"cast_{value.name}", to=target if outward else source)
            (last if outward else first).append(cast)
            kind.elem_type = target
            changed.append(value.name)
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def _type_name(number: int) -> str:
    return next((name for name, value in _TYPES.items() if value == number), f"type {number}")


def _rename(graph: Any, old: str, new: str, outward: bool) -> None:
    """Rename a value for the nodes of the graph and those inside them."""
    for node in graph.node:
        replace_name(node.input, old, new)
        if outward:
            replace_name(node.output, old, new)
        for inner in inner_graphs(node):
            _rename(inner, old, new, outward)
