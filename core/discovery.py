"""Goes through the entry points: policy first, then the index on disk, and only then, where it must, an import."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from drupe.core.plugin_index import GROUP, EntryPoint, PluginIndex
from drupe.core.policy import Policy

if TYPE_CHECKING:
    from drupe.core.specs import Spec

__all__ = ["Discovered", "discover", "indexed_commands", "reload_plugin"]

Discovered = tuple[EntryPoint, str, str, Mapping[str, Any]]
"""A plugin's entry point, its status, why it is not active, and its record: {} where there is none."""


def discover(rules: Policy, *, again: bool = False) -> list[Discovered]:
    """Return every installed plugin as the policy and its record leave it.

    again: import once more what was found broken. Of a plugin that the policy forbids nothing is imported; its record
    is what an earlier process wrote.
    """
    index = PluginIndex()
    decided = [(point, *_decide(rules, point)) for point in index.group(GROUP)]
    allowed = [point for point, status, _ in decided if status == "active"]
    _load_stale(index, allowed, again)
    index.save()
    opens = {hook for point in allowed for hook in _opens(index, point)}
    found: list[Discovered] = []
    for point, status, why in decided:
        record: Mapping[str, Any] = index.records.get(point.key, {})
        if status == "active":
            status, why = record["status"], record["error"]
            closed = [hook for hook in record["foreign"] if hook not in opens]
            if status == "active" and closed:
                status, why = "broken", f"no plugin that is in use opens the hook {closed[0]!r}"
        found.append((point, status, why, record))
    return found


def indexed_commands(rules: Policy) -> list[tuple[EntryPoint, Mapping[str, Any]]] | None:
    """Return the commands that plugins contribute, from the index alone; None where it is not up to date."""
    index = PluginIndex()
    found: list[tuple[EntryPoint, Mapping[str, Any]]] = []
    for point in index.group(GROUP) if index.unchanged else ():
        if _decide(rules, point)[0] != "active":
            continue
        record = index.record(point)
        if record is None:
            return None
        if record["status"] == "active":
            found += ((point, command) for command in record["hooks"].get("drupe_commands", ()))
    return found if index.unchanged else None


def reload_plugin(point: EntryPoint, rules: Policy) -> Mapping[str, Any]:
    """Import a plugin, whatever the index says of it, and return its new record."""
    index = PluginIndex()
    known = index.record(point)
    if known is not None and known["status"] == "active" and point.value.partition(":")[0] in sys.modules:
        return known  # This process imported it a moment ago; a second import would see less.
    others = [p for p in index.group(GROUP) if p != point and _decide(rules, p)[0] == "active"]
    _load(index, [point], others)
    index.save()
    return index.records[point.key]


def _decide(rules: Policy, point: EntryPoint) -> tuple[str, str]:
    return rules.decide(point.distribution, point.version, point.name)


def _load_stale(index: PluginIndex, allowed: list[EntryPoint], again: bool) -> None:
    """Import the plugins whose record is absent or outdated, and write new ones."""
    usable = {point.key: index.record(point) for point in allowed}
    opens = {hook for record in usable.values() if record for hook in record["opens"]}
    stale = [point for point in allowed if _is_stale(usable[point.key], opens, again)]
    if stale:
        _load(index, stale, [point for point in allowed if point not in stale])


def _is_stale(record: Mapping[str, Any] | None, opens: set[str], again: bool) -> bool:
    if record is None:
        return True
    # A hook that was unknown when the plugin was looked at may have been opened by another since.
    return bool(opens & set(record["unknown"])) or (again and record["status"] == "broken")


def _load(index: PluginIndex, points: list[EntryPoint], others: list[EntryPoint]) -> None:
    from drupe.core.plugin_loading import PluginLoader

    loader = PluginLoader()
    for other in others:
        loader.open(_opened(_opens(index, other)))
    # Every hook must be open before the first plugin is asked, whatever their order.
    for point in points:
        loader.open(loader.opened_by(point))
    for point in points:
        index.put(point, loader.record(point))


def _opens(index: PluginIndex, point: EntryPoint) -> Mapping[str, str]:
    record = index.records.get(point.key)
    return record["opens"] if record and record["status"] == "active" else {}


def _opened(hooks: Mapping[str, str]) -> dict[str, type[Spec]]:
    from drupe.core.guarded_import import PluginImportError, import_guarded

    found: dict[str, type[Spec]] = {}
    for name, target in hooks.items():
        try:
            found[name] = import_guarded(target)
        except PluginImportError:
            continue  # Something that the opener needs is gone; its hook is unknown until it is back.
    return found
