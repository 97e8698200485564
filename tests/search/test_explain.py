from __future__ import annotations

import math
from typing import Any

import pytest

from drupe.core.study import Goal, Objective, Outcome, Trial
from drupe.search.explain import binding_goal, importances, relaxations, why_lost
from drupe.search.picking import front
from tests.search.synthetic import measured

ACCURACY = Goal("acc-exact", "threshold", 0.9, "higher")
LATENCY = Goal("latency-p50", "threshold", 20.0, "lower")
OBJECTIVES = (Objective("acc-exact", "higher", 1), Objective("latency-p50", "lower", 2))


def told(number: int, accuracy: float | None, latency: float, **other: Any) -> tuple[Trial, Outcome]:
    values = {"latency-p50": measured("latency-p50", latency, "lower")}
    if accuracy is not None:
        values["acc-exact"] = measured("acc-exact", accuracy)
    slack = {
        "acc-exact threshold": math.inf if accuracy is None else (0.9 - accuracy) / 0.9,
        "latency-p50 threshold": (latency - 20) / 20,
    }
    return Trial(number, other.pop("point", {"p.x": number})), Outcome(
        other.pop("state", "complete"), values, slack, **other
    )


def test_front_of_feasible_trials_and_of_all() -> None:
    finished = [told(0, 0.92, 15), told(1, 0.95, 19), told(2, 0.91, 16), told(3, 0.97, 30), told(4, None, 1)]
    assert front(finished, OBJECTIVES) == [0, 1]
    assert front(finished, OBJECTIVES, only_feasible=False) == [0, 1, 3]


def test_the_goal_without_which_the_best_would_be_better_binds() -> None:
    finished = [told(0, 0.92, 15), told(1, 0.97, 30), told(2, 0.5, 1)]
    assert binding_goal(finished, [ACCURACY, LATENCY], OBJECTIVES) == LATENCY
    assert binding_goal([told(0, 0.99, 1), told(1, 0.95, 2)], [ACCURACY, LATENCY], OBJECTIVES) is None


def test_the_goal_that_blocks_everything_binds() -> None:
    finished = [told(0, 0.8, 15), told(1, 0.7, 10)]
    assert binding_goal(finished, [ACCURACY, LATENCY], OBJECTIVES) == ACCURACY


def test_nearest_relaxation_names_the_limits_that_would_do() -> None:
    finished = [told(0, 0.8, 15), told(1, 0.88, 21), told(2, 0.5, 50), told(3, 0.95, 10)]
    nearest = relaxations(finished, [ACCURACY, LATENCY])
    assert [r.number for r in nearest] == [1, 0, 2]
    assert nearest[0].limits == {"acc-exact threshold": (0.9, 0.88), "latency-p50 threshold": (20.0, 21.0)}
    assert (
        nearest[0].text()
        == "candidate 1 would be feasible with acc-exact threshold 0.9 → 0.88 and latency-p50 threshold 20 → 21"
    )


@pytest.mark.parametrize(
    ("kind", "value", "direction", "baseline", "seen", "needed"),
    [
        ("max-degradation", 0.01, "higher", 0.95, 0.92, 0.03),
        ("percent-max-degradation", 5.0, "lower", 100.0, 112.0, 12.0),
        ("percent-min-improvement", 30.0, "lower", 100.0, 80.0, 20.0),
        ("min-improvement", 0.1, "higher", 0.8, 0.85, 0.05),
    ],
)
def test_relative_goals_are_relaxed_in_their_own_terms(
    kind: str, value: float, direction: Any, baseline: float, seen: float, needed: float
) -> None:
    from drupe.core.metrics import Measurement
    from drupe.core.statistics.verdicts import violation

    goal = Goal("m-x", kind, value, direction)
    own, reference = Measurement("m-x", seen, "", direction, 50), Measurement("m-x", baseline, "", direction, 50)
    outcome = Outcome("complete", {"m-x": own}, {f"m-x {kind}": violation(goal, own, reference)})
    (found,) = relaxations([(Trial(0, {}), outcome)], [goal])
    limit = found.limits[f"m-x {kind}"][1]
    assert limit == pytest.approx(needed)


def test_why_each_trial_lost() -> None:
    finished = [
        told(0, 0.95, 15),
        told(1, 0.95, 18),
        told(2, 0.91, 5),
        told(3, 0.97, 30),
        told(4, None, 10),
        told(5, 0.99, 1, state="failed", error="PassError: no memory\nmore"),
        told(6, 0.95, 15),
    ]
    reasons = why_lost(finished, [ACCURACY, LATENCY], OBJECTIVES, 0)
    assert reasons == {
        1: "latency-p50 18 where candidate 0 has 15",
        2: "acc-exact 0.91 where candidate 0 has 0.95",
        3: "breaks latency-p50 threshold 20: 30, 50.0% off",
        4: "breaks acc-exact threshold (not measured)",
        5: "failed: PassError: no memory",
        6: "equal to candidate 0, which was tried earlier",
    }


def test_importance_finds_the_parameter_that_matters() -> None:
    finished = [
        told(i, 0.9 - 0.1 * (i % 3), 10, point={"p.bits": (i % 3) + 2, "p.noise": (i * 7) % 11, "p.fixed": 1})
        for i in range(30)
    ]
    found = importances(finished, "acc-exact")
    assert next(iter(found)) == "p.bits"
    assert found["p.bits"] > 0.95
    assert found["p.noise"] < 0.1
    assert found["p.fixed"] == 0.0
