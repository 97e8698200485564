"""The model kind `distributed`: one ONNX graph a rank; and a runtime that runs all ranks in one process."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from drupe.core.accelerators import Accelerator
from drupe.core.context import JobContext
from drupe.core.errors import ConfigError, EvaluationError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.sources import ModelConfig, ModelKind
from drupe.plugins.onnx.graphs import external_files, save_graph
from drupe.plugins.onnx.ranks import joined_ranks
from drupe.plugins.onnx.runtime import OnnxRuntime, OnnxSession

__all__ = ["DistributedConfig", "DistributedKind", "DistributedRuntime", "rank_files"]

PATTERN = "model_{:02d}.onnx"
"""How the graphs of ranks are named."""


class DistributedConfig(ModelConfig):
    """An `input_model` of type DistributedOnnxModel."""

    model_path: str | dict[str, Any] = Field(description="A folder with a graph for each rank.")
    model_name_pattern: str = Field(PATTERN, description="How they are named: model_{:02d}.onnx.")
    num_ranks: int = Field(ge=1, description="How many there are.")
    inference_settings: dict[str, Any] | None = Field(None, description="Session options and provider options.")
    model_attributes: dict[str, Any] = Field(default_factory=dict, description="Facts for passes to use.")

    @field_validator("model_name_pattern")
    @classmethod
    def _formats(cls, value: str) -> str:
        try:
            names = {value.format(0), value.format(1)}
        except (IndexError, KeyError, ValueError) as error:
            raise ValueError(f"{value!r} does not take a rank's number: {error}") from error
        if len(names) != 2:
            raise ValueError(f"{value!r} is the same for every rank; expected a place for its number, as in {PATTERN}")
        return value


class DistributedKind(ModelKind):
    """Reads DistributedOnnxModel. attributes["ranks"] lists the graphs' files in order."""

    Config: ClassVar[type[ModelConfig]] = DistributedConfig
    version = 1

    def references(self, config: DistributedConfig) -> Mapping[str, str | Mapping[str, Any]]:
        """See ModelKind.references."""
        return {"model": config.model_path}

    def info(self, config: DistributedConfig, workflow_dir: Path) -> ModelInfo:
        """See ModelKind.info."""
        known = {
            "ranks": [config.model_name_pattern.format(rank) for rank in range(config.num_ranks)],
            "inference_settings": config.inference_settings,
            "model_attributes": config.model_attributes or None,
        }
        return ModelInfo("distributed", {key: value for key, value in known.items() if value is not None})

    def load(self, config: DistributedConfig, fetched: Mapping[str, Path], context: JobContext) -> Model:
        """See ModelKind.load."""
        from drupe.plugins.huggingface.files import copy_tree

        source = fetched["model"]
        info = self.info(config, Path())
        if absent := [name for name in info.attributes["ranks"] if not (source / name).is_file()]:
            there = ", ".join(sorted(path.name for path in source.glob("*.onnx"))) or "none"
            raise ConfigError(f"{source} has no {', '.join(absent)}; graphs there: {there}")
        copy_tree(source, context.output_dir, context)
        return Model.from_dir("distributed", context.output_dir, info.attributes)


def rank_files(model: Model) -> list[Path]:
    """Return the graphs of a staged model, the first rank's first."""
    return [model.folder / str(name) for name in model.attributes["ranks"]]


class DistributedRuntime(OnnxRuntime):
    """Runs all ranks in one process, where what they exchange is a sum. Options are those of the onnx runtime.

    It tells what the ranks say together, as quality needs it; not how fast they are on devices of their own.
    """

    version = 1

    def open(self, model: Model, accelerator: Accelerator, options: Mapping[str, Any]) -> OnnxSession:
        """See Runtime.open."""
        import onnx

        files = rank_files(model)
        try:
            joined = joined_ranks("the runtime distributed", [onnx.load(str(path)) for path in files])
        except PassError as error:
            raise EvaluationError(str(error)) from error
        with tempfile.TemporaryDirectory() as folder:
            external = any(external_files(path) for path in files)
            path = save_graph(joined, Path(folder), external=external)
            return self.open_graph(path, model, accelerator, options)
