from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from drupe.core.statistics.timing import compare_times, quantile_bounds, signed_rank_bounds, smallest_visible


def test_signed_rank_bounds_are_the_values_that_wilcoxon_does_not_refuse() -> None:
    values = np.random.default_rng(1).normal(0.3, 1, size=18)
    bounds = signed_rank_bounds(values.tolist(), 0.025)
    assert bounds is not None
    low, _, high = bounds
    for edge, inside in ((low, 1e-9), (high, -1e-9)):
        assert stats.wilcoxon(values - (edge + inside), method="exact").pvalue > 0.05
        assert stats.wilcoxon(values - (edge - inside), method="exact").pvalue <= 0.05


def test_exact_and_normal_ranks_meet() -> None:
    from drupe.core.statistics import timing

    for n in (25, 30):
        normal = math.floor(n * (n + 1) / 4 + stats.norm.ppf(0.025) * math.sqrt(n * (n + 1) * (2 * n + 1) / 24) + 0.5)
        assert abs(timing._rank(n, 0.025) - normal) <= 1  # type: ignore[operator]


def test_too_few_pairs_have_no_interval() -> None:
    comparison = compare_times([1.0] * 4, [1.1] * 4)
    assert comparison.interval is None
    assert not comparison.differs
    assert "too few" in comparison.text()


def test_pairs_see_a_change_that_drift_hides_from_means() -> None:
    random = np.random.default_rng(3)
    drift = 1 + np.linspace(0, 1, 40)
    base = drift * random.lognormal(0, 0.01, 40)
    ours = 1.05 * drift * random.lognormal(0, 0.01, 40)
    comparison = compare_times(ours.tolist(), base.tolist())
    assert comparison.differs
    assert comparison.ratio == pytest.approx(1.05, abs=0.01)
    assert "slower" in comparison.text()
    assert stats.ttest_ind(ours, base).pvalue > 0.05


def disturbed(random: np.random.Generator, share: float) -> list[list[float]]:
    """Return 40 pairs of times, of which that share of calls takes several times as long."""
    times = random.lognormal(0, 0.02, size=(2, 40))
    slow = np.where(random.random((2, 40)) < share, random.uniform(1.5, 10, (2, 40)), 1.0)
    return (times * slow).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8])
def test_equal_models_rarely_differ(share: float) -> None:
    random = np.random.default_rng(5)
    alarms = sum(compare_times(*disturbed(random, share)).differs for _ in range(80))
    assert alarms <= 10


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6])
def test_a_slowdown_is_found_among_disturbed_calls(share: float) -> None:
    random = np.random.default_rng(6)
    found = 0
    for _ in range(25):
        ours, theirs = disturbed(random, share)
        comparison = compare_times([1.05 * t for t in ours], theirs)
        found += comparison.differs and comparison.ratio > 1
    assert found >= 20


def test_the_text_tells_that_the_quickest_calls_were_compared() -> None:
    comparison = compare_times(*disturbed(np.random.default_rng(8), 0.6))
    assert comparison.quickest
    assert "the quickest quarter of the calls was compared" in comparison.text()


def test_smallest_visible_change_is_found_as_often_as_promised() -> None:
    random = np.random.default_rng(7)
    change = smallest_visible(0.05, 40)
    found = sum(
        compare_times((math.exp(math.log1p(change)) * np.exp(random.normal(0, 0.05, 40))).tolist(), [1.0] * 40).differs
        for _ in range(400)
    )
    assert 0.7 <= found / 400 <= 0.9


def test_unequal_lengths_and_impossible_times_are_refused() -> None:
    with pytest.raises(ValueError, match="expected pairs"):
        compare_times([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="positive"):
        compare_times([0.0, 1.0], [1.0, 2.0])


def test_a_far_quantile_of_few_pairs_has_no_bounds() -> None:
    times = np.random.default_rng(9).lognormal(0, 0.2, size=(2, 40)).tolist()
    assert quantile_bounds(*times, 0.99, 0.05, ratio=True) is None
    found = quantile_bounds(*times, 0.75, 0.05, ratio=True)
    assert found is not None and found[1] < found[0] < found[2]


def test_many_pairs_are_averaged_first() -> None:
    values = np.random.default_rng(11).normal(0.5, 1, size=5000).tolist()
    bounds = signed_rank_bounds(values, 0.025)
    assert bounds is not None
    assert bounds[0] < 0.5 < bounds[2]
    assert bounds[2] - bounds[0] < 0.08
