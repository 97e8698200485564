"""The model kind `distributed_hf`: a Hugging Face model with a folder of weights for each rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, field_validator

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.sources import ModelConfig, ModelKind
from drupe.plugins.huggingface.files import copy_tree
from drupe.plugins.huggingface.io_config import checked_io_config
from drupe.plugins.huggingface.loading import infer_task, known_task, read_config
from drupe.plugins.huggingface.parallel.layout import PATTERN, Layout

__all__ = ["DistributedHfConfig", "DistributedHfKind"]

_TAKEN = ("dtype", "attn_implementation")


class DistributedHfConfig(ModelConfig):
    """An `input_model` of type DistributedHfModel."""

    model_path: str | dict[str, Any] = Field(description="A folder that PyTorchTensorParallel made.")
    model_name_pattern: str = Field(PATTERN, description="How the folders of ranks are named: model_{:02d}.")
    num_ranks: int | None = Field(None, ge=2, description="How many there are; not given: as the folder tells.")
    task: Annotated[str | None, AfterValidator(known_task)] = Field(
        None, description="What the model is for; by default, its architecture tells."
    )
    load_kwargs: dict[str, Any] = Field(default_factory=dict, description="How to load it: dtype, attn_implementation.")
    io_config: Annotated[dict[str, Any] | None, AfterValidator(checked_io_config)] = Field(
        None, description="Names, shapes, types and axes of the inputs."
    )
    model_attributes: dict[str, Any] = Field(default_factory=dict, description="Facts for passes to use.")

    @field_validator("load_kwargs")
    @classmethod
    def _known_kwargs(cls, values: dict[str, Any]) -> dict[str, Any]:
        renamed = {"dtype" if key == "torch_dtype" else key: value for key, value in values.items()}
        if unknown := [key for key in renamed if key not in _TAKEN]:
            raise ValueError(f"{unknown[0]!r} has no meaning for a model on ranks; expected {' or '.join(_TAKEN)}")
        return renamed


class DistributedHfKind(ModelKind):
    """Reads DistributedHfModel. attributes["ranks"] lists the ranks' folders in order. No code of the folder is run."""

    Config: ClassVar[type[ModelConfig]] = DistributedHfConfig
    version = 1

    def references(self, config: DistributedHfConfig) -> Mapping[str, str | Mapping[str, Any]]:
        """See ModelKind.references."""
        return {"model": config.model_path}

    def info(self, config: DistributedHfConfig, workflow_dir: Path) -> ModelInfo:
        """See ModelKind.info: from a local folder; of other references only what the config says."""
        if isinstance(config.model_path, str) and "://" not in config.model_path:
            folder = workflow_dir / Path(config.model_path).expanduser()
            if folder.is_dir():
                return ModelInfo("distributed_hf", _attributes(config, folder, _checked(config, folder)))
        return ModelInfo("distributed_hf", _told(config))

    def load(self, config: DistributedHfConfig, fetched: Mapping[str, Path], context: JobContext) -> Model:
        """See ModelKind.load."""
        source = fetched["model"]
        layout = _checked(config, source)
        copy_tree(source, context.output_dir, context, lambda path: path.suffix != ".py")
        return Model.from_dir("distributed_hf", context.output_dir, _attributes(config, source, layout))


def _checked(config: DistributedHfConfig, folder: Path) -> Layout:
    """Return what a folder holds. Raises ConfigError where it is not what the config says."""
    layout = Layout.read(folder)
    if config.num_ranks not in (None, layout.world_size):
        raise ConfigError(f"num_ranks is {config.num_ranks}, and {folder} holds {layout.world_size} ranks")
    try:
        named = tuple(config.model_name_pattern.format(rank) for rank in range(layout.world_size))
    except (IndexError, KeyError, ValueError) as error:
        raise ConfigError(
            f"model_name_pattern {config.model_name_pattern!r} does not take a rank's number: {error}; expected one "
            f"such as {PATTERN}"
        ) from error
    if named != layout.ranks:
        raise ConfigError(
            f"model_name_pattern {config.model_name_pattern!r} means {named[0]}, and the ranks of {folder} are "
            f"{', '.join(layout.ranks)}"
        )
    return layout


def _told(config: DistributedHfConfig) -> dict[str, Any]:
    known: dict[str, Any] = {
        "task": config.task,
        "load_kwargs": config.load_kwargs or None,
        "io_config": config.io_config,
        "model_attributes": config.model_attributes or None,
    }
    return {key: value for key, value in known.items() if value is not None}


def _attributes(config: DistributedHfConfig, folder: Path, layout: Layout) -> dict[str, Any]:
    data = read_config(folder)
    if not data:
        raise ConfigError(f"{folder} has no config.json; the ranks' model can't be made without it")
    architecture = (data.get("architectures") or [None])[0]
    known: dict[str, Any] = {
        "task": infer_task(architecture),
        "architecture": architecture,
        "model_type": data.get("model_type"),
        "dtype": data.get("dtype") or data.get("torch_dtype"),
        "world_size": layout.world_size,
        "ranks": list(layout.ranks),
    }
    return {**{key: value for key, value in known.items() if value is not None}, **_told(config)}
