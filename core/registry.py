"""Finds plugins and resolves names to the classes behind them, on first use."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from drupe.core.errors import PluginError
from drupe.core.hookspecs import ENTRY_POINT_GROUP
from drupe.core.specs import SPEC_TYPES, Spec

__all__ = ["Plugin", "Registered", "Registry", "get_registry"]


@dataclass(frozen=True)
class Plugin:
    """A plugin: entry point name, module, the distribution that provides it, and how it fares.

    status: active | blocked | not allowed | incompatible | broken.
    """

    name: str
    module: str
    distribution: str
    version: str
    status: str = "active"
    error: str = ""


@dataclass(frozen=True)
class Registered:
    """A spec and the plugin that contributed it."""

    hook: str
    spec: Spec
    plugin: Plugin


@dataclass
class Registry:
    """What the installed plugins contribute."""

    plugins: list[Plugin] = field(default_factory=list)
    entries: list[Registered] = field(default_factory=list)
    _classes: dict[tuple[str, str], Any] = field(default_factory=dict)

    @classmethod
    def discover(cls, policy: Mapping[str, Any] | None = None) -> Registry:
        """Read the entry points of group `drupe` and ask each module for its specs."""
        registry = cls()
        modules = []
        for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
            dist = point.dist
            plugin = Plugin(point.name, point.value, dist.name if dist else "?", dist.version if dist else "?")
            modules.append((plugin, importlib.import_module(point.value)))
            registry.plugins.append(plugin)
        # A plugin may open hooks of its own (search opens drupe_samplers) that others contribute to.
        hooks = [*SPEC_TYPES, *(h for _, m in modules if hasattr(m, "drupe_hookspecs") for h in m.drupe_hookspecs())]
        for plugin, module in modules:
            for hook in hooks:
                function = getattr(module, hook, None)
                if function is not None:
                    registry.add(hook, function(), plugin)
        return registry

    def add(self, hook: str, specs: Iterable[Spec], plugin: Plugin) -> None:
        """Register specs that a hook returned."""
        self.entries.extend(Registered(hook, spec, plugin) for spec in specs)

    def of(self, hook: str) -> list[Registered]:
        """Return everything contributed through `hook`."""
        return [entry for entry in self.entries if entry.hook == hook]

    def find(self, hook: str, name: str) -> Registered | None:
        """Return the entry with that name or alias, matched without case, or None."""
        wanted = name.lower()
        for entry in self.of(hook):
            if wanted == entry.spec.name.lower() or wanted in (alias.lower() for alias in entry.spec.aliases):
                return entry
        return None

    def get(self, hook: str, name: str) -> Registered:
        """Return the entry with that name or alias. Raises PluginError with the nearest valid name."""
        entry = self.find(hook, name)
        if entry is None:
            names = [e.spec.name for e in self.of(hook)]
            near = difflib.get_close_matches(name, names, n=1)
            what = hook.removeprefix("drupe_").replace("_", " ").rstrip("s")
            raise PluginError(
                f"no {what} named {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"installed: {names}")
            )
        return entry

    def resolve(self, entry: Registered) -> Any:
        """Import the spec's target and return it. Raises PluginError naming the plugin and the cause."""
        key = (entry.hook, entry.spec.target)
        if key not in self._classes:
            module, _, attribute = entry.spec.target.partition(":")
            try:
                self._classes[key] = getattr(importlib.import_module(module), attribute)
            except Exception as error:
                raise PluginError(
                    f"{entry.spec.name} of plugin {entry.plugin.name} ({entry.plugin.distribution}"
                    f" {entry.plugin.version}) can't be loaded from {entry.spec.target}: {error}"
                ) from error
        return self._classes[key]

    def create(self, hook: str, name: str, *args: Any, **kwargs: Any) -> Any:
        """Resolve `name` and construct it with its spec first."""
        entry = self.get(hook, name)
        return self.resolve(entry)(entry.spec, *args, **kwargs)


_registry: Registry | None = None


def get_registry(policy: Mapping[str, Any] | None = None) -> Registry:
    """Return the process's registry, discovering plugins on first use."""
    global _registry
    if _registry is None:
        _registry = Registry.discover(policy)
    return _registry
