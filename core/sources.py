"""The base classes of model sources and model kinds: how an `input_model` becomes a Model.

A source fetches a reference (a path, a hub name, a URL) into local files; a kind makes a Model of them. Both run in the
worker as one stored step; `identity` is light and tells, without fetching, whether the reference still means the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from drupe.core.config import PluginConfig
from drupe.core.context import JobContext
from drupe.core.errors import ConfigError, Fault
from drupe.core.model import Model, ModelInfo
from drupe.core.specs import ModelKindSpec, ModelSourceSpec

if TYPE_CHECKING:
    from drupe.core.registry import Registry

__all__ = ["ModelConfig", "ModelKind", "ModelSource", "find_source"]


class ModelConfig(PluginConfig):
    """Base of `input_model` configs, less `type`."""


class ModelSource:
    """Fetches what a reference names."""

    version: ClassVar[int] = 1

    def __init__(self, spec: ModelSourceSpec) -> None:
        self.spec = spec

    def serves(self, reference: str | Mapping[str, Any], workflow_dir: Path) -> bool:
        """Whether this source is the one for a reference that matches its schemes or types. Light."""
        return True

    def check(self, reference: str | Mapping[str, Any], workflow_dir: Path) -> Sequence[Fault]:
        """Return what can be known to be wrong without fetching. Light."""
        return ()

    def pinned(self, reference: str | Mapping[str, Any], workflow_dir: Path) -> str | Mapping[str, Any]:
        """Return the reference with what may move (a label) replaced by what it means now (a version).

        Asked once a run, so that what is keyed is what is fetched. Light. Raises ConfigError, HostError.
        """
        return reference

    def identity(self, reference: str | Mapping[str, Any], options: Mapping[str, Any], workflow_dir: Path) -> Any:
        """Return JSON data that changes whenever the fetched files would. Light: no download."""
        raise NotImplementedError

    def files(self, reference: str | Mapping[str, Any], workflow_dir: Path) -> Sequence[Path]:
        """Return the files and folders of this machine that `fetch` reads, so that other machines can be sent them."""
        return ()

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

    def rehearse(self, config: Any, fetched: Mapping[str, Path], context: JobContext) -> Model:
        """Make a small stand-in of the same architecture (two layers, random weights) for a rehearsal.

        The default is the model itself.
        """
        return self.load(config, fetched, context)


def find_source(registry: Registry, reference: str | Mapping[str, Any], workflow_dir: Path) -> ModelSource:
    """Return the source that serves a reference. Raises ConfigError when none does, naming what is installed.

    A mapping is matched by its "type"; a string by its URL scheme; one without a scheme goes to the first source of
    scheme "" whose `serves` says yes.
    """
    entries = registry.of("drupe_model_sources")
    if isinstance(reference, Mapping):
        wanted = str(reference.get("type", "")).lower()
        matching = [e for e in entries if wanted in (t.lower() for t in cast(ModelSourceSpec, e.spec).resource_types)]
        what = f"model references of type {reference.get('type')!r}"
    else:
        scheme = reference.split("://", 1)[0].lower() if "://" in reference else ""
        matching = [e for e in entries if scheme in cast(ModelSourceSpec, e.spec).schemes]
        what = f"{scheme}:// models" if scheme else f"the model {reference!r}"
    for entry in matching:
        source: ModelSource = registry.resolve(entry)(entry.spec)
        if source.serves(reference, workflow_dir):
            return source
    names = ", ".join(sorted(e.spec.name for e in entries)) or "none"
    raise ConfigError(f"no installed model source serves {what}; installed sources: {names}")
