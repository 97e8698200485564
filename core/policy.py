"""Which plugins may be loaded, decided before anything of them is imported.

Rules come from up to four places, and each can only narrow what the others leave: the machine's administrator
(/etc/drupe/policy.yaml, and the file that $DRUPE_POLICY names), the environment (DRUPE_NO_PLUGINS,
DRUPE_PLUGINS_ALLOW, DRUPE_PLUGINS_BLOCK), and the workflow's `plugins` section. All say the same things:

    autoload: false                   # nothing but what `allow` or `require` names; default true
    allow: ["their-drupe==1.2.*"]     # nothing but these
    block: ["other-*", "drupe:genai"] # never these
    require: ["their-drupe>=1.2"]     # the run needs these

An item is DISTRIBUTION, DISTRIBUTION:PLUGIN (the entry point's name), either with version specifiers behind it; `*`
stands for any text. What Drupe itself brings is always allowed unless it is blocked by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drupe.core.errors import ConfigError, Fault

__all__ = [
    "ADMIN_FILE",
    "BUILT_IN",
    "Item",
    "Policy",
    "Rules",
    "check_rules",
    "normalised",
    "output_rules",
    "workflow_rules",
]

ADMIN_FILE = Path("/etc/drupe/policy.yaml")
BUILT_IN = "drupe"
"""The distribution that brings the built-in plugins."""

_ITEM = re.compile(r"\s*([A-Za-z0-9*][A-Za-z0-9._*-]*)(?::([A-Za-z0-9_.*-]+))?\s*((?:[<>=!~].*)?)$")
_LISTS = ("allow", "block", "require")
_KEYS = ("autoload", *_LISTS)


@dataclass(frozen=True)
class Item:
    """DISTRIBUTION, perhaps :PLUGIN, perhaps version specifiers."""

    text: str
    distribution: str
    plugin: str | None = None
    specifiers: str = ""

    @classmethod
    def parse(cls, text: str) -> Item:
        """Read an item. Raises ValueError that says what is wrong with it."""
        match = _ITEM.match(text)
        if match is None:
            raise ValueError(f"{text!r} is no distribution name with version specifiers, like 'their-drupe==1.2.*'")
        name, plugin, specifiers = match.groups()
        if specifiers:
            from packaging.specifiers import InvalidSpecifier, SpecifierSet

            try:
                SpecifierSet(specifiers)
            except InvalidSpecifier:
                raise ValueError(f"{specifiers!r} in {text!r} are no version specifiers, like '==1.2.*'") from None
        return cls(text, normalised(name), plugin, specifiers)

    def names(self, distribution: str, plugin: str) -> bool:
        """Whether the item is about that plugin, whatever its version."""
        if not _alike(normalised(distribution), self.distribution):
            return False
        return self.plugin is None or _alike(plugin.lower(), self.plugin.lower())

    def holds(self, version: str, *, unknown: bool) -> bool:
        """Whether a version meets the specifiers; `unknown` where it can't be told."""
        if not self.specifiers:
            return True
        from packaging.specifiers import SpecifierSet
        from packaging.version import InvalidVersion, Version

        try:
            return SpecifierSet(self.specifiers).contains(Version(version), prereleases=True)
        except InvalidVersion:
            return unknown


@dataclass(frozen=True)
class Rules:
    """The rules of one place. allow None: no list was given."""

    source: str
    autoload: bool = True
    allow: tuple[Item, ...] | None = None
    block: tuple[Item, ...] = ()
    require: tuple[Item, ...] = ()

    @classmethod
    def of(cls, data: Any, source: str, path: str = "") -> Rules:
        """Read rules. Raises ConfigError with every fault."""
        faults = check_rules(data, path)
        if faults:
            raise ConfigError(f"{source}: " + "; ".join(map(str, faults)), faults)
        lists = {key: tuple(map(Item.parse, data.get(key) or ())) for key in _LISTS}
        allow = lists["allow"] if data.get("allow") is not None else None
        return cls(source, data.get("autoload", True), allow, lists["block"], lists["require"])

    def decide(self, distribution: str, version: str, plugin: str) -> tuple[str, str]:
        """Return ("active", "") or (status, why)."""
        for item in self.block:
            if item.names(distribution, plugin) and item.holds(version, unknown=True):
                return "blocked", f"{self.source} blocks {item.text}"
        if normalised(distribution) == BUILT_IN:
            return "active", ""
        allowed = self.allow
        if allowed is None:
            if self.autoload or _any(self.require, distribution, version, plugin):
                return "active", ""
            return "not allowed", f"{self.source} loads no plugin that it doesn't name (autoload: false)"
        if _any(allowed, distribution, version, plugin):
            return "active", ""
        listed = ", ".join(item.text for item in allowed) or "nothing"
        return "not allowed", f"{self.source} allows {listed}; this is {distribution} {version}"


@dataclass(frozen=True)
class Policy:
    """The rules of all places: a plugin is loaded only where every one of them lets it."""

    layers: tuple[Rules, ...] = ()

    @classmethod
    def current(cls, workflow: Mapping[str, Any] | None = None) -> Policy:
        """Return the policy of this process, with a workflow's `plugins` section. Raises ConfigError.

        An administrator's file that can't be read is an error, never an empty policy.
        """
        layers = [*_admin_layers(), *_environment_layers()]
        if workflow:
            layers.append(Rules.of(workflow, "the workflow's plugins section", "plugins"))
        return cls(tuple(layers))

    def decide(self, distribution: str, version: str, plugin: str) -> tuple[str, str]:
        """Return ("active", ""), or "blocked" or "not allowed" with the reason. Imports nothing of the plugin."""
        for rules in self.layers:
            status, why = rules.decide(distribution, version, plugin)
            if status != "active":
                return status, why
        return "active", ""

    @property
    def required(self) -> Iterator[tuple[Item, str]]:
        """Each required item and who requires it."""
        return ((item, rules.source) for rules in self.layers for item in rules.require)


def check_rules(data: Any, path: str = "plugins") -> list[Fault]:
    """Return every fault of a `plugins` section."""
    if not isinstance(data, Mapping):
        return [Fault(path, repr(data), "a mapping with autoload, allow, block, require")]
    faults = []
    for key, value in data.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in _KEYS:
            import difflib

            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            faults.append(
                Fault(where, f"unknown key {key!r}", ", ".join(_KEYS), f"did you mean {near[0]!r}?" if near else "")
            )
        elif key == "autoload":
            if not isinstance(value, bool):
                faults.append(Fault(where, repr(value), "true or false"))
        elif value is not None:
            faults += _list_faults(value, where)
    return faults


def output_rules(output: Path) -> Mapping[str, Any]:
    """Return the plugin rules of the workflow that made an output folder; none where its manifest names no workflow."""
    import json

    from drupe.core.results import MANIFEST

    try:
        named = json.loads((output / MANIFEST).read_text(encoding="utf-8"))["workflow_file"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    workflow = output / str(named)
    return workflow_rules(workflow) if workflow.is_file() else {}


def workflow_rules(path: Path) -> Mapping[str, Any]:
    """Return the `plugins` section of a workflow file, so that it holds before anything else of the file is read.

    A file that can't be read gives rules that load no plugin; reading it properly tells what is wrong.
    """
    from drupe.core.workflow.document import read_document

    try:
        section = read_document(path).get("plugins")
    except ConfigError:
        return {"autoload": False}
    if section is None:
        return {}
    return section if isinstance(section, Mapping) and not check_rules(section) else {"autoload": False}


def normalised(distribution: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _alike(name: str, pattern: str) -> bool:
    if "*" not in pattern:
        return name == pattern
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None


def _any(items: tuple[Item, ...], distribution: str, version: str, plugin: str) -> bool:
    return any(item.names(distribution, plugin) and item.holds(version, unknown=False) for item in items)


def _list_faults(value: Any, where: str) -> list[Fault]:
    if not isinstance(value, (list, tuple)):
        return [Fault(where, repr(value), "a list of distribution names")]
    faults = []
    for index, item in enumerate(value):
        try:
            if not isinstance(item, str):
                raise ValueError(f"{item!r} is no distribution name")
            Item.parse(item)
        except ValueError as error:
            faults.append(Fault(f"{where}.{index}", str(error)))
    return faults


def _admin_layers() -> list[Rules]:
    named = os.environ.get("DRUPE_POLICY")
    files = [path for path in (ADMIN_FILE,) if path.exists()]
    if named:
        files.append(Path(named).expanduser())
    layers = []
    for path in files:
        try:
            data = _read(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the plugin policy {path} can't be read, so nothing is loaded: {error}") from error
        layers.append(Rules.of(data if data is not None else {}, f"the policy {path}"))
    return layers


def _environment_layers() -> list[Rules]:
    layers = []
    if os.environ.get("DRUPE_NO_PLUGINS", "").lower() not in ("", "0", "false", "no"):
        layers.append(Rules("DRUPE_NO_PLUGINS (or --no-plugins)", autoload=False))
    for key in ("allow", "block"):
        variable = f"DRUPE_PLUGINS_{key.upper()}"
        text = os.environ.get(variable, "")
        if text.strip():
            # A comma also joins version specifiers; only one before a name separates items.
            items = [item for item in re.split(r";|,\s*(?=[A-Za-z*])", text) if item.strip()]
            layers.append(Rules.of({key: items}, variable))
    return layers


def _read(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
