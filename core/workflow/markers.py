"""The values of a workflow that are marked to be searched.

`{"search": [4, 8]}`, `{"search": [4, 8], "ordered": true}`, `{"search": {"low": 1e-5, "high": 1e-3, "log": true}}` and
`{"search": true}` (the range that the pass declares), each with an optional `"when": {"pass.param": [values]}`. Olive's
"SEARCHABLE_VALUES" reads as `{"search": true}`. Nothing else is searched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from drupe.core.config import Choice, FloatRange, IntRange, Ordered, Range
from drupe.core.workflow.findings import Findings, join, nearest, shown

__all__ = [
    "candidates",
    "find_markers",
    "is_marker",
    "marker_of",
    "misspelt_marker",
    "normalised",
    "range_of",
    "replaced",
]

SEARCHABLE = "SEARCHABLE_VALUES"
DEFAULT = "DEFAULT_VALUE"
_KEYS = ("search", "ordered", "when")
_RANGE_KEYS = ("low", "high", "log", "step")


def is_marker(value: Any) -> bool:
    """Whether a value of a pass's config is marked to be searched.

    A mapping that merely has a key "search" among its own keys is a value.
    """
    if value == SEARCHABLE:
        return True
    if not isinstance(value, dict) or "search" not in value or not set(value) <= set(_KEYS):
        return False
    inner = value["search"]
    return not isinstance(inner, dict) or bool({"low", "high"} & set(inner))


def misspelt_marker(error: Mapping[str, Any]) -> str:
    """Return a hint where an error of pydantic is about a mapping that would be a marker but for its other keys."""
    value = error["input"]
    if error["type"] in ("missing", "extra_forbidden") or not isinstance(value, dict) or "search" not in value:
        return ""
    foreign = [str(key) for key in value if key not in _KEYS]
    near = [hint for key in foreign if (hint := nearest(key, _KEYS))]
    return "; ".join([f"what is searched has the keys {', '.join(_KEYS)}", *near]) if foreign else ""


def find_markers(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, marker) for every marker inside a config; a config as a whole is none."""
    if path and is_marker(value):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from find_markers(item, (*path, key))


def replaced(value: Any, values: Mapping[tuple[str, ...], Any], path: tuple[str, ...] = ()) -> Any:
    """Return a config with each marker replaced by its value; a marker without one is left out."""
    if not isinstance(value, dict):
        return value
    result = {}
    for key, item in value.items():
        inner = (*path, key)
        if is_marker(item):
            if inner in values:
                result[key] = values[inner]
        elif inner in values:
            result[key] = values[inner]
        else:
            result[key] = replaced(item, values, inner)
    return result


def marker_of(over: Range, when: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a range as the marker that says it."""
    marker: dict[str, Any]
    match over:
        case IntRange():
            marker = {"search": {"low": over.low, "high": over.high, "log": over.log, "step": over.step}}
        case FloatRange():
            marker = {"search": {"low": over.low, "high": over.high, "log": over.log, "step": over.step}}
        case Ordered():
            marker = {"search": list(over.values), "ordered": True}
        case Choice():
            marker = {"search": list(over.values)}
    return {**marker, "when": dict(when)} if when else marker


def range_of(marker: Mapping[str, Any]) -> Range:
    """Return the range of a normalised marker."""
    inner = marker["search"]
    if isinstance(inner, list):
        return Ordered(*inner) if marker.get("ordered") else Choice(*inner)
    low, high, log, step = (inner.get(key) for key in _RANGE_KEYS)
    if isinstance(low, int) and isinstance(high, int) and (step is None or isinstance(step, int)):
        return IntRange(low, high, bool(log), step or 1)
    return FloatRange(float(low), float(high), bool(log), None if step is None else float(step))


def candidates(marker: Mapping[str, Any]) -> list[Any]:
    """Return the values of a normalised marker that stand for all: the listed ones, or both ends of the range."""
    inner = marker["search"]
    return list(inner) if isinstance(inner, list) else [inner["low"], inner["high"]]


def normalised(value: Any, declared: Range | None, path: str, findings: Findings) -> dict[str, Any] | None:
    """Return a marker in its full form, or None with the fault recorded. declared: the range that the pass declares."""
    if value == SEARCHABLE:
        value = {"search": True}
    when = _condition(value.get("when"), join(path, "when"), findings)
    ordered = value.get("ordered", False)
    if not isinstance(ordered, bool):
        findings.fault(join(path, "ordered"), shown(ordered), "true or false")
    inner = value["search"]
    if inner is True:
        if declared is None:
            findings.fault(path, "no range is declared for this parameter", "values", 'write {"search": [value, …]}')
            return None
        return marker_of(declared, when)
    if isinstance(inner, list):
        return _listed(inner, ordered is True, when, path, findings)
    if not isinstance(inner, dict):
        findings.fault(join(path, "search"), shown(inner), 'a list of values, or {"low": …, "high": …}')
        return None
    return _ranged(inner, when, join(path, "search"), findings)


def _listed(
    values: list[Any], ordered: bool, when: Mapping[str, Any] | None, path: str, findings: Findings
) -> dict[str, Any] | None:
    where = join(path, "search")
    if not values:
        findings.fault(where, "an empty list", "at least one value to search")
        return None
    repeated = [v for i, v in enumerate(values) if any(v == u and type(v) is type(u) for u in values[:i])]
    if repeated:
        findings.fault(where, f"{shown(repeated[0])} is listed twice", "each value once")
        return None
    marker: dict[str, Any] = {"search": list(values)}
    if ordered:
        marker["ordered"] = True
    if when:
        marker["when"] = when
    return marker


def _ranged(
    inner: dict[str, Any], when: Mapping[str, Any] | None, path: str, findings: Findings
) -> dict[str, Any] | None:
    before = len(findings.faults)
    for key in inner:
        if key not in _RANGE_KEYS:
            findings.fault(join(path, key), f"unknown key {key!r}", "low, high, log or step", nearest(key, _RANGE_KEYS))
    for key in ("low", "high"):
        if key not in inner:
            findings.fault(path, f"{key!r} is not given", "low and high")
    for key in ("low", "high", "step"):
        number = inner.get(key)
        if number is not None and (isinstance(number, bool) or not isinstance(number, (int, float))):
            findings.fault(join(path, key), shown(number), "a number")
    if not isinstance(inner.get("log", False), bool):
        findings.fault(join(path, "log"), shown(inner["log"]), "true or false")
    if len(findings.faults) > before:
        return None
    low, high, step = inner["low"], inner["high"], inner.get("step")
    if low >= high:
        findings.fault(path, f"low {low} is not below high {high}", "low < high")
    elif inner.get("log") and low <= 0:
        findings.fault(join(path, "low"), shown(low), "a number above 0 where log is true")
    elif inner.get("log") and step not in (None, 1):
        findings.fault(join(path, "step"), shown(step), "no step where log is true")
    elif step is not None and not 0 < step <= high - low:
        findings.fault(join(path, "step"), shown(step), f"a step between 0 and {high - low}")
    else:
        full = {"low": low, "high": high, "log": inner.get("log", False), "step": step}
        return {"search": full, "when": when} if when else {"search": full}
    return None


def _condition(value: Any, path: str, findings: Findings) -> dict[str, list[Any]] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        findings.fault(path, shown(value), 'a mapping like {"pass.param": [values]}')
        return None
    return {name: values if isinstance(values, list) else [values] for name, values in value.items()}
