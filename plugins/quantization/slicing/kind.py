"""The model kind `sliced`: decoders that SliceGPT made, read from their folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.sources import ModelConfig, ModelKind
from drupe.plugins.huggingface.files import copy_tree
from drupe.plugins.huggingface.loading import read_config

__all__ = ["SlicedConfig", "SlicedKind"]


class SlicedConfig(ModelConfig):
    """An `input_model` of type SlicedModel."""

    model_path: str | dict[str, Any] = Field(description="A folder that SliceGPT made.")
    model_attributes: dict[str, Any] = Field(default_factory=dict, description="Facts for passes to use.")


class SlicedKind(ModelKind):
    """Reads SlicedModel. No code of the folder is run."""

    Config: ClassVar[type[ModelConfig]] = SlicedConfig
    version = 1

    def references(self, config: SlicedConfig) -> Mapping[str, str | Mapping[str, Any]]:
        """See ModelKind.references."""
        return {"model": config.model_path}

    def info(self, config: SlicedConfig, workflow_dir: Path) -> ModelInfo:
        """See ModelKind.info."""
        return ModelInfo("sliced", _attributes(config))

    def load(self, config: SlicedConfig, fetched: Mapping[str, Path], context: JobContext) -> Model:
        """See ModelKind.load. Raises ConfigError for a folder that SliceGPT didn't make."""
        source = fetched["model"]
        found = read_config(source) if source.is_dir() else {}
        if not isinstance(found.get("slicing"), Mapping) or not any(source.glob("*.safetensors")):
            raise ConfigError(
                f"{source} holds no sliced model: expected the folder that SliceGPT made, with sliced.safetensors and "
                "a config.json that has slicing; plain Hugging Face models are of type HfModel"
            )
        copy_tree(source, context.output_dir, context, lambda path: path.suffix != ".py")
        architecture = (found.get("architectures") or [None])[0]
        known = {"architecture": architecture, "model_type": found.get("model_type"), "dtype": found.get("dtype")}
        told = {key: value for key, value in known.items() if value}
        return Model.from_dir("sliced", context.output_dir, {**told, **_attributes(config)})


def _attributes(config: SlicedConfig) -> dict[str, Any]:
    return {
        "task": "text-generation",
        **({"model_attributes": config.model_attributes} if config.model_attributes else {}),
    }
