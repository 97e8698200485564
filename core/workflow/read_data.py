"""Reads `data_configs`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from drupe.core.errors import DrupeError
from drupe.core.sources import find_source
from drupe.core.workflow.configs import check_config
from drupe.core.workflow.findings import join, nearest, shown
from drupe.core.workflow.model import DataEntry
from drupe.core.workflow.reading import Reading

__all__ = ["read_data", "read_data_entry", "without_unused_data"]

_PARTS = ("train", "selection", "certification")
_LEFT_OUT: dict[str, Any] = {}
"""Stands where a data config was that nothing names."""


def without_unused_data(document: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """Leave out the data configs that no pass and no metric names, which nobody has to complete.

    The others keep their places in the list, by which faults are told.
    """
    entries = document.get("data_configs")
    if not isinstance(entries, list):
        return dict(document)
    reading.data_names = _names(entries)
    named = set(_texts([document.get("passes"), document.get("evaluators")]))
    unused = [name for name in dict.fromkeys(reading.data_names) if name not in named]
    for name in unused:
        path = join("data_configs", name)
        reading.findings.notice(path, f"data config {name!r}", "left out", "no pass and no metric names it")
    kept = [_LEFT_OUT if isinstance(e, dict) and e.get("name") in unused else e for e in entries]
    return {**document, "data_configs": kept}


def _names(entries: list[Any]) -> list[str]:
    return [e["name"] for e in entries if isinstance(e, dict) and isinstance(e.get("name"), str) and e["name"]]


def _texts(value: Any) -> Iterator[str]:
    """Every text inside a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def read_data(document: Mapping[str, Any], reading: Reading) -> dict[str, DataEntry]:
    """Return the data configs by name; the document comes from `without_unused_data`."""
    entries = document.get("data_configs") or []
    found: dict[str, DataEntry] = {}
    if not isinstance(entries, list):
        reading.findings.fault("data_configs", shown(entries), "a list of entries with a name")
        return found
    for index, entry in enumerate(entries):
        if entry is _LEFT_OUT:
            continue
        path = join("data_configs", index)
        if not isinstance(entry, dict):
            reading.findings.fault(path, shown(entry), "a mapping with a name and a type")
            continue
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            reading.findings.fault(join(path, "name"), "not given" if name is None else shown(name), "a name")
            continue
        if name in found:
            reading.findings.fault(join(path, "name"), f"{name!r} is the name of two data configs", "each name once")
            continue
        found[name] = read_data_entry(name, entry, join("data_configs", name), reading)
    return found


def read_data_entry(name: str, entry: Mapping[str, Any], path: str, reading: Reading) -> DataEntry:
    """Return one data config, checked against its container."""
    rest = {key: value for key, value in entry.items() if key not in ("name", "type")}
    split: Mapping[str, Any] = {}
    if isinstance(rest.get("split"), dict):
        split = _split(rest.pop("split"), join(path, "split"), reading)
    type_name = entry.get("type") or reading.catalogue.default("data")
    found = reading.look_up("data", type_name, join(path, "type"))
    _check_sources(rest, path, reading)
    if found is not None:
        registered, factory = found
        type_name = reading.registry.reference(registered)
        checked = check_config(factory.Config, rest, path, reading.findings)
        reading.check_references(factory.Config, rest, path)
        if checked.instance is not None:
            container = factory(registered.spec)
            reading.findings.add(container.check(checked.instance, reading.folder), path)
    return DataEntry(name, str(type_name), rest, split)


def _check_sources(rest: dict[str, Any], path: str, reading: Reading) -> None:
    """Files that are named by a typed reference need a source that serves its type."""
    group = rest.get("load_dataset_config")
    for owner, place in ((rest, path), (group, join(path, "load_dataset_config"))):
        files = owner.get("data_files") if isinstance(owner, dict) else None
        if isinstance(owner, dict) and isinstance(files, dict) and isinstance(files.get("type"), str):
            where = join(place, "data_files")
            types = [t.lower() for e in reading.registry.of("drupe_model_sources") for t in _types(e.spec)]
            if files["type"].lower() not in types:
                reading.find("sources", files["type"], join(where, "type"))
                continue
            try:
                source = find_source(reading.registry, files, reading.folder)
            except DrupeError as error:
                reading.findings.fault(where, str(error))
                continue
            reading.findings.add(source.check(files, reading.folder), where)


def _types(spec: Any) -> tuple[str, ...]:
    return tuple(getattr(spec, "resource_types", ()))


def _split(value: dict[str, Any], path: str, reading: Reading) -> Mapping[str, Any]:
    """Check {train, selection, certification, seed}: shares below 1, counts, or "rest" for one of them."""
    findings = reading.findings
    for key, amount in value.items():
        where = join(path, key)
        if key == "seed":
            if isinstance(amount, bool) or not isinstance(amount, int) or amount < 0:
                findings.fault(where, shown(amount), "a whole number of at least 0")
        elif key not in _PARTS:
            findings.fault(
                where,
                f"unknown key {key!r}",
                "train, selection, certification or seed",
                nearest(key, [*_PARTS, "seed"]),
            )
        elif not _is_amount(amount):
            findings.fault(where, shown(amount), 'a share between 0 and 1, a number of items, or "rest"')
    amounts = {key: value[key] for key in _PARTS if key in value}
    if not amounts:
        findings.fault(path, "no part is given", "train, selection or certification")
    if sum(1 for amount in amounts.values() if amount == "rest") > 1:
        findings.fault(path, '"rest" is given twice', "one part that takes the rest")
    shares = [amount for amount in amounts.values() if isinstance(amount, float)]
    if sum(shares) > 1 + 1e-9:
        findings.fault(path, f"the shares add up to {sum(shares):g}", "at most 1")
    return value


def _is_amount(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return value >= 0
    return value == "rest" or (isinstance(value, float) and 0 < value <= 1)
