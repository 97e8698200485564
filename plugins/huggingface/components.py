"""Parts of a Hugging Face model that functions of the user's script build, each to be exported by itself.

A sequence-to-sequence model that keeps its past is two graphs: the encoder with the decoder's first step, and the
decoder's later steps. Which tensors go in and out of them only the script says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from drupe.core.config import PluginConfig
from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.core.user_scripts import user_function
from drupe.plugins.huggingface.io_config import checked_io_config
from drupe.plugins.huggingface.loading import load_model
from drupe.plugins.huggingface.told_inputs import told_inputs

__all__ = ["Component", "ComponentConfig", "check_components", "components"]


class ComponentConfig(PluginConfig):
    """An entry of an HfModel's `components`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][\w.-]*$", description="What the part's graph is called.")
    component_func: str | None = Field(
        None,
        description="A function of model_script: the path of the model's folder to a module. What it is given also has "
        "load_model(). Not given: the whole model.",
    )
    io_config: dict[str, Any] | str | None = Field(
        None, description="Names and axes of inputs and outputs, or a function of model_script."
    )
    dummy_inputs_func: str | None = Field(None, description="A function of model_script: module to example inputs.")

    @property
    def functions(self) -> list[str]:
        """The functions of the script that this part needs."""
        named = [self.component_func, self.dummy_inputs_func, self.io_config]
        return [name for name in named if isinstance(name, str)]

    @field_validator("io_config")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and not value.get("input_names"):
            raise ValueError("io_config names no input_names")
        return checked_io_config(value)


def check_components(parts: Sequence[ComponentConfig], model_script: str | None) -> None:
    """Raise ValueError for parts of one name, and for functions without a script."""
    names = [part.name for part in parts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"components: the name {twice!r} occurs twice")
    for part in parts:
        if part.functions and model_script is None:
            raise ValueError(
                f"components: {', '.join(part.functions)} of {part.name} are functions of a model_script; none is named"
            )
        if part.dummy_inputs_func is None and not isinstance(part.io_config, str):
            told = part.io_config or {}
            if not told.get("input_shapes"):
                raise ValueError(
                    f"components: {part.name} tells no example inputs: give dummy_inputs_func, or input_shapes in "
                    "io_config"
                )


@dataclass(frozen=True)
class Component:
    """A part that is ready to be exported. inputs: example inputs, by name or in order; told: names and axes."""

    name: str
    module: Any
    inputs: Any
    told: Mapping[str, Any]


class _Place(str):
    """The path of the model's folder, of which a function may also ask the model itself."""

    def __new__(cls, folder: Path, load: Callable[[], Any]) -> _Place:
        place = super().__new__(cls, folder)
        place._load = load
        return place

    _load: Callable[[], Any]

    @property
    def model_path(self) -> str:
        """The path once more."""
        return str(self)

    def load_model(self, *_: Any, **__: Any) -> Any:
        """Return the model; options of how to load are not looked at."""
        return self._load()


def components(model: Model, context: JobContext, **loading: Any) -> Iterator[Component]:
    """Yield the parts of an `hf` model, one in memory at a time as far as the script allows it.

    loading: arguments of load_model for the whole model. Raises ConfigError without consent and for functions that give
    something else than they should.
    """
    script = model.attributes.get("model_script")
    loaded: list[Any] = []

    def whole() -> Any:
        if not loaded:
            loaded.append(load_model(model, **loading).eval())
        return loaded[0]

    def function(name: str) -> Any:
        return user_function(model.folder / str(script), name, context)

    for entry in model.attributes["components"]:
        part = ComponentConfig.model_validate(entry)
        build = part.component_func
        module = _called(function(build), _Place(model.folder, whole), build) if build else whole()
        _check_module(module, build, part.name)
        module = module.eval()
        place = _Place(model.folder, partial(_itself, module))
        told = part.io_config or {}
        if isinstance(told, str):
            told = _called(function(told), place, told)
        if not isinstance(told, Mapping):
            raise ConfigError(
                f"{part.io_config} of {script} gave {type(told).__name__}; expected a mapping with input_names"
            )
        inputs: Any = told_inputs(told, named=2)
        if part.dummy_inputs_func is not None:
            # A module that answers load_model with itself: scripts are written for either.
            module.load_model, module.model_path = place.load_model, str(place)
            inputs = _called(function(part.dummy_inputs_func), module, part.dummy_inputs_func)
            del module.load_model, module.model_path
        if inputs is None:
            raise ConfigError(
                f"the component {part.name} tells no example inputs: give dummy_inputs_func, or input_shapes in what "
                f"{part.io_config} returns"
            )
        yield Component(part.name, module, inputs, told)


def _itself(module: Any) -> Any:
    return module


def _called(function: Any, given: Any, name: str) -> Any:
    """Call a script's function with what it takes: nothing, or one thing."""
    import inspect

    if not callable(function):
        raise ConfigError(f"{name} of the model_script is no function")
    return function(given) if inspect.signature(function).parameters else function()


def _check_module(module: Any, function: str | None, name: str) -> None:
    import torch

    if not isinstance(module, torch.nn.Module):
        raise ConfigError(
            f"{function}, which builds the component {name}, gave {type(module).__name__}; expected a torch.nn.Module"
        )
