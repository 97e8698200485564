"""Checks an installed plugin: loads it anew, imports what it contributes, runs the contract kit on that."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from drupe.core.discovery import reload_plugin
from drupe.core.errors import PluginError
from drupe.core.plugin_index import GROUP, EntryPoint
from drupe.core.policy import Policy
from drupe.core.registry import Plugin, Registry

__all__ = ["Finding", "check_plugin"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked of a subject. outcome: ok, FAIL, or "not checked" with the reason in text."""

    outcome: Literal["ok", "FAIL", "not checked"]
    subject: str
    what: str
    text: str = ""


def check_plugin(registry: Registry, plugin: Plugin, *, run: bool = True) -> Iterator[Finding]:
    """Yield what was found. run: also run passes on tiny models. What the policy forbids is not imported here either.

    The kit needs pytest; without it, only what can be imported is checked.
    """
    if plugin.status in ("blocked", "not allowed"):
        yield Finding("not checked", str(plugin), plugin.status, plugin.error)
        return
    point = EntryPoint(GROUP, plugin.name, plugin.module, plugin.distribution, plugin.version)
    record = reload_plugin(point, Policy.current())
    if record["status"] != "active":
        yield Finding("FAIL", str(plugin), record["status"], record["error"])
        return
    yield Finding("ok", str(plugin), "loads")
    fresh = Registry.discover()
    for warning in record["warnings"]:
        yield Finding("FAIL", str(plugin), "is light to discover", warning)
    entries = [entry for entry in fresh.entries if _same(entry.plugin, plugin)]
    broken = []
    for entry in entries:
        what = f"{entry.hook.removeprefix('drupe_')} {entry.spec.name}"
        try:
            fresh.resolve(entry)
            fresh.find(entry.hook, entry.spec.name)
        except PluginError as error:
            yield Finding("FAIL", what, "can be loaded", str(error))
            broken.append(entry)
        else:
            yield Finding("ok", what, "can be loaded", entry.spec.target)
    if not entries and not record["observers"]:
        what = f"{plugin.module} has no function that is marked with @hookimpl and named like a hook (drupe_passes, …)"
        yield Finding("FAIL", str(plugin), "contributes something", what)
        return
    if importlib.util.find_spec("pytest") is None:
        yield Finding("not checked", str(plugin), "the contracts", "pytest is not installed; pip install 'drupe[test]'")
        return
    from drupe.core.testing.check import run_contracts

    # What can't be loaded would fail every case with the same words.
    loadable = [entry for entry in entries if entry not in broken]
    if loadable:
        yield from run_contracts(fresh, loadable, run=run)


def _same(one: Plugin, other: Plugin) -> bool:
    return (one.name, one.distribution) == (other.name, other.distribution)
