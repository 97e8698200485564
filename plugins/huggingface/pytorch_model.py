"""The model kind `pytorch`: modules that a function of the user's script builds, or that were saved whole.

The Model's folder holds the script (`script/`) and, where model_path names local files, those (`weights/`). Loading
runs the user's code, so whoever loads asks for consent again.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, model_validator

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.sources import ModelConfig, ModelKind
from drupe.core.user_scripts import blamed, user_function
from drupe.plugins.huggingface.files import copy_file, copy_script, copy_tree
from drupe.plugins.huggingface.io_config import checked_io_config
from drupe.plugins.huggingface.told_inputs import told_inputs

__all__ = [
    "PytorchConfig",
    "PytorchKind",
    "dummy_inputs",
    "forward_names",
    "io_config",
    "load_pytorch",
    "needed_consents",
    "takes_names",
]


_STATE = "PyTorch.StateDict"
_PROGRAM = "PyTorch.ExportedProgram"


class PytorchConfig(ModelConfig):
    """An `input_model` of type PyTorchModel."""

    model_path: str | dict[str, Any] | None = Field(None, description="What model_loader is given: files, or a name.")
    model_loader: str | None = Field(None, description="A function of model_script: model_path to module.")
    model_script: str | None = Field(None, description="A Python file of the user's (a consent).")
    script_dir: str | None = Field(None, description="The folder with what model_script imports.")
    model_file_format: str | None = Field(
        None,
        description="PyTorch.EntireModel or PyTorch.TorchScript: saved whole; PyTorch.StateDict: values for the module "
        "that model_loader builds; PyTorch.ExportedProgram: saved by torch.export.",
    )
    io_config: Annotated[dict[str, Any] | str | None, AfterValidator(checked_io_config)] = Field(
        None, description="Names, shapes, types and axes of inputs and outputs, or a function of model_script."
    )
    dummy_inputs_func: str | None = Field(None, description="A function of model_script: module to example inputs.")
    model_attributes: dict[str, Any] = Field(default_factory=dict, description="Facts for passes to use.")

    @model_validator(mode="after")
    def _can_be_loaded(self) -> PytorchConfig:
        named = [name for name in (self.model_loader, self.dummy_inputs_func) if name is not None]
        if isinstance(self.io_config, str):
            named.append(self.io_config)
        if named and self.model_script is None:
            raise ValueError(f"{', '.join(named)}: functions of a model_script, but none is named")
        if self.model_file_format == _STATE and (self.model_loader is None or self.model_path is None):
            raise ValueError(
                f"{_STATE} needs a model_path with the values, and a model_loader that builds the module they are for"
            )
        if self.model_file_format == _PROGRAM and self.model_loader is not None:
            raise ValueError(f"{_PROGRAM} is loaded without code of yours; leave model_loader out")
        if self.model_loader is None and self.model_path is None:
            raise ValueError(
                "name a model_loader of a model_script, or the model_path of a module that was saved whole"
            )
        return self


class PytorchKind(ModelKind):
    """Reads PyTorchModel."""

    Config: ClassVar[type[ModelConfig]] = PytorchConfig
    version = 1

    def references(self, config: PytorchConfig) -> Mapping[str, str | Mapping[str, Any]]:
        """See ModelKind.references. A model_path that is no local file is a name that only the loader understands."""
        found: dict[str, str | Mapping[str, Any]] = {}
        if config.model_path is not None and (config.model_loader is None or _is_file(config.model_path)):
            found["model"] = config.model_path
        if config.model_script is not None:
            found["script"] = {"type": "local_file", "path": config.model_script}
        if config.script_dir is not None:
            found["script_dir"] = {"type": "local_folder", "path": config.script_dir}
        return found

    def consents(self, config: PytorchConfig) -> Sequence[str]:
        """See ModelKind.consents: a module that was saved whole is a pickle."""
        return needed_consents(config.model_dump())

    def info(self, config: PytorchConfig, workflow_dir: Path) -> ModelInfo:
        """See ModelKind.info."""
        return ModelInfo("pytorch", _attributes(config))

    def load(self, config: PytorchConfig, fetched: Mapping[str, Path], context: JobContext) -> Model:
        """See ModelKind.load."""
        for consent in self.consents(config):
            context.require_consent(consent, f"the PyTorchModel {config.model_loader or config.model_path}")
        out = context.output_dir
        attributes = _attributes(config)
        if "model" in fetched:
            source = fetched["model"]
            if source.is_dir():
                copy_tree(source, out / "weights", context)
                attributes["weights"] = "weights"
            else:
                copy_file(source, out / "weights" / source.name)
                attributes["weights"] = f"weights/{source.name}"
        elif isinstance(config.model_path, str):
            attributes["model_path"] = config.model_path
        if "script_dir" in fetched:
            copy_tree(fetched["script_dir"], out / "script", context, lambda path: "__pycache__" not in path.parts)
        if "script" in fetched:
            copy_script(fetched["script"], out / "script")
        if not any(path.is_file() for path in out.rglob("*")):
            raise ConfigError("the PyTorchModel has neither a script nor files")
        return Model.from_dir("pytorch", out, attributes)


def needed_consents(told: Mapping[str, Any]) -> list[str]:
    """Return what has to be allowed to load a module, by its Config's values or its attributes."""
    whole = told.get("model_loader") is None and told.get("model_file_format") != "PyTorch.TorchScript"
    return [*(["user-scripts"] if told.get("model_script") else []), *(["pickle"] if whole else [])]


def load_pytorch(model: Model, context: JobContext) -> Any:
    """Return the module, in evaluation mode. Raises ConfigError without consent or when it can't be loaded."""
    import torch

    weights = model.attributes.get("weights")
    path = str(model.folder / weights) if weights else model.attributes.get("model_path")
    loader = model.attributes.get("model_loader")
    form = model.attributes.get("model_file_format")
    if loader is not None:
        module = _called(model, str(loader), context, path)
    elif form == "PyTorch.TorchScript":
        module = torch.jit.load(path, map_location="cpu")
    elif form == _PROGRAM:
        context.require_consent("pickle", "loading a program that torch.export saved")
        module = _program(str(path)).module()
        # It has no modes, being what was exported, and refuses to be asked for one; exporters ask.
        module.train = lambda mode=True: module
        module.eval = lambda: module
        return module
    else:
        context.require_consent("pickle", "loading a module that was saved whole")
        module = torch.load(str(path), map_location="cpu", weights_only=False)
    if not isinstance(module, torch.nn.Module):
        what = f"{loader} of {model.attributes['model_script']}" if loader else str(weights)
        raise ConfigError(f"{what} gave {type(module).__name__}; expected a torch.nn.Module")
    if form == _STATE:
        _fill(module, str(path))
    if model.attributes.get("quantization") == "qat":
        from drupe.plugins.quantization.qat.saving import FOLDER, restore

        return restore(module.float(), model.folder / FOLDER)
    return module.eval()


def _program(path: str) -> Any:
    import torch

    try:
        return torch.export.load(path)
    except Exception as error:
        raise ConfigError(f"{Path(path).name} is no program that torch.export saved: {error}") from error


def _fill(module: Any, path: str) -> None:
    """Load values into a module; nothing is unpickled but tensors. Raises ConfigError where they are of another."""
    import torch

    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    try:
        module.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"{Path(path).name} holds no values for {type(module).__name__}: {error}") from error


def io_config(model: Model, context: JobContext) -> Mapping[str, Any]:
    """Return the input and output names, shapes, types and axes that the input model tells; {} where it tells none."""
    told = model.attributes.get("io_config") or {}
    if isinstance(told, str):
        weights = model.attributes.get("weights")
        path = str(model.folder / weights) if weights else model.attributes.get("model_path")
        told = _called(model, told, context, path)
    if not isinstance(told, Mapping):
        raise ConfigError(f"io_config is {type(told).__name__}; expected a mapping with input_names and input_shapes")
    return told


def dummy_inputs(model: Model, module: Any, context: JobContext) -> Any:
    """Return example inputs: of dummy_inputs_func, else zeros of io_config's shapes (named axes take 1; by name where
    the module's forward has those names, else by position), else what an exported program was saved with.

    Raises ConfigError where the input model tells neither.
    """
    function = model.attributes.get("dummy_inputs_func")
    if function is not None:
        own = hasattr(module, "load_model")
        if not own:
            # Scripts that were written for Olive ask what they are given for the module; it answers with itself.
            module.load_model = lambda *_, **__: module
        try:
            return _called(model, str(function), context, module)
        finally:
            if not own:
                del module.load_model
    told = io_config(model, context)
    found = told_inputs(told)
    if found is None and model.attributes.get("model_file_format") == _PROGRAM:
        positional, named = _program(str(model.folder / str(model.attributes["weights"]))).example_inputs
        return named or tuple(positional)
    if found is None:
        raise ConfigError(
            "the PyTorchModel tells no example inputs: give dummy_inputs_func, or input_shapes in io_config"
        )
    # io_config names the graph's inputs; a module that calls its own otherwise takes them in order.
    return found if takes_names(module, found) else tuple(found.values())


def takes_names(module: Any, names: Iterable[str]) -> bool:
    """Whether a module's forward can be called with these names."""
    own, any_name = forward_names(module)
    return any_name or all(name in own for name in names)


def forward_names(module: Any) -> tuple[list[str], bool]:
    """Return the names of what a module's forward takes, and whether it takes any others by name."""
    schema = getattr(module.forward, "schema", None)
    if schema is not None:  # TorchScript: no Python signature is left
        return [argument.name for argument in schema.arguments if argument.name != "self"], False
    parameters = inspect.signature(module.forward).parameters.values()
    own = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return own, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _called(model: Model, name: str, context: JobContext, argument: Any) -> Any:
    script = model.attributes.get("model_script")
    if script is None:
        raise ConfigError(f"{name} is a function of a model_script, but the input model names none")
    function = user_function(model.folder / str(script), name, context)
    with blamed(name, Path(str(script)).name, ConfigError):
        return function(argument)


def _is_file(path: str | Mapping[str, Any]) -> bool:
    # owner/name is what loaders call a model on a hub by; what reads like a file is one.
    return isinstance(path, Mapping) or "://" in path or bool(Path(path).suffix) or path.startswith((".", "/", "~"))


def _attributes(config: PytorchConfig) -> dict[str, Any]:
    known: dict[str, Any] = {
        "model_loader": config.model_loader,
        "model_script": f"script/{Path(config.model_script).name}" if config.model_script else None,
        "model_file_format": config.model_file_format,
        "io_config": config.io_config,
        "dummy_inputs_func": config.dummy_inputs_func,
        "model_attributes": config.model_attributes or None,
    }
    return {key: value for key, value in known.items() if value is not None}
