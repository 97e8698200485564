"""What a goal comes to: its limit in the metric's own unit, and how far a measurement is from it."""

from __future__ import annotations

import math

from drupe.core.metrics import Measurement
from drupe.core.study import Goal

__all__ = ["EXTREMES", "RELATIVE", "is_percent", "limit_of", "meets", "violation"]

EXTREMES = ("-max", "-min")
"""How the names of values end that are the largest or the smallest of something: no sample bounds them."""

RELATIVE = ("min-improvement", "percent-min-improvement", "max-degradation", "percent-max-degradation")
"""The kinds of goals that compare with the baseline."""
_TOLERANCE = 1e-9
"""Limits are computed (0.9 − 0.1), so equal is meant up to rounding."""


def is_percent(goal: Goal) -> bool:
    """Whether the goal's value is in percent of the baseline."""
    return goal.kind.startswith("percent-")


def limit_of(goal: Goal, baseline: float | None) -> float | None:
    """Return the limit in the metric's unit; None where the goal is relative and there is no baseline.

    Raises ValueError for an unknown kind of goal.
    """
    if goal.kind == "threshold":
        return goal.value
    if goal.kind not in RELATIVE:
        raise ValueError(f"unknown kind of goal {goal.kind!r}; expected threshold, {', '.join(RELATIVE)}")
    if baseline is None or not math.isfinite(baseline):
        return None
    change = goal.value / 100 * abs(baseline) if is_percent(goal) else goal.value
    improves = goal.kind.endswith("min-improvement")
    return baseline + change if improves == (goal.direction == "higher") else baseline - change


def meets(value: float, limit: float, direction: str) -> bool:
    """Whether a value is on the right side of a limit; on it counts."""
    slack = _TOLERANCE * max(abs(value), abs(limit))
    return value >= limit - slack if direction == "higher" else value <= limit + slack


def violation(goal: Goal, measurement: Measurement | None, baseline: Measurement | None = None) -> float:
    """Return the normalised slack for a sampler: (value − limit)/|limit|, negative where met, 0 on the limit.

    A limit of 0 is not divided by. A missing or undefined metric, or baseline, is an infinite violation.
    """
    if measurement is None or not math.isfinite(measurement.value):
        return math.inf
    limit = limit_of(goal, baseline.value if baseline else None)
    if limit is None:
        return math.inf
    beyond = limit - measurement.value if goal.direction == "higher" else measurement.value - limit
    scaled = beyond / (abs(limit) or 1.0)
    return min(scaled, 0.0) if meets(measurement.value, limit, goal.direction) else scaled
