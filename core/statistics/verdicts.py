"""Verdicts: whether a goal holds, at its confidence, on measurements that nobody selected on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from drupe.core.metrics import Measurement
from drupe.core.statistics.bootstrap import Aggregate, Row
from drupe.core.statistics.evidence import (
    Evidence,
    paired_proportions,
    paired_values,
    quantile_of,
    single_proportion,
    single_quantile,
    single_value,
)
from drupe.core.statistics.goals import EXTREMES, limit_of, meets, violation
from drupe.core.study import Goal

__all__ = ["Status", "Verdict", "judge", "violation"]

Status = Literal["PASS", "FAIL", "UNDECIDED", "MET", "NOT_MET"]
"""PASS, FAIL, UNDECIDED: at the goal's confidence. MET, NOT_MET: by the point estimate, nothing is certified."""


@dataclass(frozen=True)
class Verdict:
    """What is known of one goal.

    limit: in the metric's unit, relative goals resolved. bound: the one-sided bound that decides; interval: two-sided,
    both of `what` ("value", or the "difference" or "ratio" to the baseline). n_needed: how many items would decide if
    everything looked as it does now, where undecided. text: one line for a person.
    """

    goal: Goal
    status: Status
    value: float | None
    limit: float | None
    bound: float | None
    interval: tuple[float, float] | None
    n: int
    n_needed: int | None
    text: str
    method: str = "point"
    what: str = "value"

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "metric": self.goal.metric,
            "kind": self.goal.kind,
            "goal": self.goal.value,
            "direction": self.goal.direction,
            "confidence": self.goal.confidence,
            "status": self.status,
            "value": self.value,
            "limit": self.limit,
            "bound": _finite(self.bound),
            "interval": None if self.interval is None else [_finite(end) for end in self.interval],
            "n": self.n,
            "n_needed": self.n_needed,
            "method": self.method,
            "of": self.what,
            "text": self.text,
        }


def judge(
    goal: Goal,
    candidate: Measurement | None,
    baseline: Measurement | None = None,
    *,
    aggregate: Aggregate | None = None,
    exact: bool = False,
    alpha_share: float = 1.0,
    seed: int = 0,
) -> Verdict:
    """Judge one goal on a candidate's measurement and, for relative goals, the baseline's on the same samples.

    aggregate: turns rows into the metric's value; without it rows of one number are averaged. exact: the value is no
    estimate (a file's size), so it decides by itself. alpha_share: the part of 1 − confidence that this verdict may
    spend, where several finalists are judged (`multiplicity`). Timed rows that hold the candidate's numbers and then as
    many of the interleaved baseline are paired with those.
    """
    value = None if candidate is None or not math.isfinite(candidate.value) else candidate.value
    reference = baseline.value if baseline is not None else None
    limit = limit_of(goal, reference)
    if candidate is None or value is None or limit is None:
        why = "was not measured" if value is None else "has no baseline to compare with"
        status: Status = "NOT_MET" if goal.confidence is None else "UNDECIDED"
        return Verdict(goal, status, value, limit, None, None, 0, None, f"{goal.metric} {why}")
    met = meets(value, limit, goal.direction)
    if goal.confidence is None or exact:
        status = ("MET" if met else "NOT_MET") if goal.confidence is None else ("PASS" if met else "FAIL")
        tail = {"MET": ": met, not certified", "NOT_MET": ": not met"}.get(status, " (exact)")
        text = f"{_head(goal, value, limit, candidate.unit)}{tail}"
        return Verdict(goal, status, value, limit, value, candidate.interval, candidate.n, None, text)
    alpha = (1 - goal.confidence) * alpha_share
    evidence = _evidence(goal, candidate, baseline, aggregate, alpha, seed)
    if evidence is None:
        text = f"{_head(goal, value, limit, candidate.unit)}: {_why_no_evidence(goal, candidate)}"
        return Verdict(goal, "UNDECIDED", value, limit, None, None, candidate.n, None, text)
    # A bound can't certify what the point estimate itself breaks.
    status = "PASS" if evidence.holds and met else "FAIL" if evidence.broken and not met else "UNDECIDED"
    return Verdict(
        goal,
        status,
        value,
        limit,
        evidence.bound,
        evidence.interval,
        evidence.n,
        evidence.n_needed if status == "UNDECIDED" else None,
        _text(goal, value, limit, candidate.unit, status, evidence),
        evidence.method,
        evidence.what,
    )


def _evidence(
    goal: Goal,
    candidate: Measurement,
    baseline: Measurement | None,
    aggregate: Aggregate | None,
    alpha: float,
    seed: int,
) -> Evidence | None:
    rows = candidate.rows
    if not rows or candidate.metric.endswith(EXTREMES):
        return None
    if aggregate is None:
        if any(len(row) != 1 for row in rows.values()):
            return None
        aggregate = _mean
    if goal.kind != "threshold":
        assert baseline is not None
        other = _interleaved(rows, baseline.rows)
        if candidate.proportion:
            return paired_proportions(goal, rows, other, alpha)
        return paired_values(goal, rows, other, aggregate, alpha, seed)
    if candidate.proportion:
        return single_proportion(goal, round(math.fsum(row[0] for row in rows.values())), len(rows), alpha)
    if len(rows) < 2:
        return None
    quantile = quantile_of(candidate.metric)
    if quantile is not None:
        return single_quantile(goal, [aggregate([row]) for row in rows.values()], quantile, alpha)
    return single_value(goal, list(rows.values()), aggregate, alpha, seed)


def _interleaved(rows: Mapping[str, Row], other: Mapping[str, Row]) -> Mapping[str, Row]:
    """Return the baseline's rows: the second half of the candidate's where they were taken in turn with it."""
    width = {len(row) for row in rows.values()}
    plain = {len(row) for row in other.values()}
    if len(width) == 1 and len(plain) == 1 and width == {2 * next(iter(plain))}:
        half = next(iter(plain))
        return {key: row[half:] for key, row in rows.items()}
    return other


def _mean(rows: Any) -> float:
    return math.fsum(row[0] for row in rows) / len(rows)


def _why_no_evidence(goal: Goal, candidate: Measurement) -> str:
    if candidate.metric.endswith(EXTREMES):
        return "an extreme has no bound; set the goal on a quantile, such as p99"
    if candidate.n < 2:
        return "one measurement can't be certified; take the confidence off, or measure more"
    if not candidate.rows:
        return "the measurement came without its rows, so nothing can be certified"
    if goal.kind != "threshold":
        return "candidate and baseline share too few samples to be compared"
    return "how its rows make up the value is not known here, so nothing can be certified"


def _head(goal: Goal, value: float, limit: float, unit: str) -> str:
    relation = "≥" if goal.direction == "higher" else "≤"
    tail = f" {unit}" if unit else ""
    return f"{goal.metric} {value:.4g}{tail}, limit {relation} {limit:.4g}{tail}"


def _text(goal: Goal, value: float, limit: float, unit: str, status: Status, evidence: Evidence) -> str:
    assert goal.confidence is not None
    words = {"PASS": "holds", "FAIL": "is broken", "UNDECIDED": "is undecided"}[status]
    parts = [f"{_head(goal, value, limit, unit)}: {words} at {goal.confidence:.4g} confidence"]
    if evidence.bound is not None:
        side = "lower" if goal.direction == "higher" else "upper"
        of = "" if evidence.what == "value" else f" of the {evidence.what} to the baseline"
        parts.append(f"{side} bound{of} {evidence.bound:.4g}, {evidence.n} items")
    else:
        parts.append(f"{evidence.n} items")
    text = f"{parts[0]} ({parts[1]})"
    if status == "UNDECIDED":
        if evidence.n_needed is not None:
            text += f"; about {evidence.n_needed} items would decide if they looked the same"
        else:
            text += "; the value lies on the limit, so no number of items decides"
    return text


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
