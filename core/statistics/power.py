"""What a goal can be expected to show before anything is spent: power, and the items that a good power takes.

A candidate is called lossless where it is exactly as good as its baseline but some answers flip in both directions.
"""

from __future__ import annotations

import math

from drupe.core.statistics.proportions import binomial_upper_tail, fewest_that_certify
from drupe.core.statistics.special import normal_quantile, normal_tail
from drupe.core.study import Goal

__all__ = ["FLIPS", "difference_power", "items_for_power", "limit_for_power", "power_text", "threshold_power"]

FLIPS = 0.05
"""The share of answers that a 4-bit model changes; what is assumed where nothing is measured yet."""
_GOOD = 0.8


def difference_power(n: int, limit: float, flips: float = FLIPS, alpha: float = 0.05, difference: float = 0.0) -> float:
    """Return the chance that a candidate of the given true difference to its baseline is certified.

    limit: the allowed drop (0.01 is one point). Normal approximation of the paired score test; where a flip is rare
    against n, the chance that the test can accept at all caps it.
    """
    quantile = normal_quantile(1 - alpha)
    distance = difference + limit
    variance = flips - difference**2
    at_limit = max(flips, limit) - limit**2
    if variance <= 0:
        return 1.0 if distance * math.sqrt(n / at_limit) >= quantile else 0.0
    return normal_tail(-(distance * math.sqrt(n) - quantile * math.sqrt(at_limit)) / math.sqrt(variance))


def items_for_power(limit: float, flips: float = FLIPS, alpha: float = 0.05, power: float = _GOOD) -> int:
    """Return how many items certify a lossless candidate with that chance."""
    at_limit = max(flips, limit) - limit**2
    spread = normal_quantile(1 - alpha) * math.sqrt(at_limit) + normal_quantile(power) * math.sqrt(flips)
    return math.ceil((spread / limit) ** 2)


def limit_for_power(n: int, flips: float = FLIPS, alpha: float = 0.05, power: float = _GOOD) -> float:
    """Return the smallest allowed drop at which n items certify a lossless candidate with that chance."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if difference_power(n, middle, flips, alpha) >= power else (middle, high)
    return high


def threshold_power(n: int, limit: float, true: float, alpha: float = 0.05) -> float:
    """Return the chance that a proportion that truly is `true` is certified to be at least `limit`, exactly."""
    fewest = fewest_that_certify(n, limit, alpha)
    return 0.0 if fewest is None else binomial_upper_tail(fewest, n, true)


def power_text(goal: Goal, n: int, *, flips: float = FLIPS, proportion: bool = True) -> str | None:
    """Return one line on what `n` items can show of a goal; None where there is nothing to say before measuring.

    Goals without a confidence, and metrics that are no proportions, have no power that is known in advance.
    """
    if goal.confidence is None or not proportion or n < 1:
        return None
    alpha = 1 - goal.confidence
    if goal.kind == "threshold":
        return _threshold_text(goal, n, alpha)
    if not goal.kind.endswith("max-degradation") or goal.value <= 0:
        return None
    percent = goal.kind.startswith("percent-")
    # A percent goal is a share of the baseline's own proportion, which is near 1 for a model worth keeping.
    limit = goal.value / 100 if percent else goal.value
    unit = " %" if percent else "-point"
    chance = difference_power(n, limit, flips, alpha)
    text = f"{goal.metric}: {n:,} items, {limit * 100:.3g}{unit} limit: a lossless model is certified with {chance:.0%}"
    if chance >= _GOOD:
        return text
    needed = items_for_power(limit, flips, alpha)
    wider = limit_for_power(n, flips, alpha)
    return f"{text}; {_round(needed):,} items for {_GOOD:.0%}, or limit {wider * 100:.2g}"


def _threshold_text(goal: Goal, n: int, alpha: float) -> str:
    limit = goal.value if goal.direction == "higher" else 1 - goal.value
    relation = "at least" if goal.direction == "higher" else "at most"
    fewest = fewest_that_certify(n, limit, alpha)
    if fewest is None:
        needed = math.ceil(math.log(alpha) / math.log(limit)) if 0 < limit < 1 else None
        tail = f"; {needed:,} items could" if needed else ""
        return f"{goal.metric}: {n:,} items can't certify {relation} {goal.value:g}, even with every item right{tail}"
    seen = fewest / n if goal.direction == "higher" else 1 - fewest / n
    right = fewest if goal.direction == "higher" else n - fewest
    return f"{goal.metric}: {n:,} items certify {relation} {goal.value:g} from {seen:.3f} on ({right} of {n:,})"


def _round(n: int) -> int:
    """Round up to two leading digits: more would pretend to a precision that a plan does not have."""
    unit = int(10 ** max(0, len(str(n)) - 2))
    return math.ceil(n / unit) * unit
