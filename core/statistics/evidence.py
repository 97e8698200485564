"""The evidence for or against a goal: a bound at its level, by the method that fits the metric.

| metric and goal | method |
|---|---|
| a proportion against a threshold | exact binomial bound (Clopper and Pearson 1934) |
| a proportion against the baseline's | exact unconditional score test on the paired items (`paired`) |
| a quantile against a threshold | binomial bound on the share of rows within the limit (an order statistic) |
| anything else with rows, alone or paired | bootstrap-t on influence values (`bootstrap`) |
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from drupe.core.statistics.bootstrap import Aggregate, Row, influence, t_bounds
from drupe.core.statistics.goals import is_percent, limit_of
from drupe.core.statistics.paired import difference_bounds, exceeds_p, score_interval, score_z
from drupe.core.statistics.proportions import (
    certifies,
    fewest_that_certify,
    lower_bound,
    proportion_interval,
    upper_bound,
)
from drupe.core.statistics.special import normal_quantile
from drupe.core.statistics.timing import quantile_bounds
from drupe.core.study import Goal

__all__ = [
    "Evidence",
    "paired_proportions",
    "paired_values",
    "quantile_of",
    "single_proportion",
    "single_quantile",
    "single_value",
]

_QUANTILE = re.compile(r"-(?:.*_)?p(\d{2,3})$")
_MOST_ITEMS = 10_000_000
_SURE_RISK = 0.005
"""The part of alpha that a percent goal spends on not knowing the baseline's own proportion."""


@dataclass(frozen=True)
class Evidence:
    """holds, broken: the goal is shown to hold, or to be broken, at the level asked for; at most one is true.

    bound: the one-sided bound that decides, in the unit of `interval`. what: what bound and interval are of: "value",
    "difference" or "ratio". n_needed: items that would decide if everything looked as it does now.
    """

    holds: bool
    broken: bool
    bound: float | None
    interval: tuple[float, float] | None
    n: int
    n_needed: int | None
    method: str
    what: str = "value"


def quantile_of(metric: str) -> float | None:
    """Return the quantile that a metric's name ends in ("latency-p90" → 0.9, "-p999" → 0.999), or None."""
    found = _QUANTILE.search(metric)
    return float("0." + found.group(1)) if found else None


def single_proportion(goal: Goal, successes: int, n: int, alpha: float) -> Evidence:
    """Judge a proportion against a threshold."""
    low, high = lower_bound(successes, n, alpha), upper_bound(successes, n, alpha)
    if goal.direction == "higher":
        holds, broken, bound = low >= goal.value, high < goal.value, low
    else:
        holds, broken, bound = high <= goal.value, low > goal.value, high
    interval = proportion_interval(successes, n, 1 - alpha)
    needed = None if holds or broken else _items_for_share(successes / n, n, goal.value, alpha)
    return Evidence(holds, broken, bound, interval, n, needed, "exact binomial")


def single_quantile(goal: Goal, values: list[float], quantile: float, alpha: float) -> Evidence:
    """Judge a quantile of independent values, of which small is good (large, where the goal says higher)."""
    sign = 1 if goal.direction == "lower" else -1
    ordered = sorted(sign * v for v in values)
    share = quantile if sign == 1 else 1 - quantile
    n, limit = len(ordered), sign * goal.value
    within = sum(v <= limit for v in ordered)
    below = sum(v < limit for v in ordered)
    holds = within > 0 and lower_bound(within, n, alpha) >= share
    broken = upper_bound(below, n, alpha) < share
    rank = fewest_that_certify(n, share, alpha)
    bound = None if rank is None else sign * ordered[rank - 1]
    needed = None
    if not holds and not broken:
        certain = math.ceil(math.log(alpha) / math.log(share)) if 0 < share < 1 else None
        needed = certain if within == n else _items_for_share(within / n, n, share, alpha)
    interval = _quantile_interval(ordered, share, alpha, sign)
    return Evidence(holds, broken, bound, interval, n, needed, f"order statistic of the {quantile:.4g} quantile")


def paired_proportions(
    goal: Goal, candidate: Mapping[str, Row], baseline: Mapping[str, Row], alpha: float
) -> Evidence | None:
    """Judge a proportion against the baseline's on the items that both have; None where they share none."""
    ids = candidate.keys() & baseline.keys()
    n = len(ids)
    if n == 0:
        return None
    # Successes are what the direction calls good, so that a drop is always the bad side.
    flip = goal.direction == "lower"
    good = [(bool(candidate[i][0]) != flip, bool(baseline[i][0]) != flip) for i in ids]
    gained = sum(c and not b for c, b in good)
    lost = sum(b and not c for c, b in good)
    method = "exact paired score"
    if is_percent(goal):
        # The limit is a share of the baseline's own proportion, which is known within its bound only. The side on
        # which the limit is hardest to pass is taken, at a small part of alpha.
        count = sum(bool(baseline[i][0]) for i in ids)
        least, most = lower_bound(count, n, _SURE_RISK), upper_bound(count, n, _SURE_RISK)
        risk = alpha - _SURE_RISK if alpha > 2 * _SURE_RISK else alpha / 2
        improves = goal.kind.endswith("min-improvement")
        share = goal.value / 100
        to_pass = share * most if improves else -share * least
        to_break = share * least if improves else -share * most
        method += " with the baseline's bound"
    else:
        risk = alpha
        to_pass = to_break = goal.value if goal.kind.endswith("min-improvement") else -goal.value
    holds = exceeds_p(lost, gained, n, to_pass) <= risk
    broken = not holds and exceeds_p(gained, lost, n, -to_break) <= risk
    low, high = difference_bounds(lost, gained, n, risk)
    # The p-value decides; it is no smooth function of the limit, so the bound may lie a hair on the other side of it.
    low = max(low, to_pass) if holds else min(low, to_pass)
    ends = score_interval(lost, gained, n, 1 - alpha)
    needed = None if holds or broken else _items_for_difference(lost / n, gained / n, n, to_pass, risk)
    if flip:
        low, high, ends = -high, -low, (-ends[1], -ends[0])
    bound = high if flip else low
    return Evidence(holds, broken, bound, ends, n, needed, method, "difference")


def single_value(goal: Goal, rows: list[Row], aggregate: Aggregate, alpha: float, seed: int) -> Evidence:
    """Judge any aggregate of rows against a threshold."""
    value = aggregate(rows)
    effects = influence(rows, aggregate)
    bounds, halves = t_bounds(value, effects, alpha, seed), t_bounds(value, effects, alpha / 2, seed)
    return _by_bounds(
        goal.direction,
        goal.value,
        value,
        (bounds.low, bounds.high, bounds.error),
        (halves.low, halves.high),
        len(rows),
        alpha,
        "value",
    )


def paired_values(
    goal: Goal,
    candidate: Mapping[str, Row],
    baseline: Mapping[str, Row],
    aggregate: Aggregate,
    alpha: float,
    seed: int,
) -> Evidence | None:
    """Judge any aggregate against the baseline's on the samples that both have; None where they share fewer than 2.

    Absolute goals look at the difference; percent goals at the ratio (its logarithm, while both values are positive).
    """
    ids = [i for i in candidate if i in baseline]
    if len(ids) < 2:
        return None
    ours, theirs = [candidate[i] for i in ids], [baseline[i] for i in ids]
    value, reference = aggregate(ours), aggregate(theirs)
    limit = limit_of(goal, reference)
    if limit is None or not math.isfinite(value):
        return None
    quantile = quantile_of(goal.metric)
    if quantile is not None:
        return _paired_quantile(
            goal, [aggregate([r]) for r in ours], [aggregate([r]) for r in theirs], quantile, alpha, seed
        )
    mine, other = influence(ours, aggregate), influence(theirs, aggregate)
    if is_percent(goal) and value > 0 and reference > 0 and limit > 0:
        effects = [m / value - o / reference for m, o in zip(mine, other, strict=True)]
        logs = t_bounds(math.log(value / reference), effects, alpha, seed)
        halves = t_bounds(math.log(value / reference), effects, alpha / 2, seed)
        return _by_bounds(
            goal.direction,
            limit / reference,
            value / reference,
            (math.exp(logs.low), math.exp(logs.high), value / reference * logs.error),
            (math.exp(halves.low), math.exp(halves.high)),
            len(ids),
            alpha,
            "ratio",
        )
    effects = [m - o for m, o in zip(mine, other, strict=True)]
    bounds = t_bounds(value - reference, effects, alpha, seed)
    halves = t_bounds(value - reference, effects, alpha / 2, seed)
    return _by_bounds(
        goal.direction,
        limit - reference,
        value - reference,
        (bounds.low, bounds.high, bounds.error),
        (halves.low, halves.high),
        len(ids),
        alpha,
        "difference",
    )


def _paired_quantile(
    goal: Goal, ours: list[float], theirs: list[float], quantile: float, alpha: float, seed: int
) -> Evidence | None:
    """Judge a quantile against the baseline's; pairs that were timed in turn."""
    ratio = is_percent(goal) and min(*ours, *theirs) > 0
    bounds = quantile_bounds(ours, theirs, quantile, alpha, ratio=ratio, seed=seed)
    ends = quantile_bounds(ours, theirs, quantile, alpha / 2, ratio=ratio, seed=seed)
    limit = limit_of(goal, 1.0 if ratio else 0.0)
    if bounds is None or ends is None or limit is None or (is_percent(goal) and not ratio):
        return None
    value, *rest = bounds
    low, high, error = rest
    evidence = _by_bounds(
        goal.direction,
        limit,
        value,
        (low, high, error),
        (ends[1], ends[2]),
        len(ours),
        alpha,
        "ratio" if ratio else "difference",
    )
    return replace(evidence, method="signed ranks" if quantile == 0.5 else "bootstrap of the quantile")


def _by_bounds(
    direction: str,
    limit: float,
    value: float,
    bounds: tuple[float, float, float],
    interval: tuple[float, float],
    n: int,
    alpha: float,
    what: str,
) -> Evidence:
    low, high, error = bounds
    if direction == "higher":
        holds, broken, bound = low >= limit, high < limit, low
    else:
        holds, broken, bound = high <= limit, low > limit, high
    needed = None
    gap = abs(value - limit)
    if not (holds or broken) and gap > 0 and math.isfinite(error):
        width = abs(value - bound) if (value > limit) == (direction == "higher") else max(value - low, high - value)
        needed = min(_MOST_ITEMS, max(n + 1, math.ceil(n * (width / gap) ** 2)))
    return Evidence(holds, broken, bound, interval, n, needed, "bootstrap-t", what)


def _items_for_share(share: float, n: int, limit: float, alpha: float) -> int | None:
    """Return how many items would decide a proportion that stays at `share`; None where it lies on the limit."""
    if share == limit:
        return None

    def decided(items: int) -> bool:
        right = share * items
        return certifies(right, items, limit, alpha) or certifies(items - right, items, 1 - limit, alpha)

    return _fewest(decided, n)


def _items_for_difference(lost: float, gained: float, n: int, limit: float, alpha: float) -> int | None:
    if gained - lost == limit:
        return None
    quantile = normal_quantile(1 - alpha)

    def decided(items: int) -> bool:
        z = float(score_z(lost * items, gained * items, items, limit))
        if lost == 0 and z > 0:
            # Without a lost item the normal tail is too short: the chance of seeing none is counted as it is.
            return limit < 0 and items * math.log1p(limit) <= math.log(alpha)
        return abs(z) >= quantile

    return _fewest(decided, n)


def _fewest(decided: object, n: int) -> int | None:
    assert callable(decided)
    high = n + 1
    while not decided(high):
        high *= 2
        if high > _MOST_ITEMS:
            return None
    low = max(n, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high


def _quantile_interval(ordered: list[float], share: float, alpha: float, sign: int) -> tuple[float, float] | None:
    n = len(ordered)
    above = fewest_that_certify(n, share, alpha / 2)
    below = fewest_that_certify(n, 1 - share, alpha / 2)
    if not above or not below:
        return None
    ends = sorted((sign * ordered[n - below], sign * ordered[above - 1]))
    return ends[0], ends[1]
