"""Checks part of a workflow against the Config class that a plugin declares; every fault with its path."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from drupe.core.config import Range, search_range
from drupe.core.workflow.findings import Findings, join, listed, nearest, shown
from drupe.core.workflow.markers import DEFAULT, candidates, find_markers, misspelt_marker, normalised, replaced

__all__ = ["CheckedConfig", "check_config", "declared_range", "searchable_fields"]

_MOST_COMBINATIONS = 64
"""Combinations of searched values that are tried to find one that goes together."""
_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "null",
    "finite_number": "a finite number",
}
_LIMITS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


@dataclass(frozen=True)
class CheckedConfig:
    """values: as written, markers in full form. plain: with each marker's first value, as the Config takes it.
    instance: the Config of `plain`, None where it has faults."""

    values: Mapping[str, Any]
    plain: Mapping[str, Any]
    instance: Any


def check_config(
    config: type[BaseModel], values: Mapping[str, Any], path: str, findings: Findings, *, search: bool = False
) -> CheckedConfig:
    """Check values against a Config class; record each fault, and each notice of its validators, once.

    search: markers are allowed, and a list in a place whose type rejects lists is one (Olive's form).
    """
    values = _without_nulls(config, dict(values), path, findings)
    if search:
        values = _full_markers(config, _without_defaults(values), path, findings)
    markers = dict(find_markers(values)) if search else {}
    first = {where: candidates(marker)[0] for where, marker in markers.items()}
    plain = replaced(values, first) if search else values
    told: list[str] = []
    instance, errors = _validate(config, plain, told)
    if search:
        lists = [where for where in _list_places(errors, plain) if where not in markers]
        found = {where: _at(plain, where) for where in lists if _takes_some(config, plain, where)}
        if found:
            marked = {where: {"search": list(items)} for where, items in found.items()}
            return check_config(config, replaced(values, marked), path, findings, search=True)
    _report(config, errors, plain, path, findings, markers)
    for text in told:
        findings.notice(path, text)
    _check_candidates(config, plain, markers, path, findings)
    return CheckedConfig(values, plain, instance)


def declared_range(config: type[BaseModel], where: tuple[str, ...]) -> Range | None:
    """Return the search range that a Config declares for a field, given its path; None where it declares none."""
    owner = _owner(config, where[:-1])
    name = _field_name(owner, where[-1]) if owner else None
    return search_range(owner, name) if owner and name else None


def searchable_fields(config: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the paths of the fields of a Config, and of Configs inside it, that declare a search range."""
    found: list[tuple[str, ...]] = []
    for name, info in config.model_fields.items():
        if search_range(config, name) is not None:
            found.append((*prefix, name))
        inner = _model_in(info.annotation)
        if inner is not None and len(prefix) < 3:
            found.extend(searchable_fields(inner, (*prefix, name)))
    return found


def _without_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_defaults(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value != DEFAULT
    }


def _without_nulls(config: type[BaseModel], values: dict[str, Any], path: str, findings: Findings) -> dict[str, Any]:
    """Leave out what is null where the field takes none and has a default: Olive's files write null for "not given"."""
    if not _holds_null(values):
        return values
    result: Any = values
    for error in _validate(config, values)[1]:
        where = _place(error["loc"], values, False)
        owner = _owner(config, where[:-1]) if where and not where[-1].isdigit() else None
        name = _field_name(owner, where[-1]) if owner else None
        if owner is None or name is None or error["input"] is not None or owner.model_fields[name].is_required():
            continue
        if _at(result, where[:-1]).get(where[-1], "") is None:
            default = owner.model_fields[name].get_default(call_default_factory=True)
            why = f"its default holds: {shown(default)}" if isinstance(default, (str, int, float)) else "not given"
            findings.notice(join(path, ".".join(where)), f"{where[-1]} null", "left out", why)
            result = _pruned(result, where)
    return dict(result)


def _holds_null(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_null(item) for item in value.values())
    return value is None


def _pruned(values: Mapping[str, Any], where: tuple[str, ...]) -> dict[str, Any]:
    """Return a mapping without the value at a path."""
    if len(where) == 1:
        return {key: value for key, value in values.items() if key != where[0]}
    return {**values, where[0]: _pruned(values[where[0]], where[1:])}


def _full_markers(config: type[BaseModel], values: Mapping[str, Any], path: str, findings: Findings) -> dict[str, Any]:
    full: dict[tuple[str, ...], Any] = {}
    dropped: set[tuple[str, ...]] = set()
    for where, marker in find_markers(values):
        found = normalised(marker, declared_range(config, where), join(path, ".".join(where)), findings)
        if found is None:
            dropped.add(where)
        else:
            full[where] = found
    result: dict[str, Any] = replaced(values, full)
    # A mapping that only a faulty marker inside it kept from being one is no marker: its fault is told.
    while any(where not in full for where, _ in find_markers(result)):
        result = replaced(result, full)
    return result


def _validate(config: type[BaseModel], plain: Any, told: list[str] | None = None) -> tuple[Any, list[Any]]:
    try:
        return config.model_validate(plain, context=None if told is None else {"notices": told}), []
    except ValidationError as error:
        return None, list(error.errors(include_url=False))
    except RecursionError:
        raise
    except Exception as error:
        # A validator of a plugin that raises something else is told like a fault of the value it looked at.
        message = f"{type(error).__name__}: {error}"
        return None, [{"type": "value_error", "loc": (), "msg": message, "input": plain, "ctx": {"error": message}}]


def _place(loc: tuple[int | str, ...], plain: Any, missing: bool) -> tuple[str, ...]:
    """The part of an error's location that stands in the file: names of union members are left out."""
    place: list[str] = []
    current = plain
    for index, part in enumerate(loc):
        in_list = isinstance(current, list) and isinstance(part, int) and part < len(current)
        if in_list or (isinstance(current, Mapping) and part in current):
            current = current[part]
        elif not (missing and index == len(loc) - 1):
            continue
        place.append(str(part))
    return tuple(place)


def _at(plain: Any, where: tuple[str, ...]) -> Any:
    for part in where:
        plain = plain[int(part)] if isinstance(plain, list) else plain[part]
    return plain


def _list_places(errors: list[Any], plain: Any) -> list[tuple[str, ...]]:
    """Where a list stands that its field rejects as a whole, and not for what is in it."""
    accepting = ("extra_forbidden", "value_error", "assertion_error", "too_short", "too_long")
    places: dict[tuple[str, ...], bool] = {}
    for error in errors:
        where = _place(error["loc"], plain, False)
        if isinstance(error["input"], list) and where and _at(plain, where) == error["input"]:
            places[where] = places.get(where, True) and error["type"] not in accepting
    inside = {_place(error["loc"], plain, False)[:-1] for error in errors}
    return [where for where, rejected in places.items() if rejected and where not in inside]


def _takes_some(config: type[BaseModel], plain: Mapping[str, Any], where: tuple[str, ...]) -> bool:
    """Whether the field takes at least one of the list's items."""
    return any(not _errors_at(config, plain, where, item) for item in _at(plain, where))


def _errors_at(config: type[BaseModel], plain: Mapping[str, Any], where: tuple[str, ...], value: Any) -> list[Any]:
    changed = replaced(plain, {where: value})
    _, errors = _validate(config, changed)
    return [e for e in errors if _place(e["loc"], changed, False)[: len(where)] == where]


def _check_candidates(
    config: type[BaseModel],
    plain: Mapping[str, Any],
    markers: Mapping[tuple[str, ...], Any],
    path: str,
    findings: Findings,
) -> None:
    for where, marker in markers.items():
        for value in candidates(marker)[1:]:
            errors = _errors_at(config, plain, where, value)
            if errors:
                found, expected, hint = _words(config, errors[0], replaced(plain, {where: value}))
                findings.fault(join(path, ".".join(where)), f"search value {found}", expected, hint)


def _goes_together(config: type[BaseModel], plain: Mapping[str, Any], markers: Mapping[tuple[str, ...], Any]) -> bool:
    """Whether some combination of the searched values is valid, where the first one is not."""
    places = list(markers)
    combinations = itertools.product(*(candidates(markers[place]) for place in places))
    for values in itertools.islice(combinations, _MOST_COMBINATIONS):
        if _validate(config, replaced(plain, dict(zip(places, values, strict=True))))[1] == []:
            return True
    return False


def _report(
    config: type[BaseModel],
    errors: list[Any],
    plain: Mapping[str, Any],
    path: str,
    findings: Findings,
    markers: Mapping[tuple[str, ...], Any],
) -> None:
    grouped: dict[tuple[str, ...], list[Any]] = {}
    for error in errors:
        grouped.setdefault(_place(error["loc"], plain, error["type"] == "missing"), []).append(error)
    deepest = [where for where in grouped if not any(o[: len(where)] == where and o != where for o in grouped)]
    for where in deepest:
        if not where and markers and _goes_together(config, plain, markers):
            continue
        words = [_words(config, error, plain) for error in grouped[where]]
        expected = " or ".join(dict.fromkeys(w[1] for w in words if w[1]))
        hint = next((w[2] for w in words if w[2]), "") or misspelt_marker(grouped[where][0])
        place = join(path, ".".join(where)) if where else path
        findings.fault(place, words[0][0], expected, hint)


def _words(config: type[BaseModel], error: Any, plain: Any) -> tuple[str, str, str]:
    """An error of pydantic as (found, expected, hint)."""
    kind, context = error["type"], error.get("ctx", {})
    where = _place(error["loc"], plain, kind == "missing")
    found = shown(error["input"])
    if kind == "extra_forbidden":
        owner = _owner(config, tuple(part for part in where[:-1] if not part.isdigit()))
        names = list(owner.model_fields) if owner else []
        return f"unknown key {where[-1]!r}", listed(names), nearest(where[-1], names)
    if kind == "missing" or (error["input"] is None and _is_required(config, where)):
        owner = _owner(config, where[:-1])
        info = owner.model_fields.get(where[-1]) if owner else None
        return "not given", (info.description or "a value") if info else "a value", ""
    if kind in ("literal_error", "enum"):
        expected = str(context.get("expected", ""))
        options = [option.strip(" '") for part in expected.split(" or ") for option in part.split(",")]
        return found, expected, nearest(str(error["input"]), options)
    if kind in _LIMITS:
        key, word = _LIMITS[kind]
        return found, f"a number {word} {context[key]:g}", ""
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error") or error["msg"]), "", ""
    return found, _EXPECTED.get(kind, str(error["msg"])), ""


def _is_required(config: type[BaseModel], where: tuple[str, ...]) -> bool:
    owner = _owner(config, where[:-1]) if where else None
    name = _field_name(owner, where[-1]) if owner else None
    return owner is not None and name is not None and owner.model_fields[name].is_required()


def _owner(config: type[BaseModel] | None, where: tuple[str, ...]) -> type[BaseModel] | None:
    """The Config class that the fields at a path belong to."""
    for part in where:
        name = _field_name(config, part) if config else None
        config = _model_in(config.model_fields[name].annotation) if config and name else None
    return config


def _field_name(config: type[BaseModel], key: str) -> str | None:
    if key in config.model_fields:
        return key
    return next((name for name, info in config.model_fields.items() if info.alias == key), None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
