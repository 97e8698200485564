"""The model kind `acme`: what the compiler makes, also as an input model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe import ConfigError, Model, ModelConfig, ModelKind, PassContext
from pydantic import Field

__all__ = ["AcmeKind"]

_FILES = ("program.json", "weights.npz")


class AcmeConfig(ModelConfig):
    """Where the program is."""

    model_path: str | dict[str, Any] = Field(description="A folder with program.json and weights.npz.")


class AcmeKind(ModelKind):
    """A compiled program."""

    Config = AcmeConfig

    def references(self, config: AcmeConfig) -> Mapping[str, str | Mapping[str, Any]]:
        """See ModelKind.references."""
        return {"model": config.model_path}

    def load(self, config: AcmeConfig, fetched: Mapping[str, Path], context: PassContext) -> Model:
        """See ModelKind.load."""
        for name in _FILES:
            source = fetched["model"] / name
            if not source.is_file():
                raise ConfigError(f"{fetched['model']} has no {name}; an Acme program is {' and '.join(_FILES)}")
            shutil.copyfile(source, context.output_dir / name)
        return Model.from_dir("acme", context.output_dir)
