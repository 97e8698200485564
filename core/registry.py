"""Finds plugins and resolves names to the classes behind them, on first use.

Discovery imports nothing that the policy forbids, and nothing at all of a plugin that the index on disk knows. A plugin
that is broken, blocked or incompatible never gets in the way of others; asking for something of it tells why it can't
be had.
"""

from __future__ import annotations

import difflib
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from drupe.core.discovery import discover
from drupe.core.errors import PluginError
from drupe.core.plugin_index import GROUP, EntryPoint
from drupe.core.policy import Policy, normalised
from drupe.core.specs import SPEC_TYPES, Spec

if TYPE_CHECKING:
    from drupe.core.plugin_loading import PluginLoader

__all__ = ["Plugin", "Registered", "Registry", "get_registry"]

Observer = tuple[str, Callable[..., Any], tuple[str, ...]]
"""Who observes, the function, and the names of its arguments."""

_log = logging.getLogger("drupe.plugins")


@dataclass(frozen=True)
class Plugin:
    """A plugin: entry point name, module, the distribution that provides it, and how it fares.

    status: active | blocked | not allowed | incompatible | broken. error: why it is not active. warnings: what its
    author should mend. observes: the observer hooks that it implements.
    """

    name: str
    module: str
    distribution: str
    version: str
    status: str = "active"
    error: str = ""
    warnings: tuple[str, ...] = ()
    observes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"plugin {self.name} ({self.distribution} {self.version})"


@dataclass(frozen=True)
class Registered:
    """A spec and the plugin that contributed it."""

    hook: str
    spec: Spec
    plugin: Plugin

    @property
    def qualified(self) -> str:
        """The name that stays clear where two distributions use the same: "distribution:Name"."""
        return f"{self.plugin.distribution}:{self.spec.name}"


class Registry:
    """What the installed plugins contribute. An empty one, as made here, has no plugins until `add` is called."""

    def __init__(self) -> None:
        self.plugins: list[Plugin] = []
        self._rules = Policy()
        self._retried = True
        self._types: dict[str, type[Spec] | str] = dict(SPEC_TYPES)
        self._records: list[tuple[Plugin, Mapping[str, Any]]] = []
        self._added: list[Registered] = []
        self._entries: dict[str, list[Registered]] = {}
        self._names: dict[str, dict[str, list[Registered]]] = {}
        self._classes: dict[tuple[str, str], Any] = {}
        self._observing: tuple[PluginLoader, dict[str, list[Observer]]] | None = None
        self._lock = threading.RLock()

    @classmethod
    def discover(cls, policy: Mapping[str, Any] | None = None) -> Registry:
        """Return what the installed plugins contribute, as far as the policy allows.

        policy: a workflow's `plugins` section, on top of the administrator's and the environment's. Raises ConfigError
        when a policy is malformed; a faulty plugin is marked and raises nothing here.
        """
        registry = cls()
        registry._rules = Policy.current(policy)
        registry._retried = False
        registry._fill()
        return registry

    def _fill(self, *, again: bool = False) -> None:
        self._records = []
        for point, status, error, record in discover(self._rules, again=again):
            plugin = Plugin(
                point.name,
                point.value,
                point.distribution,
                point.version,
                status,
                error,
                tuple(record.get("warnings", ())),
                tuple(record.get("observers", ())),
            )
            self._records.append((plugin, record))
            if status == "active":
                self._types.update(record["opens"])
        self.plugins = [plugin for plugin, _ in self._records]
        self._entries.clear()
        self._names.clear()

    @property
    def entries(self) -> list[Registered]:
        """Everything contributed through any hook."""
        return [entry for hook in self.hooks for entry in self.of(hook)]

    @property
    def hooks(self) -> list[str]:
        """The contributing hooks: Drupe's own and those that plugins opened."""
        return [*self._types, *(e.hook for e in self._added if e.hook not in self._types)]

    def add(self, hook: str, specs: Iterable[Spec], plugin: Plugin) -> None:
        """Register specs that a hook returned."""
        if plugin not in self.plugins:
            self.plugins.append(plugin)
        self._added += [Registered(hook, spec, plugin) for spec in specs]
        self._entries.pop(hook, None)
        self._names.pop(hook, None)

    def check_required(self) -> None:
        """Raise PluginError when a plugin that the policy requires is absent or not active, naming every one."""
        unmet = list(_unmet(self._rules, self.plugins))
        if unmet:
            raise PluginError("; ".join(unmet))

    def of(self, hook: str) -> list[Registered]:
        """Return everything contributed through `hook`."""
        if hook not in self._entries:
            added = [entry for entry in self._added if entry.hook == hook]
            self._entries[hook] = [*self._built(hook, active=True), *added]
        return list(self._entries[hook])

    def names(self) -> Iterator[tuple[Plugin, str, str]]:
        """Each (plugin, hook, name), of plugins that are not active as well, as far as it is known of them."""
        for plugin, record in self._records:
            for hook, specs in record.get("hooks", {}).items():
                for data in specs:
                    yield plugin, hook, data["name"]
        for entry in self._added:
            yield entry.plugin, entry.hook, entry.spec.name

    def _built(self, hook: str, *, active: bool) -> Iterator[Registered]:
        """The entries of plugins that are active, or of those that are not, from their records."""
        kind = self._types.get(hook)
        if kind is None:
            return
        if isinstance(kind, str):
            kind = self._types[hook] = self._import_type(hook, kind)
        for plugin, record in self._records:
            if (plugin.status == "active") is active:
                for data in record.get("hooks", {}).get(hook, ()):
                    yield Registered(hook, kind.from_json(data), plugin)

    def _import_type(self, hook: str, target: str) -> type[Spec]:
        from drupe.core.guarded_import import PluginImportError, import_guarded

        try:
            return cast("type[Spec]", import_guarded(target))
        except PluginImportError as error:
            raise PluginError(f"what comes through {hook} can't be read: {error}") from error

    def find(self, hook: str, name: str) -> Registered | None:
        """Return the entry with that name or alias, matched without case, or None.

        "distribution:Name" asks for that of one distribution. Raises PluginError where the name is ambiguous, or where
        the plugin that provides it can't be used, with the reason.
        """
        distribution, _, bare = name.rpartition(":")
        found = [e for e in self._named(hook, bare) if _of_distribution(e, distribution)]
        if len(found) > 1:
            owners = " and ".join(f"{e.plugin.distribution} {e.plugin.version}" for e in found)
            choices = " or ".join(repr(e.qualified) for e in found)
            raise PluginError(f"the {_what(hook)} {bare!r} is provided by {owners}; write {choices}")
        if found:
            return found[0]
        if not self._retried:
            self._retried = True
            if any(plugin.status == "broken" for plugin in self.plugins):
                # What kept a plugin from loading may be mended without a trace in its files: try it once more.
                self._fill(again=True)
                return self.find(hook, name)
        for entry in self._built(hook, active=False):
            if _of_distribution(entry, distribution) and bare.lower() in _names_of(entry.spec):
                plugin = entry.plugin
                raise PluginError(
                    f"the {_what(hook)} {bare!r} is provided by {plugin}, which is {plugin.status}: {plugin.error}"
                )
        return None

    def get(self, hook: str, name: str) -> Registered:
        """Return the entry with that name or alias. Raises PluginError with the nearest valid name."""
        entry = self.find(hook, name)
        if entry is None:
            names = {one.lower(): one for e in self.of(hook) for one in (e.spec.name, *e.spec.aliases)}
            near = difflib.get_close_matches(name.lower(), names, n=1)
            installed = ", ".join(sorted(e.spec.name for e in self.of(hook))) or "none"
            hint = f"did you mean {names[near[0]]!r}?" if near else f"installed: {installed}"
            unusable = self.unusable()
            raise PluginError(f"no {_what(hook)} named {name!r}; {hint}" + (f"; {unusable}" if unusable else ""))
        return entry

    def unusable(self) -> str:
        """Say which installed plugins can't be used and why; "" where all can. Any of them may hold a missing name."""
        return "; ".join(f"{p} is {p.status}: {p.error}" for p in self.plugins if p.status != "active")

    def reference(self, entry: Registered) -> str:
        """Return the shortest name by which `get` finds that entry, here and where the same plugins are installed."""
        return entry.spec.name if len(self._named(entry.hook, entry.spec.name)) == 1 else entry.qualified

    def resolve(self, entry: Registered) -> Any:
        """Import the spec's target and return it. Raises PluginError naming the plugin and the cause."""
        from drupe.core.guarded_import import PluginImportError, import_guarded

        key = (entry.hook, entry.spec.target)
        if key not in self._classes:
            who = f"{entry.spec.name} of {entry.plugin}"
            try:
                found = import_guarded(entry.spec.target)
            except PluginImportError as error:
                if error.broken:
                    raise PluginError(f"the {_what(entry.hook)} {who} is broken: {error}") from error
                raise PluginError(f"{who} can't be loaded: {error}{_unmet_hint(entry.spec)}") from error
            fault = _base_fault(entry.hook, found)
            if fault:
                raise PluginError(f"{who}: the target {entry.spec.target} {fault}")
            for warning in entry.plugin.warnings:
                _log.warning("%s: %s", entry.plugin, warning)
            self._classes[key] = found
        return self._classes[key]

    def create(self, hook: str, name: str, *args: Any, **kwargs: Any) -> Any:
        """Resolve `name` and construct it with its spec first."""
        entry = self.get(hook, name)
        return self.resolve(entry)(entry.spec, *args, **kwargs)

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call the observers of `hook`. Only plugins that implement it are imported; what one raises is logged."""
        for plugin_name, function, names in self._observers(hook):
            try:
                function(**{name: arguments[name] for name in names})
            except KeyboardInterrupt:
                raise
            except BaseException:
                _log.exception("%s: its observer %s failed; the run goes on", plugin_name, hook)

    def _observers(self, hook: str) -> list[Observer]:
        observing = [p for p in self.plugins if p.status == "active" and hook in p.observes]
        if not observing:
            return []
        from drupe.core.plugin_loading import PluginLoader

        with self._lock:
            if self._observing is None:
                self._observing = (PluginLoader(), {})
            loader, known = self._observing
            if hook not in known:
                for plugin in observing:
                    problem = loader.observe(_point(plugin))
                    if problem:
                        _log.error("%s can't observe: %s", plugin, problem)
                named = {_point(plugin).key: str(plugin) for plugin in observing}
                impls = getattr(loader.manager.hook, hook).get_hookimpls()
                # pluggy calls the plugin that registered last first.
                known[hook] = [
                    (named[i.plugin_name], i.function, i.argnames) for i in reversed(impls) if i.plugin_name in named
                ]
            return known[hook]

    def _named(self, hook: str, name: str) -> list[Registered]:
        if hook not in self._names:
            names: dict[str, list[Registered]] = {}
            for entry in self.of(hook):
                for one in _names_of(entry.spec):
                    names.setdefault(one, []).append(entry)
            self._names[hook] = names
        return self._names[hook].get(name.lower(), [])


def _of_distribution(entry: Registered, distribution: str) -> bool:
    return not distribution or normalised(entry.plugin.distribution) == normalised(distribution)


def _names_of(spec: Spec) -> set[str]:
    return {spec.name.lower(), *(alias.lower() for alias in spec.aliases)}


def _point(plugin: Plugin) -> EntryPoint:
    return EntryPoint(GROUP, plugin.name, plugin.module, plugin.distribution, plugin.version)


def _what(hook: str) -> str:
    """A hook's subject in the singular."""
    words = hook.removeprefix("drupe_").replace("_", " ")
    for plural, singular in (("passes", "pass"), ("ies", "y"), ("s", "")):
        if words.endswith(plural):
            return words.removesuffix(plural) + singular
    return words


def _unmet(rules: Policy, plugins: Iterable[Plugin]) -> Iterable[str]:
    """Say of each required plugin that is not active why it is not."""
    for item, source in rules.required:
        named = [p for p in plugins if item.names(p.distribution, p.name)]
        if not named:
            yield f"{source} requires {item.text}, which is not installed; pip install '{item.text}'"
        elif not any(item.holds(p.version, unknown=False) for p in named):
            yield f"{source} requires {item.text}; installed is {named[0].distribution} {named[0].version}"
        else:
            for plugin in named:
                if plugin.status != "active":
                    yield f"{source} requires {item.text}, and {plugin} is {plugin.status}: {plugin.error}"


def _unmet_hint(spec: Spec) -> str:
    """Say which of a spec's requirements this environment does not meet."""
    from drupe.core.requirements import installed_version, unmet

    lacking = unmet(spec.requires, installed_version)
    return f"; it requires {', '.join(lacking)}: pip install {' '.join(map(repr, lacking))}" if lacking else ""


_BASES = {
    "drupe_passes": "drupe.core.passes:Pass",
    "drupe_data_containers": "drupe.core.data:DataContainer",
    "drupe_hosts": "drupe.core.hosts:Host",
    "drupe_accelerators": "drupe.core.accelerators:AcceleratorDevice",
    "drupe_runtimes": "drupe.core.runtimes:Runtime",
    "drupe_metrics": "drupe.core.metrics:Metric",
    "drupe_model_kinds": "drupe.core.sources:ModelKind",
    "drupe_model_sources": "drupe.core.sources:ModelSource",
}
"""Hook → the class that its targets derive from."""


def _base_fault(hook: str, found: Any) -> str | None:
    """Say what keeps a target from being what its hook promises."""
    if hook not in _BASES:
        return None if callable(found) else f"is a {type(found).__name__}, which can't be called"
    module, _, name = _BASES[hook].partition(":")
    # A target that never imported the base class's module can't derive from it.
    base = getattr(sys.modules.get(module), name, None)
    if isinstance(found, type) and base is not None and issubclass(found, base):
        config = getattr(found, "Config", None)
        if config is not None and not hasattr(config, "model_fields"):
            return (
                "has a Config that is no config; derive it from drupe.PassConfig, or from the base that fits its kind"
            )
        return None
    return f"is no subclass of drupe.{name}"


_registries: dict[str, Registry] = {}
_current: Registry | None = None


def get_registry(policy: Mapping[str, Any] | None = None) -> Registry:
    """Return the process's registry for a policy, discovering plugins on first use.

    policy: a workflow's `plugins` section; None: the one asked for last. Raises ConfigError for a malformed policy, and
    PluginError when a plugin that it requires is not there.
    """
    global _current
    if policy is None and _current is not None:
        return _current
    key = repr(sorted((policy or {}).items()))
    if key not in _registries:
        _registries[key] = Registry.discover(policy)
    _registries[key].check_required()
    _current = _registries[key]
    return _current
