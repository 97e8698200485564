from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from drupe.core.statistics.proportions import (
    binomial_upper_tail,
    lower_bound,
    proportion_interval,
    upper_bound,
    wilson_interval,
)

COUNTS = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS)
def test_bounds_are_those_of_scipy(count: tuple[int, int]) -> None:
    successes, n = count
    exact = stats.binomtest(successes, n).proportion_ci(confidence_level=0.9, method="exact")
    assert lower_bound(successes, n, 0.05) == pytest.approx(exact.low, abs=1e-9)
    assert upper_bound(successes, n, 0.05) == pytest.approx(exact.high, abs=1e-9)
    score = stats.binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(successes, n, 0.95) == pytest.approx((score.low, score.high), abs=1e-9)


@given(COUNTS)
def test_interval_lies_between_mid_p_and_exact(count: tuple[int, int]) -> None:
    successes, n = count
    low, high = proportion_interval(successes, n)
    exact = stats.binomtest(successes, n).proportion_ci(confidence_level=0.95, method="exact")
    assert exact.low - 1e-9 <= low <= successes / n <= high <= exact.high + 1e-9
    if successes:
        mid = stats.binom.sf(successes, n, low) + 0.5 * stats.binom.pmf(successes, n, low)
        assert mid <= 0.025 + 1e-9


def test_published_values() -> None:
    # Newcombe 1998 (Statistics in Medicine 17:857), example 81 of 263: Wilson 0.2553–0.3662, exact 0.2527–0.3676.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert (lower_bound(81, 263, 0.025), upper_bound(81, 263, 0.025)) == pytest.approx((0.2527, 0.3676), abs=5e-5)


def test_tail_of_no_and_of_impossible_counts() -> None:
    assert binomial_upper_tail(0, 10, 0.3) == 1.0
    assert binomial_upper_tail(11, 10, 0.3) == 0.0


@pytest.mark.parametrize("n", [60, 100, 408])
def test_coverage_is_near_nominal_on_average_and_never_far_below(n: int) -> None:
    truth = np.linspace(0.001, 0.999, 999)
    ends = np.array([proportion_interval(k, n) for k in range(n + 1)])
    chances = stats.binom.pmf(np.arange(n + 1)[:, None], n, truth[None, :])
    covered = (ends[:, :1] <= truth) & (truth <= ends[:, 1:])
    coverage = (chances * covered).sum(axis=0)
    assert abs(coverage.mean() - 0.95) <= 0.01
    assert coverage.min() >= 0.93


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 5), (0, 0)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 ≤ successes ≤ n"):
        proportion_interval(successes, n)
