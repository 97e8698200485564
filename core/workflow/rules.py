"""Applies a catalogue's rules for older parameters to one entry of a workflow, a notice for each change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from drupe.core.catalogue import Catalogue, ParameterUpgrades
from drupe.core.workflow.findings import Findings, join, shown

__all__ = ["apply_parameters", "apply_rules", "flatten"]

_ABSENT = object()


def apply_rules(
    section: str, entry: dict[str, Any], path: str, catalogue: Catalogue, findings: Findings
) -> dict[str, Any]:
    """Return an entry with its type and parameters as they are written today."""
    entry = dict(entry)
    type_name = entry.get("type")
    if not isinstance(type_name, str):
        return entry
    today = catalogue.current(section, type_name)
    if today is not None:
        findings.notice(join(path, "type"), type_name, today)
        older, current = (catalogue.parameters(section, name) for name in (type_name, today))
        # What holds for all types is told once.
        older = replace(older, noted={k: v for k, v in older.noted.items() if k not in current.noted})
        entry = apply_parameters(older, {**entry, "type": today}, path, findings)
        for key, value in older.defaults.items():
            if _get(entry, key) is _ABSENT:
                findings.notice(join(path, key), f"no {key}", f"{key}: {shown(value)}", f"the default of {type_name}")
                entry = _with(entry, key, value)
        type_name = today
    for key, other in catalogue.parameters(section, type_name).means.items():
        name = key.partition("=")[0]
        if _matches(entry, key) and _get(entry, name) is not None:
            findings.notice(join(path, "type"), f"{type_name} with {name}", other, f"{name} says that {other} is meant")
            type_name = entry["type"] = other
            break
    return apply_parameters(catalogue.parameters(section, type_name), entry, path, findings)


def apply_parameters(rules: ParameterUpgrades, entry: dict[str, Any], path: str, findings: Findings) -> dict[str, Any]:
    """Return an entry, or a mapping inside one, with its parameters as they are written today."""
    for key, reason in rules.noted.items():
        if _matches(entry, key):
            findings.notice(join(path, key), f"{key} {shown(_get(entry, key))}", reason)
    for key, reason in rules.dropped.items():
        if _matches(entry, key):
            name = key.partition("=")[0]
            findings.notice(join(path, name), name, "left out", reason)
            entry = _without(entry, name)
    for key, reason in rules.unprovided.items():
        if _matches(entry, key):
            name = key.partition("=")[0]
            if _get(entry, name) is None:
                findings.notice(join(path, name), f"{name} null", "left out", "nothing is asked for")
                entry = _without(entry, name)
                continue
            findings.fault(join(path, name), f"{reason}: nothing provides this", "", "known as: not yet", "missing")
            entry = _without(entry, name)
    for old, new in rules.renamed.items():
        value = _get(entry, old)
        if value is _ABSENT:
            continue
        if value is None:
            findings.notice(join(path, old), f"{old} null", "left out", f"{new} is what it is called, with its default")
            entry = _without(entry, old)
            continue
        now = _get(entry, new)
        if now is None or now == value:
            entry, now = _without(entry, new), _ABSENT
        if now is not _ABSENT:
            findings.fault(join(path, old), f"{old} is the older name of {new}, and both are given", "one of them")
            entry = _without(entry, old)
            continue
        findings.notice(join(path, old), old, new)
        entry = _with(_without(entry, old), new, value)
    return entry


def flatten(entry: Mapping[str, Any], key: str, path: str, findings: Findings) -> dict[str, Any]:
    """Return an entry with the keys of its inner mapping `key` one level up, as they are written today."""
    inner = entry.get(key)
    rest = {name: value for name, value in entry.items() if name != key}
    if key not in entry or not (isinstance(inner, dict) or inner is None):
        return dict(entry)
    for name, value in (inner or {}).items():
        if name in rest and rest[name] != value:
            findings.fault(join(join(path, key), name), f"{name} is also given one level up", "one of them")
        rest[name] = value
    if inner:
        findings.notice(join(path, key), f"{key}: {{{', '.join(inner)}}}", "the same keys one level up")
    return rest


def _matches(entry: Mapping[str, Any], key: str) -> bool:
    name, equals, wanted = key.partition("=")
    value = _get(entry, name)
    if value is None:
        return not equals or wanted == "null"
    return value is not _ABSENT and (not equals or str(value).lower() == wanted.lower())


def _get(entry: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        if not isinstance(entry, Mapping) or part not in entry:
            return _ABSENT
        entry = entry[part]
    return entry


def _without(entry: Mapping[str, Any], dotted: str) -> dict[str, Any]:
    first, _, rest = dotted.partition(".")
    result = dict(entry)
    if not rest:
        del result[first]
        return result
    inner = _without(result[first], rest)
    if inner:
        result[first] = inner
    else:
        # A block whose every key moved elsewhere is gone with them.
        del result[first]
    return result


def _with(entry: Mapping[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    first, _, rest = dotted.partition(".")
    inner = entry.get(first)
    if rest:
        value = _with(inner if isinstance(inner, Mapping) else {}, rest, value)
    return {**entry, first: value}
