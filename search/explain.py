"""Says why a search came out as it did: what mattered, which goal binds, what would have to give, why trials lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drupe.core.metrics import Measurement
from drupe.core.statistics.goals import limit_of
from drupe.core.study import Goal, Objective, Outcome, Trial
from drupe.search.picking import best, feasible, front, ranks

__all__ = ["Relaxation", "binding_goal", "importances", "relaxations", "summary", "why_lost"]

Finished = Sequence[tuple[Trial, Outcome]]
_BINS = 4


@dataclass(frozen=True)
class Relaxation:
    """What would have to give for a trial to be feasible.

    limits: goal ("metric kind") → (its value in the workflow, the value at which this trial meets it; None where the
    metric is missing or the baseline unknown). excess: the violations in sum. partly: the trial was cut short, so its
    values are those of a part of the samples, and there may be goals that it was not measured for.
    """

    number: int
    limits: Mapping[str, tuple[float, float | None]]
    excess: float
    partly: bool = False

    def text(self) -> str:
        """Return one line for a person."""
        parts = [
            f"{name} {old:g} → {new:.4g}" if new is not None else f"{name} (not measured)"
            for name, (old, new) in self.limits.items()
        ]
        text = f"candidate {self.number} would be feasible with " + " and ".join(parts)
        return text + (", as far as it was measured" if self.partly else "")


def goal_key(goal: Goal) -> str:
    """Return the name that violations have for a goal."""
    return f"{goal.metric} {goal.kind}"


def importances(finished: Finished, metric: str) -> dict[str, float]:
    """Return each parameter's importance for a metric: the share of its variation that the parameter alone explains.

    This is the correlation ratio ω² (numbers in 4 groups of equal counts), 0 where chance explains as much; over the
    complete trials in which the parameter is active. Largest first.
    """
    values: dict[str, list[tuple[Any, float]]] = {}
    for trial, outcome in finished:
        measured = outcome.measurements.get(metric)
        if outcome.state == "complete" and measured is not None and math.isfinite(measured.value):
            for name, value in trial.point.items():
                values.setdefault(name, []).append((value, measured.value))
    found = {name: _explained(pairs) for name, pairs in values.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def binding_goal(finished: Finished, goals: Sequence[Goal], objectives: Sequence[Objective]) -> Goal | None:
    """Return the goal that costs most: without it the best trial would be best by the most, or feasible at all.

    None where leaving out any single goal changes nothing.
    """
    now = best(finished, objectives)
    current = _ranks_of(finished, objectives, now)
    gains: list[tuple[tuple[float, ...], Goal]] = []
    for goal in goals:
        without = [(t, _less(o, goal_key(goal))) for t, o in finished]
        number = best(without, objectives)
        if number is None or number == now:
            continue
        reached = _ranks_of(without, objectives, number)
        if now is None or reached < current:
            gains.append((reached, goal))
    if gains:
        return min(gains, key=lambda pair: pair[0])[1]
    if now is None and goals:
        # No single goal frees the search: the one that stops most trials binds.
        stopped = {g: sum(o.violations.get(goal_key(g), _unknown(o)) > 0 for _, o in finished) for g in goals}
        return max(goals, key=lambda g: stopped[g])
    return None


def relaxations(
    finished: Finished, goals: Sequence[Goal], baseline: Mapping[str, Measurement] | None = None
) -> list[Relaxation]:
    """Return how far each complete but infeasible trial's goals would have to give, the nearest first."""
    found = []
    for trial, outcome in finished:
        broken = [g for g in goals if outcome.violations.get(goal_key(g), _unknown(outcome)) > 0]
        if outcome.state == "failed" or not broken:
            continue
        limits = {goal_key(g): (g.value, _value_that_holds(g, outcome, (baseline or {}).get(g.metric))) for g in broken}
        excess = math.fsum(outcome.violations.get(goal_key(g), math.inf) for g in broken)
        partly = any(m.of is not None for m in outcome.measurements.values()) or len(outcome.violations) < len(goals)
        found.append(Relaxation(trial.number, limits, excess, partly))
    return sorted(found, key=lambda r: (r.excess, r.number))


def why_lost(
    finished: Finished, goals: Sequence[Goal], objectives: Sequence[Objective], winner: int | None
) -> dict[int, str]:
    """Return for every trial but the winner, in one line, why it is not the winner."""
    winning = next((o for t, o in finished if t.number == winner), None)
    reasons = {}
    for trial, outcome in finished:
        if trial.number == winner:
            continue
        if outcome.state == "failed":
            reasons[trial.number] = f"failed: {(outcome.error or 'unknown').splitlines()[0]}"
            continue
        broken = {name: v for name, v in outcome.violations.items() if v > 0}
        if outcome.state == "pruned":
            reasons[trial.number] = f"cut short: {outcome.error or 'it could not win any more'}"
        elif broken:
            reasons[trial.number] = "breaks " + ", ".join(_broken_text(n, v, outcome, goals) for n, v in broken.items())
        elif winning is None or not feasible(outcome, objectives):
            missing = [o.metric for o in objectives if o.metric not in outcome.measurements]
            reasons[trial.number] = "not measured: " + ", ".join(missing)
        else:
            reasons[trial.number] = _worse_text(outcome, winning, objectives, winner)
    return reasons


def summary(finished: Finished, goals: Sequence[Goal], objectives: Sequence[Objective]) -> dict[str, Any]:
    """Return what a run's manifest keeps of all this, as JSON data."""
    binding = binding_goal(finished, goals, objectives)
    nearest = relaxations(finished, goals)[:3]
    metrics = dict.fromkeys([o.metric for o in objectives] + [g.metric for g in goals])
    kept = front(finished, objectives) or front(finished, objectives, only_feasible=False)
    return {
        "front": kept if objectives else [],
        "binding": None if binding is None else f"{binding.metric} {binding.kind} {binding.value:g}",
        "relaxations": [relaxation.text() for relaxation in nearest],
        "importance": {metric: _rounded(importances(finished, metric)) for metric in metrics},
    }


def _rounded(shares: Mapping[str, float]) -> dict[str, float]:
    return {name: round(share, 4) for name, share in shares.items()}


def _unknown(outcome: Outcome) -> float:
    """Return the violation of a goal that an outcome has none for: a trial that was cut short tells nothing of goals
    that it was not measured for."""
    return 0.0 if outcome.state == "pruned" else math.inf


def _explained(pairs: Sequence[tuple[Any, float]]) -> float:
    groups = _groups(pairs)
    n, k = len(pairs), len(groups)
    if k < 2 or n <= k:
        return 0.0
    mean = math.fsum(y for _, y in pairs) / n
    total = math.fsum((y - mean) ** 2 for _, y in pairs)
    if total == 0:
        return 0.0
    means = [math.fsum(group) / len(group) for group in groups]
    between = math.fsum(len(group) * (m - mean) ** 2 for group, m in zip(groups, means, strict=True))
    noise = (total - between) / (n - k)
    return max(0.0, (between - (k - 1) * noise) / (total + noise))


def _groups(pairs: Sequence[tuple[Any, float]]) -> list[list[float]]:
    distinct = {repr(x) for x, _ in pairs}
    numeric = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x, _ in pairs)
    grouped: dict[Any, list[float]] = {}
    if numeric and len(distinct) > _BINS:
        for index, (_, y) in enumerate(sorted(pairs, key=lambda pair: pair[0])):
            grouped.setdefault(index * _BINS // len(pairs), []).append(y)
    else:
        for x, y in pairs:
            grouped.setdefault(repr(x), []).append(y)
    return list(grouped.values())


def _ranks_of(finished: Finished, objectives: Sequence[Objective], number: int | None) -> tuple[float, ...]:
    return next((ranks(o, objectives) for t, o in finished if t.number == number), (math.inf,))


def _less(outcome: Outcome, name: str) -> Outcome:
    from dataclasses import replace

    return replace(outcome, violations={n: v for n, v in outcome.violations.items() if n != name})


def _value_that_holds(goal: Goal, outcome: Outcome, baseline: Measurement | None) -> float | None:
    """Return the goal's value at which the trial meets it."""
    measured = outcome.measurements.get(goal.metric)
    if measured is None or not math.isfinite(measured.value):
        return None
    if goal.kind == "threshold":
        return measured.value
    reference = baseline.value if baseline is not None else _baseline_of(goal, outcome, measured.value)
    if reference is None or (goal.kind.startswith("percent-") and reference == 0):
        return None
    better = measured.value - reference if goal.direction == "higher" else reference - measured.value
    change = better if goal.kind.endswith("min-improvement") else -better
    return change / abs(reference) * 100 if goal.kind.startswith("percent-") else change


def _baseline_of(goal: Goal, outcome: Outcome, value: float) -> float | None:
    """Return the baseline's value, found back from the violation: (value − limit)/|limit| on the broken side."""
    slack = outcome.violations.get(goal_key(goal), math.inf)
    if not math.isfinite(slack):
        return None
    for sign in (1.0, -1.0):
        towards = -1.0 if goal.direction == "higher" else 1.0
        limit = value / (1 + sign * towards * slack) if 1 + sign * towards * slack else 0.0
        if limit * sign <= 0:
            continue
        share = goal.value / 100 if goal.kind.startswith("percent-") else 0.0
        improves = goal.kind.endswith("min-improvement") == (goal.direction == "higher")
        if goal.kind.startswith("percent-"):
            baseline = limit / (1 + share if improves else 1 - share) if share != 1 else 0.0
        else:
            baseline = limit - goal.value if improves else limit + goal.value
        again = limit_of(goal, baseline)
        if again is not None and math.isclose(again, limit, rel_tol=1e-9, abs_tol=1e-12):
            return baseline
    return None


def _broken_text(name: str, violation: float, outcome: Outcome, goals: Sequence[Goal]) -> str:
    goal = next((g for g in goals if goal_key(g) == name), None)
    measured = outcome.measurements.get(goal.metric) if goal else None
    if goal is None or measured is None:
        return f"{name} (not measured)"
    return f"{name} {goal.value:g}: {measured.value:.4g} {measured.unit}".rstrip() + f", {violation:.1%} off"


def _worse_text(outcome: Outcome, winning: Outcome, objectives: Sequence[Objective], winner: int | None) -> str:
    for objective in sorted(objectives, key=lambda o: o.priority):
        ours, theirs = outcome.measurements[objective.metric], winning.measurements[objective.metric]
        if ours.value != theirs.value:
            text = f"{objective.metric} {ours.value:.4g} {ours.unit}".rstrip()
            overlap = ""
            if ours.interval and theirs.interval and _overlap(ours.interval, theirs.interval):
                overlap = ", within the noise of it"
            return f"{text} where candidate {winner} has {theirs.value:.4g}{overlap}"
    return f"equal to candidate {winner}, which was tried earlier"


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]
