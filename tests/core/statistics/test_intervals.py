from __future__ import annotations

import inspect
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from drupe.core.statistics.bootstrap import bca_interval, influence, t_bounds
from drupe.core.statistics.intervals import interval_for, proportion_interval

Rows = Sequence[tuple[float, ...]]


def mean(rows: Rows) -> float:
    return math.fsum(row[0] for row in rows) / len(rows)


def perplexity(rows: Rows) -> float:
    return math.exp(math.fsum(row[0] for row in rows) / math.fsum(row[1] for row in rows))


def test_a_proportion_gets_the_binomial_interval() -> None:
    rows = {str(i): (float(i < 50),) for i in range(60)}
    assert interval_for(rows, mean, 0.95, proportion=True) == proportion_interval(50, 60, 0.95)


def test_fewer_than_two_rows_have_no_interval() -> None:
    assert interval_for({"a": (1.0,)}, mean, 0.95) is None
    assert interval_for({}, mean, 0.95) is None


def test_equal_rows_have_an_interval_of_no_width() -> None:
    assert interval_for([(2.0,)] * 5, mean, 0.95) == (2.0, 2.0)


def test_interval_is_the_same_for_the_same_rows() -> None:
    draw = random.Random(3)
    rows = [(draw.expovariate(1.0), 1.0) for _ in range(40)]
    assert interval_for(rows, perplexity, 0.95, seed=1) == interval_for(rows, perplexity, 0.95, seed=1)
    assert interval_for(rows, perplexity, 0.95, seed=1) != interval_for(rows, perplexity, 0.95, seed=2)


def test_bca_agrees_with_scipy() -> None:
    sample = np.random.default_rng(5).exponential(size=60)
    ours = bca_interval([(float(x),) for x in sample], mean, 0.95, seed=0)
    # SciPy before 1.15 calls the generator random_state.
    name = "rng" if "rng" in inspect.signature(stats.bootstrap).parameters else "random_state"
    theirs = stats.bootstrap((sample,), np.mean, n_resamples=9999, method="BCa", **{name: np.random.default_rng(0)})
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.03)


def test_influence_on_a_mean_is_the_distance_from_it() -> None:
    rows = [(1.0,), (2.0,), (6.0,)]
    assert influence(rows, mean) == pytest.approx([-2.0, -1.0, 3.0])


def test_bound_of_a_mean_is_near_students() -> None:
    sample = np.random.default_rng(7).normal(10, 2, size=200)
    rows = [(float(x),) for x in sample]
    bounds = t_bounds(mean(rows), influence(rows, mean), 0.05)
    error = sample.std(ddof=1) / math.sqrt(200)
    assert bounds.error == pytest.approx(error, rel=1e-6)
    assert bounds.high == pytest.approx(sample.mean() + stats.t.ppf(0.95, 199) * error, abs=0.03)
    assert bounds.low == pytest.approx(sample.mean() - stats.t.ppf(0.95, 199) * error, abs=0.03)


def test_many_rows_are_left_out_in_blocks() -> None:
    sample = np.random.default_rng(9).normal(size=2000)
    rows = [(float(x),) for x in sample]
    effects = influence(rows, mean)
    assert len(effects) == 400
    assert t_bounds(mean(rows), effects, 0.05).error == pytest.approx(sample.std() / math.sqrt(2000), rel=0.1)
