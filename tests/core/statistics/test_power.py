from __future__ import annotations

import pytest
from benchmarks.statistics_noninferiority import METHODS, accepted, chance

from drupe.core.statistics.power import (
    difference_power,
    items_for_power,
    limit_for_power,
    power_text,
    threshold_power,
)
from drupe.core.study import Goal


def test_the_planning_example() -> None:
    text = power_text(Goal("accuracy-exact", "max-degradation", 0.01, "higher", 0.95), 408)
    assert text is not None
    assert "408 items, 1-point limit: a lossless model is certified with 23%; 3,100 items for 80%" in text


@pytest.mark.parametrize(
    ("n", "limit", "flips"), [(408, 0.02, 0.05), (408, 0.03, 0.05), (300, 0.03, 0.03), (200, 0.05, 0.1)]
)
def test_planned_power_is_that_of_the_test(n: int, limit: float, flips: float) -> None:
    real = chance(accepted(METHODS["Drupe"], n, limit, 80), n, flips, 0.0)
    assert difference_power(n, limit, flips) == pytest.approx(real, abs=0.1)


def test_items_and_limit_give_the_power_asked_for() -> None:
    assert difference_power(items_for_power(0.02), 0.02) == pytest.approx(0.8, abs=0.01)
    assert difference_power(500, limit_for_power(500)) == pytest.approx(0.8, abs=0.01)


def test_power_of_a_threshold() -> None:
    assert threshold_power(60, 0.8, 0.8) < 0.05
    assert threshold_power(60, 0.8, 0.95) > 0.9
    assert threshold_power(10, 0.99, 1.0) == 0.0


def test_threshold_text() -> None:
    text = power_text(Goal("accuracy-exact", "threshold", 0.8, "higher", 0.95), 60)
    assert text == "accuracy-exact: 60 items certify at least 0.8 from 0.900 on (54 of 60)"
    never = power_text(Goal("accuracy-exact", "threshold", 0.98, "higher", 0.95), 60)
    assert never is not None and "can't certify" in never and "149 items could" in never


def test_nothing_to_say_without_confidence_or_for_other_metrics() -> None:
    assert power_text(Goal("a-b", "threshold", 0.8, "higher"), 60) is None
    assert power_text(Goal("latency-p50", "threshold", 20.0, "lower", 0.95), 60, proportion=False) is None
