"""Gives the workflow's `azureml_client` to the references that need one and name none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from drupe.core.errors import Fault

__all__ = ["told_once", "with_client"]

_CLIENT = "azureml_client"
_PLACES = ("input_model", "data_configs")
_ADDRESS = "azureml://"
_SHORT = re.compile(r"azureml:(?!//)([^:@/]*)(?::([^:@/]+)|@([^:@/]+))?")


def with_client(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with its client in the references of input model and data: an older file's inner `config`
    is part of the reference, and an address becomes a reference that can hold a client."""
    client = document.get(_CLIENT)
    return {
        key: _given(value, client, "models" if key == "input_model" else "data") if key in _PLACES else value
        for key, value in document.items()
    }


def told_once(faults: Iterable[Fault], document: Mapping[str, Any], places: Iterable[str] = ()) -> list[Fault]:
    """Return the faults with those of the workflow's client told where it is written, once, and not again for each
    system and reference that takes it over.

    places: what is still to be filled in; a client of which nothing is yet is no client that was forgotten.
    """
    found = list(faults)
    if document.get(_CLIENT) == {} and any(place.startswith(f"{_CLIENT}.") for place in places):
        found = [
            fault for fault in found if not (fault.path.startswith("systems.") and f"give {_CLIENT}" in fault.found)
        ]
    systems = document.get("systems")
    own = [
        f"systems.{name}."
        for name, entry in (systems if isinstance(systems, Mapping) else {}).items()
        if document.get(_CLIENT) and isinstance(entry, Mapping) and not entry.get(_CLIENT)
    ]
    moved: list[Fault] = []
    for fault in found:
        prefix = next((place for place in own if f"{fault.path}.".startswith(f"{place}{_CLIENT}.")), "")
        fault = replace(fault, path=fault.path.removeprefix(prefix))
        if fault not in moved:
            moved.append(fault)
    if not any(f"{fault.path}.".startswith(f"{_CLIENT}.") for fault in moved):
        return moved
    return [fault for fault in moved if not (fault.path.startswith(_PLACES) and f": {_CLIENT}" in fault.found)]


def _long(value: str, kind: str) -> str:
    """Return the short name of an asset, azureml:NAME:VERSION or azureml:NAME@LABEL, as an address."""
    found = _SHORT.fullmatch(value)
    if found is None or not (found[1] and (found[2] or found[3])):
        return value
    return f"{_ADDRESS}{kind}/{found[1]}/{f'versions/{found[2]}' if found[2] else f'labels/{found[3]}'}"


def _given(value: Any, client: Any, kind: str) -> Any:
    """kind: what a short name names: a model, or data."""
    if isinstance(value, str) and value.startswith("azureml:"):
        address = _long(value, kind)
        own = {_CLIENT: dict(client)} if isinstance(client, Mapping) else {}
        # One that can't be read is left to the source, which says what it expects.
        return {"type": "azureml_uri", "uri": address, **own} if own or not value.startswith(_ADDRESS) else value
    if isinstance(value, list):
        return [_given(item, client, kind) for item in value]
    if not isinstance(value, Mapping):
        return value
    if str(value.get("type", "")).lower().startswith("azureml_"):
        inner = value.get("config")
        flat = {key: item for key, item in value.items() if key != "config"} | dict(inner or {})
        if not isinstance(inner, (Mapping, type(None))):
            return value
        # An empty client is what the tutorial leaves for the reader to fill in: the workflow's own is meant.
        return {**flat, _CLIENT: flat.get(_CLIENT) or dict(client)} if isinstance(client, Mapping) else flat
    return {key: _given(item, client, kind) for key, item in value.items()}
