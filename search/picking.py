"""Which trial is best, and which trials nothing beats: the front."""

from __future__ import annotations

import math
from collections.abc import Sequence

from drupe.core.study import Objective, Outcome, Trial

__all__ = ["best", "feasible", "front", "leading", "ranks"]

Finished = Sequence[tuple[Trial, Outcome]]


def feasible(outcome: Outcome, objectives: Sequence[Objective] = ()) -> bool:
    """Whether a trial ended, met every goal and has every objective measured; a missing metric is never met."""
    return (
        outcome.state == "complete"
        and all(value <= 0 for value in outcome.violations.values())
        and all(_value(outcome, o) is not None for o in objectives)
    )


def best(finished: Finished, objectives: Sequence[Objective], exclude: Sequence[int] = ()) -> int | None:
    """Return the number of the best feasible trial, or None.

    The objective with the lowest priority number decides, equals go by the next one, then to the earlier trial. Without
    objectives the trial with the widest margin to its nearest goal is best.
    """
    candidates = [(t, o) for t, o in finished if t.number not in exclude and feasible(o, objectives)]
    if not candidates:
        return None
    return min(candidates, key=lambda pair: (*ranks(pair[1], objectives), pair[0].number))[0].number


def leading(finished: Finished, objectives: Sequence[Objective]) -> list[Trial]:
    """Return the complete trials from best to worst: feasible ones by priority, then the others by what they miss."""
    complete = [(t, o) for t, o in finished if o.state == "complete"]

    def order(pair: tuple[Trial, Outcome]) -> tuple[float, ...]:
        trial, outcome = pair
        missed = 0.0 if feasible(outcome, objectives) else math.fsum(max(0.0, v) for v in outcome.violations.values())
        return (float(not feasible(outcome, objectives)), missed, *ranks(outcome, objectives), trial.number)

    return [trial for trial, _ in sorted(complete, key=order)]


def ranks(outcome: Outcome, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Return a sort key: smaller is better, by priority."""
    if not objectives:
        return (max(outcome.violations.values(), default=0.0),)
    ordered = sorted(objectives, key=lambda o: o.priority)
    return tuple(_cost(outcome, o) for o in ordered)


def front(finished: Finished, objectives: Sequence[Objective], *, only_feasible: bool = True) -> list[int]:
    """Return the numbers of the trials that no other one beats in every objective."""
    pool = [
        (t.number, ranks(o, objectives))
        for t, o in finished
        if (feasible(o, objectives) if only_feasible else o.state == "complete")
    ]
    pool = [(n, costs) for n, costs in pool if all(math.isfinite(c) for c in costs)]
    return [
        number
        for number, costs in pool
        if not any(other != costs and all(a <= b for a, b in zip(other, costs, strict=True)) for _, other in pool)
    ]


def _value(outcome: Outcome, objective: Objective) -> float | None:
    measured = outcome.measurements.get(objective.metric)
    return measured.value if measured is not None and math.isfinite(measured.value) else None


def _cost(outcome: Outcome, objective: Objective) -> float:
    value = _value(outcome, objective)
    if value is None:
        return math.inf
    return value if objective.direction == "lower" else -value
