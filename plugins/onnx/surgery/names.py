"""Surgeons for the border of a graph: names and order of inputs and outputs, their axes, values to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field, model_validator

from drupe.core.config import PluginConfig
from drupe.plugins.onnx.surgery.surgeon import Surgeon, Theatre, all_nodes

__all__ = [
    "ExposeOutputs",
    "InferShapes",
    "RemoveInitializerFromInputs",
    "RemoveShapes",
    "RenameInputDims",
    "RenameInputs",
    "RenameOutputDims",
    "RenameOutputs",
    "ReorderInputs",
    "ZeroOutInput",
]


class RenameConfig(PluginConfig):
    """Pairs of names."""

    old_names: list[str] = Field(min_length=1, description="Names as they are.")
    new_names: list[str] = Field(min_length=1, description="Names as they become, in the same order.")

    @model_validator(mode="after")
    def _pairs(self) -> RenameConfig:
        if len(self.old_names) != len(self.new_names):
            raise ValueError(f"{len(self.old_names)} old_names and {len(self.new_names)} new_names")
        return self


class _Rename(Surgeon):
    Config: ClassVar[type[PluginConfig]] = RenameConfig
    what = "input"

    def values(self, model: Any) -> Sequence[Any]:
        raise NotImplementedError

    def operate(self, model: Any, config: RenameConfig) -> int:
        values = {value.name: value for value in self.values(model)}
        # Names that are on the way are given to others first: two inputs may swap their names.
        taken = {
            value.name: value for node in all_nodes(model) for value in node.outputs if value.name in config.new_names
        }
        theatre = Theatre(model.graph)
        for old in config.old_names:
            if old not in values:
                raise self.fail(f"the graph has no {self.what} {old!r}; it has {', '.join(values)}")
        renamed = [values[old] for old in config.old_names]
        for name, value in taken.items():
            if value not in renamed:
                value.name = theatre.name(f"{name}_inner")
        for number, value in enumerate(renamed):
            value.name = theatre.name(f"renamed_{number}")
        others = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
        for value, new in zip(renamed, config.new_names, strict=True):
            if new in others:
                raise self.fail(f"the graph has an input or output {new!r} already")
            value.name = new
        return len(renamed)


class RenameInputs(_Rename):
    """Gives inputs other names."""

    def values(self, model: Any) -> Sequence[Any]:
        return list(model.graph.inputs)


class RenameOutputs(_Rename):
    """Gives outputs other names."""

    what = "output"

    def values(self, model: Any) -> Sequence[Any]:
        return list(model.graph.outputs)


class RenameInputDimsConfig(PluginConfig):
    """Which axis of which input."""

    input_name: str | None = Field(None, description="Name of the input.")
    input_idx: int | None = Field(None, ge=0, description="Number of the input, where it has no input_name.")
    dim_idx: int = Field(ge=0, description="Number of the axis.")
    dim_name: str = Field(min_length=1, description="The axis's new name.")

    @model_validator(mode="after")
    def _one(self) -> RenameInputDimsConfig:
        if (self.input_name is None) == (self.input_idx is None):
            raise ValueError("give input_name or input_idx")
        return self


class RenameOutputDimsConfig(PluginConfig):
    """Which axis of which output."""

    output_name: str | None = Field(None, description="Name of the output.")
    output_idx: int | None = Field(None, ge=0, description="Number of the output, where it has no output_name.")
    dim_idx: int = Field(ge=0, description="Number of the axis.")
    dim_name: str = Field(min_length=1, description="The axis's new name.")

    @model_validator(mode="after")
    def _one(self) -> RenameOutputDimsConfig:
        if (self.output_name is None) == (self.output_idx is None):
            raise ValueError("give output_name or output_idx")
        return self


class RenameInputDims(Surgeon):
    """Names an axis of an input."""

    Config: ClassVar[type[PluginConfig]] = RenameInputDimsConfig

    def operate(self, model: Any, config: RenameInputDimsConfig) -> int:
        _name_axis(self, list(model.graph.inputs), config.input_name, config.input_idx, config)
        return 1


class RenameOutputDims(Surgeon):
    """Names an axis of an output."""

    Config: ClassVar[type[PluginConfig]] = RenameOutputDimsConfig

    def operate(self, model: Any, config: RenameOutputDimsConfig) -> int:
        _name_axis(self, list(model.graph.outputs), config.output_name, config.output_idx, config)
        return 1


def _name_axis(
    surgeon: Surgeon,
    values: Sequence[Any],
    name: str | None,
    index: int | None,
    config: RenameInputDimsConfig | RenameOutputDimsConfig,
) -> None:
    import onnx_ir as ir

    known = [value.name for value in values]
    if name is not None:
        if name not in known:
            raise surgeon.fail(f"the graph has no {name!r}; it has {', '.join(known)}")
        index = known.index(name)
    assert index is not None
    if index >= len(values):
        raise surgeon.fail(f"there is no number {index}; the graph has {', '.join(known)}")
    shape = list(values[index].shape) if values[index].shape is not None else []
    if config.dim_idx >= len(shape):
        raise surgeon.fail(f"{known[index]} has {len(shape)} axes, so there is no axis {config.dim_idx}")
    shape[config.dim_idx] = ir.SymbolicDim(config.dim_name)
    values[index].shape = ir.Shape(shape)


class ReorderInputsConfig(PluginConfig):
    """The order."""

    permutation: list[int] = Field(min_length=1, description="The present number of each input, in the new order.")


class ReorderInputs(Surgeon):
    """Puts the inputs into another order."""

    Config: ClassVar[type[PluginConfig]] = ReorderInputsConfig

    def operate(self, model: Any, config: ReorderInputsConfig) -> int:
        inputs = list(model.graph.inputs)
        if sorted(config.permutation) != list(range(len(inputs))):
            raise self.fail(f"permutation {config.permutation} is no order of {len(inputs)} inputs")
        model.graph.inputs.clear()
        model.graph.inputs.extend(inputs[index] for index in config.permutation)
        return len(inputs)


class ZeroOutInputConfig(PluginConfig):
    """Which input of which node."""

    node_name: str = Field(description="Name of the node.")
    input_idx: int = Field(ge=0, description="Number of its input.")


class ZeroOutInput(Surgeon):
    """Gives a node zeros in place of one of its inputs."""

    Config: ClassVar[type[PluginConfig]] = ZeroOutInputConfig

    def operate(self, model: Any, config: ZeroOutInputConfig) -> int:
        import numpy as np

        node = next((node for node in all_nodes(model) if node.name == config.node_name), None)
        if node is None:
            raise self.fail(f"the graph has no node {config.node_name!r}")
        if config.input_idx >= len(node.inputs) or node.inputs[config.input_idx] is None:
            raise self.fail(f"{config.node_name} has no input {config.input_idx}")
        value = node.inputs[config.input_idx]
        shape = [size for size in value.shape if isinstance(size, int)] if value.shape is not None else []
        if value.shape is None or value.dtype is None or len(shape) != len(value.shape):
            raise self.fail(f"the shape of {value.name} is not fixed, so zeros of its shape can't be made")
        zeros = Theatre(model.graph).weight(f"{config.node_name}_zeros", np.zeros(shape, dtype=value.dtype.numpy()))
        node.replace_input_with(config.input_idx, zeros)
        return 1


class ExposeOutputsConfig(PluginConfig):
    """Whose outputs."""

    names: list[str] = Field(min_length=1, description="Names of nodes whose outputs become outputs of the graph.")


class ExposeOutputs(Surgeon):
    """Makes the outputs of nodes outputs of the graph."""

    Config: ClassVar[type[PluginConfig]] = ExposeOutputsConfig

    def operate(self, model: Any, config: ExposeOutputsConfig) -> int:
        nodes = {node.name: node for node in model.graph}
        count = 0
        for name in config.names:
            if name not in nodes:
                raise self.fail(f"the graph has no node {name!r}")
            for value in nodes[name].outputs:
                if value.name and not value.is_graph_output():
                    if value.dtype is None:
                        raise self.fail(f"the type of {value.name} is not known; put InferShapes before it")
                    model.graph.outputs.append(value)
                    count += 1
        return count


class InferShapes(Surgeon):
    """Infers the shapes of all values, as far as onnx can."""

    def operate(self, model: Any, config: Any) -> int:
        from onnx_ir.passes.common import ShapeInferencePass

        before = _known(model)
        ShapeInferencePass()(model)
        return _known(model) - before


class RemoveShapes(Surgeon):
    """Forgets the shapes of all values inside the graph."""

    def operate(self, model: Any, config: Any) -> int:
        count = 0
        for node in all_nodes(model):
            for value in node.outputs:
                if value.shape is not None and not value.is_graph_output():
                    value.shape = None
                    value.type = None
                    count += 1
        return count


def _known(model: Any) -> int:
    return sum(value.shape is not None for node in all_nodes(model) for value in node.outputs)


class RemoveInitializerFromInputs(Surgeon):
    """Weights are no longer listed as inputs, which lets runtimes fold them."""

    def operate(self, model: Any, config: Any) -> int:
        from onnx_ir.passes.common import RemoveInitializersFromInputsPass

        before = len(model.graph.inputs)
        RemoveInitializersFromInputsPass()(model)
        return before - len(model.graph.inputs)
