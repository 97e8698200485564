from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from benchmarks.statistics_noninferiority import METHODS, accepted, chance
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from drupe.core.statistics.paired import difference_bounds, exceeds_p, score_interval, score_z


def restricted_z(lost: int, gained: int, n: int, difference: float) -> float:
    """Tango's statistic with the restricted estimate found by a numeric optimizer."""

    def negative(q: float) -> float:
        return -(
            gained * math.log(max(q, 1e-300))
            + lost * math.log(max(q - difference, 1e-300))
            + (n - lost - gained) * math.log(max(1 - 2 * q + difference, 1e-300))
        )

    low, high = max(0.0, difference), (1 + difference) / 2
    q = optimize.minimize_scalar(negative, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (gained - lost - n * difference) / math.sqrt(n * (2 * q - difference - difference**2))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(100, 400), st.floats(-0.2, 0.2))
def test_score_is_that_of_the_restricted_likelihood(lost: int, gained: int, n: int, difference: float) -> None:
    assert score_z(lost, gained, n, difference) == pytest.approx(
        restricted_z(lost, gained, n, difference), rel=1e-3, abs=1e-3
    )


def test_at_no_difference_the_score_is_mcnemars() -> None:
    assert score_z(5, 15, 200, 0.0) == pytest.approx((15 - 5) / math.sqrt(20))


def test_published_interval() -> None:
    # Tango 1998 (Statistics in Medicine 17:891), cross-over of two airway treatments: 9 and 16 differing of 54 pairs…
    # recomputed by inverting the numeric statistic above.
    low, high = score_interval(9, 16, 54, 0.95)
    z = stats.norm.ppf(0.975)
    assert restricted_z(9, 16, 54, low) == pytest.approx(z, abs=1e-4)
    assert restricted_z(9, 16, 54, high) == pytest.approx(-z, abs=1e-4)


def brute_force_p(lost: int, gained: int, n: int, difference: float) -> float:
    """The largest tail probability of the score over the nuisance parameter, by plain enumeration."""
    observed = score_z(lost, gained, n, difference)
    extreme = [
        (b, c)
        for b, c in itertools.product(range(n + 1), repeat=2)
        if b + c <= n and score_z(b, c, n, difference) >= observed - 1e-9
    ]
    worst = 0.0
    for share in np.linspace(abs(difference), 1, 300):
        p = [(share - difference) / 2, (share + difference) / 2, 1 - share]
        table = stats.multinomial(n, np.clip(p, 0, 1))
        worst = max(worst, sum(table.pmf([b, c, n - b - c]) for b, c in extreme))
    return worst


@pytest.mark.parametrize(("lost", "gained", "difference"), [(0, 0, -0.2), (1, 0, -0.3), (1, 2, -0.25), (0, 4, 0.02)])
def test_p_value_is_exact_up_to_the_confined_nuisance(lost: int, gained: int, difference: float) -> None:
    whole = brute_force_p(lost, gained, 12, difference)
    assert exceeds_p(lost, gained, 12, difference) <= whole + 0.0006


def test_no_lost_item_is_no_proof_by_itself() -> None:
    # With a true drop of 1 point, 100 items show no lost one with a chance of 37 %.
    assert exceeds_p(0, 0, 100, -0.01) > 0.3
    assert exceeds_p(0, 0, 299, -0.01) <= 0.0505


def test_false_accepts_stay_under_the_level_where_wald_and_the_point_do_not() -> None:
    worst = dict.fromkeys(("Drupe", "Wald", "point rule"), 0.0)
    for n, limit in ((100, 0.01), (100, 0.03), (300, 0.02), (408, 0.01)):
        for name in worst:
            region = accepted(METHODS[name], n, limit, 60)
            for flips in (0.01, 0.02, 0.03, 0.05, 0.10):
                if flips >= limit:
                    worst[name] = max(worst[name], chance(region, n, flips, -limit))
    assert worst["Drupe"] <= 0.05
    assert worst["Wald"] > 0.36
    assert worst["point rule"] > 0.7


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(120, 408))
def test_bounds_agree_with_the_p_value(lost: int, gained: int, n: int) -> None:
    # The p-value is no smooth function of the limit, so the bound is where it crosses the level, up to half a point.
    low, high = difference_bounds(lost, gained, n, 0.05)
    assert low <= (gained - lost) / n <= high
    assert exceeds_p(lost, gained, n, low - 5e-3) <= 0.05
    assert exceeds_p(lost, gained, n, low + 5e-3) > 0.05
    assert difference_bounds(gained, lost, n, 0.05) == pytest.approx((-high, -low))
