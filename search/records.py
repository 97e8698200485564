"""A trial's outcome as JSON data in the study's storage, and what a study must agree with when it is resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from drupe.core.metrics import Measurement
from drupe.core.study import Goal, Objective, Outcome, Space
from drupe.search.space import definition

__all__ = ["SCHEMA", "constraint_value", "describe", "differences", "from_record", "to_record"]

SCHEMA = 1


def to_record(outcome: Outcome, seconds: float) -> dict[str, Any]:
    """Return an outcome as JSON data; per-sample rows stay in the store. seconds: from ask to tell."""
    return {
        "schema": SCHEMA,
        "state": outcome.state,
        "measurements": {name: m.to_json() for name, m in outcome.measurements.items()},
        "violations": {name: _number(value) for name, value in outcome.violations.items()},
        "error": outcome.error,
        "candidate": outcome.candidate,
        "cost": outcome.cost,
        "saved": outcome.saved,
        "seconds": seconds,
    }


def from_record(record: Mapping[str, Any]) -> Outcome:
    """Return the outcome that `to_record` wrote."""
    return Outcome(
        state=record["state"],
        measurements={name: Measurement.from_json(data) for name, data in record["measurements"].items()},
        violations={name: float(value) for name, value in record["violations"].items()},
        error=record["error"],
        candidate=record["candidate"],
        cost=record["cost"],
        saved=record["saved"],
    )


def constraint_value(violation: float) -> float:
    """Return a violation as samplers get it: beyond 1 its logarithm counts, so that one far-off metric (an infinite
    one is not measured at all) does not hide the others."""
    if math.isnan(violation):
        violation = math.inf
    if violation <= 1:
        return max(violation, -1.0)
    return 1 + math.log(min(violation, 1e6))


def describe(space: Space, goals: Sequence[Goal], objectives: Sequence[Objective]) -> dict[str, Any]:
    """Return what makes a study what it is."""
    return {
        "schema": SCHEMA,
        "space": definition(space),
        "goals": [[g.metric, g.kind, g.value, g.direction, g.confidence] for g in goals],
        "objectives": [[o.metric, o.direction, o.priority] for o in objectives],
    }


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return what differs between a stored study and the one asked for, a line each; [] where nothing does."""
    lines = []
    before = {_label(d): d for d in found.get("space", ())}
    after = {_label(d): d for d in wanted["space"]}
    for name in [*before, *(n for n in after if n not in before)]:
        if name not in after:
            lines.append(f"{name} is not searched any more")
        elif name not in before:
            lines.append(f"{name} is new")
        elif before[name] != after[name]:
            lines.append(f"{name} was {_shown(before[name])} and is {_shown(after[name])}")
    lines += [
        f"the {part} were {found.get(part)} and are {wanted[part]}"
        for part in ("goals", "objectives")
        if found.get(part) != wanted[part]
    ]
    return lines


def _label(dimension: Mapping[str, Any]) -> str:
    when = dimension.get("when")
    return f"{dimension['name']} when {when}" if when else str(dimension["name"])


def _shown(dimension: Mapping[str, Any]) -> Any:
    if "values" in dimension:
        return dimension["values"]
    extra = " log" if dimension["log"] else ""
    return f"{dimension['low']}…{dimension['high']}{extra}"


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
