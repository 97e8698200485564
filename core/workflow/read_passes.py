"""Reads `passes` and `pass_flows`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from drupe.core.config import references
from drupe.core.workflow.configs import CheckedConfig, check_config, searchable_fields
from drupe.core.workflow.findings import join, listed, nearest, shown
from drupe.core.workflow.markers import candidates, find_markers
from drupe.core.workflow.model import DataEntry, PassAlternative, PassEntry
from drupe.core.workflow.read_data import read_data_entry
from drupe.core.workflow.reading import Reading

__all__ = ["Passes", "read_flows", "read_passes"]

_OWN_KEYS = ("type", "host", "evaluator")


@dataclass
class Passes:
    """The passes by name; data: data configs that were written inside a pass; unmarked: searchable values that the
    workflow does not mark; marked: whether it marks any."""

    entries: dict[str, PassEntry] = field(default_factory=dict)
    data: dict[str, DataEntry] = field(default_factory=dict)
    unmarked: list[str] = field(default_factory=list)
    marked: list[str] = field(default_factory=list)


def read_passes(document: Mapping[str, Any], evaluators: Mapping[str, Any], reading: Reading) -> Passes:
    """Return the passes, each alternative checked against the Config of its type."""
    result = Passes()
    entries = reading.findings.mapping(document.get("passes"), "passes", "a mapping of name to pass") or {}
    for name, value in entries.items():
        path = join("passes", name)
        if "." in name or not name:
            reading.findings.fault(path, f"the name {name!r}", "a name without dots, as parameters are pass.param")
        listed = value if isinstance(value, list) else [value]
        if not listed:
            reading.findings.fault(path, "an empty list", "a pass, or a list of alternatives")
        alternatives: list[PassAlternative] = []
        known: list[tuple[Any, str]] = []
        evaluator = None
        for index, item in enumerate(listed):
            where = join(path, index) if isinstance(value, list) else path
            if not isinstance(item, dict):
                reading.findings.fault(where, shown(item), "a mapping with a type")
                continue
            alternative, config = _alternative(name, item, where, reading, result)
            alternatives.append(alternative)
            same = next((at for other, at in known if config is not None and other == config), None)
            if same is not None:
                hint = "leave one of them out, or change what was to differ"
                reading.findings.fault(where, f"the same pass as {same}", "each alternative once", hint)
            known.append((config, where))
            evaluator = evaluator or _evaluator(item, evaluators, where, reading)
        if len(alternatives) > 1:
            result.marked.append(name)
        if alternatives:
            result.entries[name] = PassEntry(name, tuple(alternatives), evaluator)
    _check_conditions(result, reading)
    return result


def _evaluator(item: Mapping[str, Any], evaluators: Mapping[str, Any], path: str, reading: Reading) -> str | None:
    name = item.get("evaluator")
    if name is None:
        return None
    if not isinstance(name, str) or name not in evaluators:
        expected = listed(evaluators) or "an entry of evaluators"
        where = join(path, "evaluator")
        reading.findings.fault(where, f"no evaluator is named {name!r}", expected, nearest(str(name), evaluators))
        return None
    return name


def _alternative(
    name: str, item: dict[str, Any], path: str, reading: Reading, result: Passes
) -> tuple[PassAlternative, Any]:
    """Return an alternative, and what makes it the same as another: type, host, values after defaults, searches."""
    config = {key: value for key, value in item.items() if key not in _OWN_KEYS}
    host = item.get("host")
    if host is not None and (not isinstance(host, str) or host not in reading.system_names):
        names = reading.system_names
        expected = listed(names) or "an entry of systems"
        where = join(path, "host")
        reading.findings.fault(where, f"no system is named {host!r}", expected, nearest(str(host), names))
        host = None
    if host in reading.measuring:
        reading.tell_measuring(str(host), join(path, "host"))
        host = None
    found = reading.look_up("passes", item.get("type"), join(path, "type"))
    if found is None:
        result.marked.extend(join(name, ".".join(where)) for where, _ in find_markers(config))
        return PassAlternative(str(item.get("type") or ""), config, path, host), None
    registered, factory = found
    config = _with_named_data(name, factory.Config, config, path, reading, result)
    checked = check_config(factory.Config, config, path, reading.findings, search=True)
    _check_references(factory.Config, checked, path, reading)
    marked = [where for where, _ in find_markers(checked.values)]
    result.marked.extend(join(name, ".".join(where)) for where in marked)
    unmarked = [join(name, ".".join(where)) for where in searchable_fields(factory.Config) if where not in marked]
    result.unmarked.extend(entry for entry in unmarked if entry not in result.unmarked)
    type_name = reading.registry.reference(registered)
    same = (
        (type_name, host, checked.instance, list(find_markers(checked.values)))
        if checked.instance is not None
        else None
    )
    return PassAlternative(type_name, checked.values, path, host), same


def _with_named_data(
    name: str, config: Any, values: dict[str, Any], path: str, reading: Reading, result: Passes
) -> dict[str, Any]:
    """Give a data config that is written inside a pass a name of its own."""
    values = dict(values)
    for key, what in references(config).items():
        inner = values.get(key)
        if what != "data" or not isinstance(inner, dict) or "search" in inner:
            continue
        data_name = str(inner.get("name") or f"{name}_{key}")
        result.data[data_name] = read_data_entry(data_name, inner, join(path, key), reading)
        reading.data_names.append(data_name)
        values[key] = data_name
    return values


def _check_references(config: Any, checked: CheckedConfig, path: str, reading: Reading) -> None:
    """Every value that a reference may have, searched ones included."""
    reading.check_references(config, checked.plain, path)
    kinds = references(config)
    for where, marker in find_markers(checked.values):
        if len(where) == 1 and where[0] in kinds:
            for value in candidates(marker)[1:]:
                if isinstance(value, str):
                    reading.check_reference(kinds[where[0]], value, join(path, where[0]))


def _check_conditions(result: Passes, reading: Reading) -> None:
    """`when` names a searched value of a pass, or a pass with alternatives."""
    for name, entry in result.entries.items():
        for alternative in entry.alternatives:
            for where, marker in find_markers(alternative.config):
                place = join(join(alternative.where, ".".join(where)), "when")
                own = join(name, ".".join(where))
                for condition in marker.get("when", {}) if isinstance(marker, dict) else ():
                    # A parameter of the same pass may be named without its pass.
                    full = condition if condition in result.marked else join(name, condition)
                    others = [n for n in result.marked if n != own]
                    if full not in others:
                        expected = listed(others) or "a parameter that is searched"
                        hint = nearest(condition, others)
                        reading.findings.fault(join(place, condition), "is not searched", expected, hint)
                        continue
                    wrong, can = _never(marker["when"][condition], full, result)
                    if wrong:
                        found = f"{', '.join(map(shown, wrong))} is never a value of {full}"
                        reading.findings.fault(join(place, condition), found, listed(map(shown, can)))


def _never(wanted: Sequence[Any], full: str, result: Passes) -> tuple[list[Any], list[Any]]:
    """Return the wanted values that a searched parameter, or a pass with alternatives, can't have, and what it can."""
    if full in result.entries:
        types: list[Any] = [alternative.type for alternative in result.entries[full].alternatives]
        known = [*(t.lower() for t in types), *range(len(types))]
        return [v for v in wanted if (v.lower() if isinstance(v, str) else v) not in known], types
    name, _, path = full.partition(".")
    can: list[Any] = []
    for alternative in result.entries[name].alternatives:
        for where, marker in find_markers(alternative.config):
            if ".".join(where) != path or not isinstance(marker, dict):
                continue
            if isinstance(marker["search"], dict):
                # Of a range, which of its values are wanted is not listed.
                return [], []
            can += [value for value in marker["search"] if value not in can]
    return ([value for value in wanted if value not in can] if can else []), can


def read_flows(
    document: Mapping[str, Any], passes: Mapping[str, PassEntry], reading: Reading
) -> tuple[tuple[str, ...], ...]:
    """Return the chains of passes: those of `pass_flows`, or all passes in order."""
    flows = document.get("pass_flows")
    if flows is None:
        return (tuple(passes),)
    if not isinstance(flows, list) or not flows:
        reading.findings.fault("pass_flows", shown(flows), "a list of lists of pass names")
        return (tuple(passes),)
    written = document.get("passes")
    names = list(written) if isinstance(written, dict) else []
    found: list[tuple[str, ...]] = []
    for index, flow in enumerate(flows):
        path = join("pass_flows", index)
        if not isinstance(flow, list) or not flow:
            reading.findings.fault(path, shown(flow), "a list of pass names")
            continue
        for position, name in enumerate(flow):
            where = join(path, position)
            if not isinstance(name, str) or name not in names:
                expected = listed(names)
                reading.findings.fault(where, f"no pass is named {name!r}", expected, nearest(str(name), names))
            elif name in flow[:position]:
                reading.findings.fault(where, f"{name!r} is in this flow twice", "each pass once")
        if tuple(flow) in found:
            reading.findings.fault(path, "the same flow is given twice", "each flow once")
        found.append(tuple(str(name) for name in flow))
    if len(found) > 1 and "flow" in names:
        reading.findings.fault("passes.flow", "the name 'flow'", "another name, as it stands for the choice of a flow")
    return tuple(found)
