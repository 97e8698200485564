"""Imports one plugin module, asks its hooks, and finds everything that is wrong with it before anything uses it.

What comes of it is a record for the plugin index: what the plugin contributes, which hooks it observes and opens, how
it fares, and which files that depends on. Nothing that a plugin does while it is imported or asked ends the process.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from types import ModuleType
from typing import Any

import pluggy

from drupe.core import hookspecs
from drupe.core.guarded_import import PluginImportError, import_guarded, in_words, shortened
from drupe.core.plugin_index import EntryPoint, file_state
from drupe.core.specs import API_VERSION, OLDEST_API_VERSION, SPEC_TYPES, Spec

__all__ = ["HEAVY", "PluginLoader", "unknown_hooks"]

HEAVY = frozenset(
    {"datasets", "jax", "onnx", "onnxruntime", "onnxruntime_genai", "optuna", "peft", "tensorflow", "torch"}
    | {"transformers"}
)
"""Libraries that cost seconds to import; a plugin module imports none of them."""
_OPENS = "drupe_hookspecs"


class _Problem(Exception):
    """Why a plugin can't be used; status is what it is marked with."""

    def __init__(self, message: str, status: str = "broken") -> None:
        super().__init__(message)
        self.status = status


class PluginLoader:
    """Loads plugins into a pluggy manager, one at a time, so that the fault of one is not the fault of all.

    specs_module holds the hookspecs; renamed maps a deprecated hook to the one that took its place.
    """

    def __init__(
        self, specs_module: ModuleType = hookspecs, renamed: Mapping[str, str] = hookspecs.RENAMED_HOOKS
    ) -> None:
        self.manager = pluggy.PluginManager("drupe")
        self.manager.add_hookspecs(specs_module)
        self.types: dict[str, type[Spec]] = dict(SPEC_TYPES)
        self._renamed = renamed
        self._modules: dict[str, Any] = {}
        self._warnings: dict[str, list[str]] = {}

    def open(self, hooks: Mapping[str, type[Spec]]) -> None:
        """Add hooks that a plugin opened: hook name → the spec type that it returns."""
        for name, kind in hooks.items():
            self.types[name] = kind
            if not _has_spec(self.manager, name):
                namespace = type("opened", (), {name: staticmethod(hookspecs.hookspec(_contributing_hook(name)))})
                self.manager.add_hookspecs(namespace)

    def take(self, module: ModuleType) -> None:
        """Use a module that is there already under its name, instead of importing it."""
        self._modules[module.__name__] = module

    def opened_by(self, point: EntryPoint) -> Mapping[str, type[Spec]]:
        """Return the hooks that a plugin opens, {} where it opens none or can't be asked; `record` tells why."""
        try:
            module = self._import(point)
            function = getattr(module, _OPENS, None)
            if function is None or not hasattr(function, "drupe_impl"):
                return {}
            hooks = _asked(_OPENS, function)
        except _Problem:
            return {}
        usable = isinstance(hooks, Mapping) and all(
            isinstance(n, str) and isinstance(k, type) and issubclass(k, Spec) for n, k in hooks.items()
        )
        return dict(hooks) if usable else {}

    def record(self, point: EntryPoint) -> dict[str, Any]:
        """Import a plugin, ask its contributing hooks, and return what came of it as JSON data. Never raises."""
        record: dict[str, Any] = {
            "status": "active",
            "error": "",
            "warnings": [],
            "hooks": {},
            "observers": [],
            "opens": {},
            "foreign": [],
            "unknown": [],
            "files": {},
        }
        try:
            module = self._import(point)
            record["warnings"] += self._warnings.get(point.value, ())
            record["warnings"] += self.register(module, point)
            self._ask(module, point, record)
        except _Problem as problem:
            record["status"], record["error"] = problem.status, str(problem)
        record["files"] = _files_of(point)
        return record

    def register(self, module: Any, point: EntryPoint) -> list[str]:
        """Register a module with pluggy and return its deprecation warnings. Raises _Problem where pluggy refuses."""
        if self.manager.is_registered(module):
            return []
        self._check_marks(module)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                self.manager.register(module, name=point.key)
            except pluggy.PluginValidationError as error:
                raise _Problem(self._explain_arguments(module) or " ".join(str(error).split())) from error
        return [str(warning.message) for warning in caught]

    def observe(self, point: EntryPoint) -> str | None:
        """Import a plugin so that its observers are called. Returns what is wrong, or None."""
        try:
            self.register(self._import(point), point)
        except _Problem as problem:
            return str(problem)
        return None

    # What is checked

    def _import(self, point: EntryPoint) -> Any:
        if point.value not in self._modules:
            before = set(sys.modules)
            try:
                self._modules[point.value] = import_guarded(point.value)
                self._warnings[point.value] = _heavy_warnings(before)
            except PluginImportError as error:
                raise _Problem(str(error)) from error
        return self._modules[point.value]

    def _check_marks(self, module: Any) -> None:
        for name in dir(module):
            function = inspect.getattr_static(module, name, None)
            if _has_spec(self.manager, name) and not callable(function):
                raise _Problem(f"{name} is a {type(function).__name__}; expected a function, marked with @hookimpl")
            if not inspect.isfunction(function) or hasattr(function, "drupe_spec"):
                continue
            if _has_spec(self.manager, name) and not hasattr(function, "drupe_impl"):
                raise _Problem(f"{name} is not marked as a hook; put @hookimpl above it (from drupe import hookimpl)")
            options = getattr(function, "drupe_impl", None) or {}
            if options.get("wrapper") or options.get("hookwrapper"):
                raise _Problem(f"{name} is a hook wrapper; drupe's hooks have none, return the specs themselves")

    def _explain_arguments(self, module: Any) -> str | None:
        for name in dir(module):
            function = inspect.getattr_static(module, name, None)
            if not (inspect.isfunction(function) and hasattr(function, "drupe_impl") and _has_spec(self.manager, name)):
                continue
            spec = getattr(self.manager.hook, name).spec
            taken = list(inspect.signature(function).parameters)
            for argument in taken:
                if argument not in spec.argnames:
                    expected = f"it has {', '.join(spec.argnames)}" if spec.argnames else "it takes no arguments"
                    near = difflib.get_close_matches(argument, spec.argnames, n=1)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    return f"{name}({', '.join(taken)}): the hook has no argument {argument!r}; {expected}{hint}"
        return None

    def _ask(self, module: Any, point: EntryPoint, record: dict[str, Any]) -> None:
        for caller in sorted(self.manager.get_hookcallers(module) or (), key=lambda c: c.name):
            impl = next(i for i in caller.get_hookimpls() if i.plugin is module)
            if not caller.has_spec():
                if not impl.optionalhook:
                    record["unknown"].append(caller.name)
            elif caller.name == _OPENS:
                record["opens"] = _opened(_asked(_OPENS, impl.function), caller.name)
            elif self._renamed.get(caller.name, caller.name) in self.types:
                hook = self._renamed.get(caller.name, caller.name)
                specs = self._specs(hook, caller.name, _asked(caller.name, impl.function))
                if hook not in SPEC_TYPES:
                    record["foreign"].append(hook)
                # Recorded before they are checked, so that asking for one by name tells what is wrong with the plugin.
                record["hooks"].setdefault(hook, []).extend(_written(caller.name, spec) for spec in specs)
                _check_specs(caller.name, specs)
            else:
                record["observers"].append(caller.name)
        if record["unknown"]:
            raise _Problem(unknown_hooks(record["unknown"], self._known()))

    def _known(self) -> list[str]:
        return [name for name in vars(self.manager.hook) if _has_spec(self.manager, name)]

    def _specs(self, hook: str, called: str, returned: Any) -> list[Spec]:
        kind = self.types[hook]
        specs = list(_iterated(called, returned, kind))
        for spec in specs:
            if type(spec) is not kind:
                found = f"a {type(spec).__name__} ({spec.name})" if isinstance(spec, Spec) else repr(spec)
                raise _Problem(f"{called} returned {shortened(found)} in its list; expected {kind.__name__} objects")
        return specs


def unknown_hooks(unknown: Iterable[str], known: Iterable[str]) -> str:
    """Return the message about hooks that nothing declares."""
    names = sorted(known)
    parts = []
    for hook in unknown:
        near = difflib.get_close_matches(hook, names, n=1)
        parts.append(f"there is no hook {hook!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return "; ".join(parts) + f" (hooks: {', '.join(names)})"


def _asked(name: str, function: Callable[[], Any]) -> Any:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return function()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        newer = "; it may be written for a newer drupe" if "unexpected keyword argument" in str(error) else ""
        raise _Problem(f"{name} raised {in_words(error)}{newer}") from error


def _iterated(called: str, returned: Any, kind: type[Spec]) -> Iterator[Any]:
    if returned is None or isinstance(returned, (str, bytes, Mapping)) or not isinstance(returned, Iterable):
        raise _Problem(f"{called} returned {shortened(repr(returned))}; expected a list of {kind.__name__}")
    try:
        yield from returned
    except Exception as error:
        raise _Problem(f"{called} raised {in_words(error)}") from error


def _check_specs(called: str, specs: Iterable[Spec]) -> None:
    seen: dict[str, str] = {}
    for spec in specs:
        if spec.api > API_VERSION:
            message = f"{spec.name} needs plugin API {spec.api}; this drupe has {API_VERSION}: upgrade drupe"
            raise _Problem(message, "incompatible")
        if spec.api < OLDEST_API_VERSION:
            message = (
                f"{spec.name} was written for plugin API {spec.api}; this drupe has {OLDEST_API_VERSION} and newer"
            )
            raise _Problem(f"{message}: upgrade the plugin", "incompatible")
        for name in {spec.name.lower(), *(alias.lower() for alias in spec.aliases)}:
            if name in seen:
                raise _Problem(f"{called} declares the name {name!r} twice ({seen[name]} and {spec.name})")
            seen[name] = spec.name


def _opened(returned: Any, called: str) -> dict[str, str]:
    hooks: dict[str, str] = {}
    if not isinstance(returned, Mapping):
        raise _Problem(f"{called} returned {shortened(repr(returned))}; expected a mapping of hook name to spec type")
    for name, kind in returned.items():
        if not (isinstance(kind, type) and issubclass(kind, Spec)) or not str(name).isidentifier():
            raise _Problem(f"{called} opens {name!r} with {shortened(repr(kind))}; expected a name and a Spec type")
        hooks[name] = f"{kind.__module__}:{kind.__qualname__}"
    return hooks


def _written(called: str, spec: Spec) -> dict[str, Any]:
    """A spec as the index holds it: what differs from the defaults."""
    data = spec.to_json()
    for field in fields(spec):
        value = getattr(spec, field.name)
        if field.name not in ("name", "target") and (value == field.default or (not value and value != 0)):
            data.pop(field.name)
    try:
        json.dumps(data, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _Problem(f"{called}: {spec.name} can't be written as JSON: {error}") from error
    return data


def _contributing_hook(name: str) -> Callable[[], Any]:
    def hook() -> Any:
        raise NotImplementedError

    hook.__name__ = hook.__qualname__ = name
    return hook


def _has_spec(manager: pluggy.PluginManager, name: str) -> bool:
    caller = getattr(manager.hook, name, None)
    return isinstance(caller, pluggy.HookCaller) and caller.has_spec()


def _heavy_warnings(before: set[str]) -> list[str]:
    heavy = sorted(HEAVY & (set(sys.modules) - before))
    if not heavy:
        return []
    return [f"imports {', '.join(heavy)} when it is discovered; import inside the function that needs it"]


def _files_of(point: EntryPoint) -> dict[str, Any]:
    """The files that a record depends on: the plugin's module and what it imports from its own package."""
    from drupe.core.introspect import module_source

    name = point.value.partition(":")[0]
    package = name.rpartition(".")[0]
    paths = set()
    for loaded, module in list(sys.modules.items()):
        if loaded == name or (package and (loaded == package or loaded.startswith(f"{package}."))):
            paths.add(getattr(module, "__file__", None))
    with contextlib.suppress(LookupError):
        paths.add(str(module_source(name)))
    return {path: state for path in sorted(filter(None, paths)) if (state := file_state(path))}
