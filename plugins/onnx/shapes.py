"""DynamicToFixedShape: lengths that are fixed at last, for devices that compile for one shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig

__all__ = ["DynamicToFixedShape", "DynamicToFixedShapeConfig"]


class DynamicToFixedShapeConfig(GraphPassConfig):
    """Which lengths are fixed: by the names of axes, or by whole shapes of inputs."""

    dim_param: list[str] | None = Field(None, description="Names of axes, such as batch_size.")
    dim_value: list[int] | None = Field(None, description="The length of each axis of dim_param.")
    input_name: list[str] | None = Field(None, description="Names of inputs.")
    input_shape: list[list[int]] | None = Field(None, description="The whole shape of each input of input_name.")

    @model_validator(mode="after")
    def _pairs(self) -> DynamicToFixedShapeConfig:
        for names, values in (("dim_param", "dim_value"), ("input_name", "input_shape")):
            given, told = getattr(self, names), getattr(self, values)
            if (given is None) != (told is None) or (given is not None and len(given) != len(told)):
                raise ValueError(f"{names} and {values} belong together, one value for each name")
        if self.dim_param is None and self.input_name is None:
            raise ValueError("give dim_param and dim_value, or input_name and input_shape")
        lengths = [*(self.dim_value or ()), *(size for shape in self.input_shape or () for size in shape)]
        if any(length < 1 for length in lengths):
            raise ValueError("lengths are whole numbers from 1")
        return self


class DynamicToFixedShape(GraphPass):
    """Fixes axes of a graph's inputs and everything that follows from them (onnxruntime.tools.onnx_model_utils)."""

    Config: ClassVar[type[PassConfig]] = DynamicToFixedShapeConfig
    version = 1

    def rewrite(
        self, proto: Any, path: Path, model: Model, config: DynamicToFixedShapeConfig, context: PassContext
    ) -> Any:
        """Fix the axes, then the outputs' shapes."""
        from onnxruntime.tools.onnx_model_utils import fix_output_shapes, make_dim_param_fixed, make_input_shape_fixed

        axes = {
            dim.dim_param for value in proto.graph.input for dim in value.type.tensor_type.shape.dim if dim.dim_param
        }
        for name, length in zip(config.dim_param or (), config.dim_value or (), strict=True):
            if name not in axes:
                raise ConfigError(
                    f"{self.spec.name}: dim_param: no input has an axis {name!r}; "
                    f"the inputs' axes are {', '.join(sorted(axes)) or 'fixed already'}"
                )
            make_dim_param_fixed(proto.graph, name, length)
        inputs = {value.name: value for value in proto.graph.input}
        for name, shape in zip(config.input_name or (), config.input_shape or (), strict=True):
            if name not in inputs:
                raise ConfigError(
                    f"{self.spec.name}: input_name: no input is called {name!r}; inputs are {', '.join(inputs)}"
                )
            _check_shape(self.spec.name, inputs[name], shape)
            make_input_shape_fixed(proto.graph, name, shape)
        fix_output_shapes(proto)
        return proto

    def outcome(self, attributes: Mapping[str, Any], config: DynamicToFixedShapeConfig) -> Mapping[str, Any]:
        """Lengths that no longer vary."""
        fixed = dict(zip(config.dim_param or (), config.dim_value or (), strict=True))
        return {"fixed_axes": {**attributes.get("fixed_axes", {}), **fixed}} if fixed else {}


def _check_shape(pass_name: str, value: Any, shape: list[int]) -> None:
    dims = value.type.tensor_type.shape.dim
    old = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]
    fits = len(old) == len(shape) and all(
        not isinstance(before, int) or before == now for before, now in zip(old, shape, strict=True)
    )
    if not fits:
        raise ConfigError(f"{pass_name}: input_shape: {value.name} has shape {old}, which can't become {shape}")
