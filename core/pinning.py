"""Replaces what may move in the references of a workflow, such as labels, by what it means now: once a run.

Between the moment that a step's key is made and the moment that its job fetches, a label may move; a version does not.
What goes on with a run, or looks at it again, takes the meanings that the run's record tells.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from drupe.core.digests import digest_of
from drupe.core.errors import ConfigError
from drupe.core.sources import find_source
from drupe.core.specs import ModelSourceSpec

if TYPE_CHECKING:
    from drupe.core.registry import Registry

__all__ = ["Pins"]


class Pins:
    """The references of one run, pinned. Safe to use from several threads."""

    def __init__(self, registry: Registry, folder: Path, known: Iterable[Mapping[str, Any]] = ()) -> None:
        """folder: the workflow's. known: what `moved` gave where the run began; it is not asked again."""
        self._registry = registry
        self._folder = folder
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {}
        self._moved: list[dict[str, Any]] = []
        self._recorded = {digest_of(one["reference"]): one["means"] for one in known}
        specs = [cast(ModelSourceSpec, entry.spec) for entry in registry.of("drupe_model_sources")]
        self._types = {name.lower() for spec in specs for name in spec.resource_types}
        self._schemes = {scheme for spec in specs for scheme in spec.schemes if scheme}

    def pinned(self, value: Any) -> Any:
        """Return a part of a workflow with its references pinned. Raises ConfigError, HostError."""
        if isinstance(value, list):
            return [self.pinned(item) for item in value]
        if isinstance(value, Mapping):
            if str(value.get("type", "")).lower() in self._types:
                return self._reference(value)
            return {key: self.pinned(item) for key, item in value.items()}
        if isinstance(value, str) and value.partition("://")[0].lower() in self._schemes and "://" in value:
            return self._reference(value)
        return value

    def moved(self) -> list[dict[str, Any]]:
        """Return what was replaced, as the manifest shows it: [{"reference": …, "means": …}]."""
        with self._lock:
            return list(self._moved)

    def _reference(self, value: Any) -> Any:
        key = digest_of(value)
        with self._lock:
            if key not in self._known:
                try:
                    source = find_source(self._registry, value, self._folder)
                except ConfigError:
                    # An address that is no reference, or one that is told where it is read.
                    self._known[key] = value
                    return value
                recorded = self._recorded.get(digest_of(_shown(value)))
                found = source.pinned(value, self._folder) if recorded is None else _meant(value, recorded)
                self._known[key] = found
                if found != value:
                    self._moved.append({"reference": _shown(value), "means": _shown(found)})
            return self._known[key]


def _shown(reference: Any) -> Any:
    """Return a reference without what only says how to reach it."""
    if not isinstance(reference, Mapping):
        return reference
    return {key: value for key, value in reference.items() if not isinstance(value, Mapping)}


def _meant(reference: Any, shown: Any) -> Any:
    """Return what a reference means, given as `_shown` tells it, with what says how to reach it."""
    if not isinstance(reference, Mapping):
        return shown
    return {**shown, **{key: value for key, value in reference.items() if isinstance(value, Mapping)}}
