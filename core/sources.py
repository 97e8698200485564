"""The base classes of model sources and model kinds: how an `input_model` becomes a Model.

A source fetches a reference (a path, a hub name, a URL) into local files; a kind makes a Model of them. Both run in the
worker as one stored step; `identity` is light and tells, without fetching, whether the reference still means the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from drupe.core.config import PluginConfig
from drupe.core.context import JobContext
from drupe.core.errors import Fault
from drupe.core.model import Model, ModelInfo

if TYPE_CHECKING:
    from drupe.core.specs import ModelKindSpec, ModelSourceSpec

__all__ = ["ModelConfig", "ModelKind", "ModelSource"]


class ModelConfig(PluginConfig):
    """Base of `input_model` configs, less `type`."""


class ModelSource:
    """Fetches what a reference names."""

    version: ClassVar[int] = 1

    def __init__(self, spec: ModelSourceSpec) -> None:
        self.spec = spec

    def check(self, reference: str | Mapping[str, Any], workflow_dir: Path) -> Sequence[Fault]:
        """Return what can be known to be wrong without fetching. Light."""
        return ()

    def identity(self, reference: str | Mapping[str, Any], options: Mapping[str, Any], workflow_dir: Path) -> Any:
        """Return JSON data that changes whenever the fetched files would. Light: no download."""
        raise NotImplementedError

    def fetch(
        self, reference: str | Mapping[str, Any], options: Mapping[str, Any], into: Path, context: JobContext
    ) -> Path:
        """Fetch the files and return the file or folder that holds them: below `into`, or where they lie already.

        options: revision, token and the like. Raises ConfigError (no such thing) or HostError (worth a retry).
        """
        raise NotImplementedError


class ModelKind:
    """Reads an `input_model` of one kind."""

    Config: ClassVar[type[ModelConfig]] = ModelConfig
    version: ClassVar[int] = 1

    def __init__(self, spec: ModelKindSpec) -> None:
        self.spec = spec

    def references(self, config: Any) -> Mapping[str, str | Mapping[str, Any]]:
        """Return what must be fetched, by role: {"model": reference, "adapter": reference, …}."""
        raise NotImplementedError

    def source_options(self, config: Any) -> Mapping[str, Any]:
        """Return options for the source: {"revision": …}."""
        return {}

    def info(self, config: Any, workflow_dir: Path) -> ModelInfo:
        """Return what can be known of the model without loading it (from a local config.json where there is one)."""
        return ModelInfo(self.spec.name)

    def consents(self, config: Any) -> Sequence[str]:
        """Return the consents that this config asks of the user ("remote-code", "pickle", "user-scripts")."""
        return ()

    def load(self, config: Any, fetched: Mapping[str, Path], context: JobContext) -> Model:
        """Write the model's files below `context.output_dir` and return the Model."""
        raise NotImplementedError
