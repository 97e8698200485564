from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from drupe.core.metrics import Measurement
from drupe.core.statistics.goals import limit_of
from drupe.core.statistics.verdicts import judge, violation
from drupe.core.study import Goal


def answers(right: int, n: int, *, wrong_first: bool = False) -> Measurement:
    """Return an accuracy of n items of which `right` are right: the first ones, or the last ones."""
    rows = {f"{i:04}": (float(i >= n - right if wrong_first else i < right),) for i in range(n)}
    return Measurement("acc-exact", right / n, "", "higher", n, rows=rows, proportion=True)


def flipped(baseline: Measurement, lost: int, gained: int) -> Measurement:
    """Return the baseline's answers with some of them changed."""
    rows = dict(baseline.rows)
    right = [i for i, row in rows.items() if row[0]]
    wrong = [i for i, row in rows.items() if not row[0]]
    rows |= dict.fromkeys(right[:lost], (0.0,)) | dict.fromkeys(wrong[:gained], (1.0,))
    return Measurement("acc-exact", mean(list(rows.values())), "", "higher", len(rows), rows=rows, proportion=True)


def mean(rows: Sequence[tuple[float, ...]]) -> float:
    return math.fsum(row[0] for row in rows) / len(rows)


def timed(name: str, values: Sequence[float], value: float | None = None, beside: Sequence[float] = ()) -> Measurement:
    """Return a latency of these repetitions, interleaved with the baseline's where given."""
    rows = {f"r{i}": (v, v / 2, 8.0) for i, v in enumerate(values)}
    if beside:
        rows = {key: (*row, b, b / 2, 8.0) for (key, row), b in zip(rows.items(), beside, strict=True)}
    return Measurement(
        name, mean(list(rows.values())) if value is None else value, "ms", "lower", len(values), rows=rows
    )


def goal(kind: str = "threshold", value: float = 0.8, confidence: float | None = 0.95, **other: Any) -> Goal:
    return Goal(other.pop("metric", "acc-exact"), kind, value, other.pop("direction", "higher"), confidence)


@pytest.mark.parametrize(
    ("kind", "value", "direction", "limit"),
    [
        ("threshold", 0.8, "higher", 0.8),
        ("max-degradation", 0.1, "higher", 0.4),
        ("max-degradation", 0.1, "lower", 0.6),
        ("min-improvement", 0.1, "higher", 0.6),
        ("min-improvement", 0.1, "lower", 0.4),
        ("percent-max-degradation", 10, "higher", 0.45),
        ("percent-max-degradation", 10, "lower", 0.55),
        ("percent-min-improvement", 10, "higher", 0.55),
        ("percent-min-improvement", 10, "lower", 0.45),
    ],
)
def test_limits(kind: str, value: float, direction: Any, limit: float) -> None:
    wanted = Goal("m-x", kind, value, direction)
    assert limit_of(wanted, 0.5) == pytest.approx(limit)
    sign = 1 if direction == "higher" else -1
    reference = Measurement("m-x", 0.5, "", direction, 10)
    for offset in (0.01, 0.0, -0.01):
        got = violation(wanted, Measurement("m-x", limit + sign * offset, "", direction, 10), reference)
        assert got == pytest.approx(-offset / limit, abs=1e-9)
        assert (got <= 0) == (offset >= 0)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind of goal 'at-most'"):
        limit_of(goal("at-most"), 0.5)


def test_what_is_not_measured_violates_without_end() -> None:
    assert violation(goal(), None) == math.inf
    assert violation(goal(), Measurement("acc-exact", math.nan, "", "higher", 3)) == math.inf
    assert violation(goal("max-degradation", 0.1), answers(5, 10), None) == math.inf


def test_a_limit_of_zero_is_not_divided_by() -> None:
    assert violation(goal(value=0.0, direction="lower"), answers(3, 10)) == pytest.approx(0.3)


def test_without_confidence_the_point_decides_and_nothing_is_certified() -> None:
    met = judge(goal(confidence=None), answers(48, 60))
    assert (met.status, met.bound) == ("MET", 0.8)
    assert "met, not certified" in met.text
    assert judge(goal(confidence=None), answers(47, 60)).status == "NOT_MET"
    assert judge(goal(confidence=None), None).status == "NOT_MET"


@pytest.mark.parametrize(
    ("right", "status"), [(60, "PASS"), (54, "PASS"), (53, "UNDECIDED"), (43, "UNDECIDED"), (42, "FAIL")]
)
def test_threshold_on_a_proportion(right: int, status: str) -> None:
    verdict = judge(goal(), answers(right, 60))
    assert verdict.status == status
    assert (verdict.n_needed is not None) == (status == "UNDECIDED")


def test_the_number_of_items_that_would_decide_does() -> None:
    verdict = judge(goal(), answers(52, 60))
    assert verdict.n_needed is not None and verdict.n_needed > 60
    more = verdict.n_needed + 5
    assert judge(goal(), answers(math.ceil(52 / 60 * more), more)).status == "PASS"
    assert f"about {verdict.n_needed} items would decide" in verdict.text


def test_on_the_limit_no_number_of_items_decides() -> None:
    verdict = judge(goal(), answers(48, 60))
    assert verdict.status == "UNDECIDED"
    assert verdict.n_needed is None


def test_error_rate_below_a_threshold() -> None:
    rare = goal(value=0.1, direction="lower")
    assert judge(rare, answers(1, 100)).status == "PASS"
    assert judge(rare, answers(8, 100)).status == "UNDECIDED"
    assert judge(rare, answers(25, 100)).status == "FAIL"


def test_loss_against_the_baseline() -> None:
    baseline = answers(380, 408)
    limit = goal("max-degradation", 0.01)
    assert judge(limit, flipped(baseline, 0, 0), baseline).status == "PASS"
    undecided = judge(limit, flipped(baseline, 4, 4), baseline)
    assert undecided.status == "UNDECIDED"
    assert undecided.n_needed is not None and undecided.n_needed > 408
    assert undecided.what == "difference"
    broken = judge(limit, flipped(baseline, 20, 2), baseline)
    assert broken.status == "FAIL"
    assert broken.limit == pytest.approx(380 / 408 - 0.01)


def test_gain_over_the_baseline() -> None:
    baseline = answers(200, 408)
    limit = goal("min-improvement", 0.02)
    assert judge(limit, flipped(baseline, 5, 60), baseline).status == "PASS"
    assert judge(limit, flipped(baseline, 5, 16), baseline).status == "UNDECIDED"
    assert judge(limit, flipped(baseline, 30, 2), baseline).status == "FAIL"


def test_percent_of_the_baseline_is_stricter_than_the_same_number_of_points_of_a_poor_one() -> None:
    baseline = answers(204, 408)
    candidate = flipped(baseline, 3, 3)
    assert judge(goal("max-degradation", 0.02), candidate, baseline).status == "PASS"
    assert judge(goal("percent-max-degradation", 2), candidate, baseline).status == "UNDECIDED"
    assert judge(goal("percent-max-degradation", 8), candidate, baseline).status == "PASS"


def test_items_are_paired_by_id_not_by_order() -> None:
    baseline = answers(380, 408)
    shuffled = list(baseline.rows.items())
    random.Random(0).shuffle(shuffled)
    candidate = Measurement("acc-exact", baseline.value, "", "higher", 408, rows=dict(shuffled), proportion=True)
    assert judge(goal("max-degradation", 0.01), candidate, baseline).status == "PASS"


def test_quantile_of_latency_by_order_statistic() -> None:
    values = [float(i) for i in range(1, 101)]
    p50 = goal(metric="latency-p50", direction="lower", value=60.0)
    verdict = judge(p50, timed("latency-p50", values, 50.5), aggregate=mean)
    # The 59th of 100 values is the exact 95 % upper bound of the median (binomial tables).
    assert (verdict.status, verdict.bound) == ("PASS", 59.0)
    assert (
        judge(
            goal(metric="latency-p50", direction="lower", value=58.0),
            timed("latency-p50", values, 50.5),
            aggregate=mean,
        ).status
        == "UNDECIDED"
    )
    assert (
        judge(
            goal(metric="latency-p50", direction="lower", value=41.0),
            timed("latency-p50", values, 50.5),
            aggregate=mean,
        ).status
        == "FAIL"
    )


def test_a_far_quantile_needs_enough_repetitions() -> None:
    p99 = goal(metric="latency-p99", direction="lower", value=500.0)
    verdict = judge(p99, timed("latency-p99", [10.0] * 60, 10.0), aggregate=mean)
    assert (verdict.status, verdict.bound, verdict.n_needed) == ("UNDECIDED", None, 299)
    assert judge(p99, timed("latency-p99", [10.0] * 299, 10.0), aggregate=mean).status == "PASS"


def test_an_extreme_has_no_bound() -> None:
    verdict = judge(
        goal(metric="latency-max", direction="lower", value=500.0), timed("latency-max", [1.0] * 60), aggregate=mean
    )
    assert verdict.status == "UNDECIDED"
    assert "quantile" in verdict.text


def test_mean_against_a_threshold() -> None:
    draw = random.Random(1)
    measured = timed("latency-avg", [draw.gauss(100, 10) for _ in range(80)])
    statuses = [
        judge(goal(metric="latency-avg", direction="lower", value=v), measured, aggregate=mean).status
        for v in (110.0, measured.value + 0.5, 90.0)
    ]
    assert statuses == ["PASS", "UNDECIDED", "FAIL"]


def test_latency_is_compared_with_the_baseline_that_was_timed_in_turn() -> None:
    draw = random.Random(2)
    drift = [100 + i for i in range(60)]  # the machine gets slower while both are timed
    ours = [d + draw.gauss(0, 1) for d in drift]
    beside = [d + draw.gauss(0, 1) for d in drift]
    alone = timed("latency-avg", [80.0 + draw.gauss(0, 1) for _ in range(60)])  # timed before the drift
    limit = goal("percent-max-degradation", 2, metric="latency-avg", direction="lower")
    verdict = judge(limit, timed("latency-avg", ours, beside=beside), alone, aggregate=mean)
    assert verdict.what == "ratio"
    assert verdict.bound == pytest.approx(1.0, abs=0.01)


def test_perplexity_against_the_baseline() -> None:
    draw = random.Random(4)

    def perplexity(rows: Sequence[tuple[float, ...]]) -> float:
        return math.exp(math.fsum(r[0] for r in rows) / math.fsum(r[1] for r in rows))

    def measured(rows: dict[str, tuple[float, ...]]) -> Measurement:
        return Measurement("ppl-perplexity", perplexity(list(rows.values())), "", "lower", len(rows), rows=rows)

    base = {f"s{i}": (draw.gammavariate(4, 10), 40.0) for i in range(150)}
    baseline = measured(base)
    slightly = measured({k: (nll + draw.gauss(0.4, 0.5), t) for k, (nll, t) in base.items()})
    limit = goal("percent-max-degradation", 3, metric="ppl-perplexity", direction="lower")
    assert judge(limit, slightly, baseline, aggregate=perplexity).status == "PASS"
    worse = measured({k: (nll + draw.gauss(2, 0.5), t) for k, (nll, t) in base.items()})
    assert judge(limit, worse, baseline, aggregate=perplexity).status == "FAIL"
    absolute = goal("max-degradation", 0.1, metric="ppl-perplexity", direction="lower")
    assert judge(absolute, slightly, baseline, aggregate=perplexity).status == "PASS"


def test_a_file_size_decides_by_itself() -> None:
    size = Measurement("size-bytes", 90.0, "MB", "lower", 1, rows={"all": (90.0,)})
    limit = goal(metric="size-bytes", direction="lower", value=95.0)
    assert judge(limit, size, exact=True).status == "PASS"
    undecided = judge(limit, size)
    assert undecided.status == "UNDECIDED"
    assert "one measurement can't be certified" in undecided.text


def test_a_smaller_share_of_alpha_asks_for_more() -> None:
    assert judge(goal(), answers(54, 60)).status == "PASS"
    assert judge(goal(), answers(54, 60), alpha_share=0.5).status == "UNDECIDED"


def test_missing_baseline_is_undecided() -> None:
    verdict = judge(goal("max-degradation", 0.01), answers(50, 60), None)
    assert (verdict.status, verdict.limit) == ("UNDECIDED", None)


def test_json_is_valid() -> None:
    verdict = judge(goal(), answers(53, 60))
    data = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert data["status"] == "UNDECIDED"
    assert data["n"] == 60
