"""Resampling: BCa intervals of any aggregate, and bootstrap-t bounds from the aggregate's influence values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from drupe.core.statistics.special import normal_quantile, normal_tail

__all__ = ["Aggregate", "Bounds", "Row", "bca_interval", "influence", "quantile_change", "t_bounds"]

Row = tuple[float, ...]
Aggregate = Callable[[Sequence[Row]], float]
"""What turns rows into the value of a metric."""

_RESAMPLES = 2000
_MOST_BLOCKS = 400
"""Leaving out each row by itself costs n² work; past this many rows, blocks of rows are left out."""


@dataclass(frozen=True)
class Bounds:
    """One-sided bounds of a statistic, each at confidence 1 − alpha, and its standard error."""

    low: float
    high: float
    error: float


def influence(rows: Sequence[Row], aggregate: Aggregate) -> list[float]:
    """Return the influence of each row (or block of rows) on the aggregate, by leaving it out; the mean is 0."""
    blocks = _blocks(len(rows))
    left_out = [aggregate([*rows[:start], *rows[stop:]]) for start, stop in blocks]
    mean = math.fsum(left_out) / len(left_out)
    return [(len(blocks) - 1) * (mean - value) for value in left_out]


def t_bounds(value: float, effects: Sequence[float], alpha: float, seed: int = 0) -> Bounds:
    """Return one-sided bootstrap-t bounds (Efron 1979; Hall 1988) of a statistic with that value and these influences.

    The studentized mean of the influences stands for the studentized statistic, so that a resample costs no call of
    the aggregate. Raises ValueError for fewer than 2 effects.
    """
    import numpy as np

    table = np.asarray(effects, dtype=float)
    n = len(table)
    if n < 2:
        raise ValueError(f"{n} rows: a bound needs 2 or more")
    table = table - table.mean()
    error = float(table.std(ddof=1) / math.sqrt(n))
    if error == 0.0 or not math.isfinite(error):
        return Bounds(value, value, 0.0 if error == 0.0 else math.inf)
    random = np.random.default_rng([seed, n])
    means = np.empty(_RESAMPLES)
    deviations = np.empty(_RESAMPLES)
    step = max(1, 2_000_000 // n)
    for start in range(0, _RESAMPLES, step):
        drawn = table[random.integers(0, n, size=(min(step, _RESAMPLES - start), n))]
        means[start : start + step] = drawn.mean(axis=1)
        deviations[start : start + step] = drawn.std(axis=1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        studentized = means / (deviations / math.sqrt(n))
    # A resample of equal rows has no spread: it says nothing of the shape, and counts as extreme on its own side.
    studentized = np.where(np.isnan(studentized), 0.0, studentized)
    low, high = np.quantile(studentized, [alpha, 1 - alpha])
    normal = normal_quantile(1 - alpha)
    # Never shorter than the normal bound: at small n the resampled tail is itself uncertain.
    return Bounds(value - max(float(high), normal) * error, value - min(float(low), -normal) * error, error)


def bca_interval(rows: Sequence[Row], aggregate: Aggregate, confidence: float, seed: int = 0) -> tuple[float, float]:
    """Return the two-sided BCa interval (Efron 1987) of the aggregate over rows, the same for the same seed."""
    import numpy as np

    n = len(rows)
    value = aggregate(rows)
    random = np.random.default_rng([seed, n])
    resamples = _RESAMPLES if n <= 1000 else _RESAMPLES // 2
    drawn = [aggregate([rows[i] for i in random.integers(0, n, size=n).tolist()]) for _ in range(resamples)]
    values = np.sort(np.asarray([d for d in drawn if math.isfinite(d)], dtype=float))
    if len(values) < 2 or values[0] == values[-1]:
        return (float(value), float(value))
    share = float(np.mean(values < value) + np.mean(values == value) / 2)
    share = min(max(share, 1 / (2 * len(values))), 1 - 1 / (2 * len(values)))
    bias = normal_quantile(share)
    acceleration = _acceleration(influence(rows, aggregate))
    ends = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + normal_quantile(tail)
        ends.append(normal_tail(-(bias + z / (1 - acceleration * z))))
    low, high = np.quantile(values, ends)
    return float(low), float(high)


def quantile_change(
    candidate: Sequence[float], baseline: Sequence[float], quantile: float, alpha: float, *, ratio: bool, seed: int = 0
) -> tuple[float, float, float, float]:
    """Return (change, lower bound, upper bound, standard error) of a quantile against the baseline's, over pairs.

    The change is a ratio, or a difference; bounds by the percentile bootstrap, whose resampled quantiles need no
    smoothness that a quantile lacks.
    """
    import numpy as np

    ours, theirs = np.asarray(candidate, dtype=float), np.asarray(baseline, dtype=float)

    def change(a: Any, b: Any) -> Any:
        return a / b if ratio else a - b

    n = len(ours)
    drawn = np.random.default_rng([seed, n]).integers(0, n, size=(_RESAMPLES, n))
    values = change(np.quantile(ours[drawn], quantile, axis=1), np.quantile(theirs[drawn], quantile, axis=1))
    low, high = np.quantile(values, [alpha, 1 - alpha])
    value = change(np.quantile(ours, quantile), np.quantile(theirs, quantile))
    return float(value), float(low), float(high), float(values.std())


def _acceleration(effects: Sequence[float]) -> float:
    squares = math.fsum(e * e for e in effects)
    if squares == 0.0 or not math.isfinite(squares):
        return 0.0
    return math.fsum(e**3 for e in effects) / (6 * squares * math.sqrt(squares))


def _blocks(n: int) -> list[tuple[int, int]]:
    count = min(n, _MOST_BLOCKS)
    edges = [round(i * n / count) for i in range(count + 1)]
    return list(pairwise(edges))
