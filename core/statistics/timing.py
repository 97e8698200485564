"""Two timed models, called in turn on one machine: the ratio of their times with an interval, and the machine's noise.

Each pair of calls lies close together in time and the two take turns in going first, so what else the machine does
falls on both alike. The pairs' log ratios are then near symmetric about the true one, and Wilcoxon's signed ranks give
an interval that a few disturbed pairs hardly move.

Where many calls are disturbed (another process has the core as well), single pairs say little: then the quickest
quarter of each side's calls is compared, which tells what the code takes when it is left alone. Its interval is that of
a swap test: were the two equal, any pair could as well have come out the other way round. Which of the two ways is gone
is read off the spread alone, which does not know which side is quicker, so equal models still differ with the stated
risk only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drupe.core.statistics.bootstrap import quantile_change
from drupe.core.statistics.special import normal_quantile

__all__ = ["Comparison", "compare_times", "quantile_bounds", "signed_rank_bounds", "smallest_visible"]

_EXACT_UP_TO = 30
_MOST_PAIRS = 600
_DISTURBED = 0.1
"""The spread of pairs, or the share of pairs that stand out, beyond which the quickest calls are compared."""
_FEWEST_FOR_QUICKEST = 16
_SWAPS = 1000


@dataclass(frozen=True)
class Comparison:
    """The candidate's time over the baseline's. interval: two-sided at `confidence`. noise: the typical spread of a
    single pair's ratio (median absolute deviation, as a share). quickest: whether the quickest calls were compared, not
    the pairs. visible: the smallest change these pairs could show."""

    ratio: float
    interval: tuple[float, float] | None
    confidence: float
    n: int
    noise: float
    visible: float | None
    quickest: bool = False

    @property
    def differs(self) -> bool:
        """Whether the two differ at the confidence asked for."""
        return self.interval is not None and not self.interval[0] <= 1.0 <= self.interval[1]

    def text(self) -> str:
        """Return one line for a person."""
        if self.interval is None:
            return f"{self.n} pairs are too few to compare times"
        low, high = self.interval
        verdict = (
            f"{abs(self.ratio - 1):.1%} {'slower' if self.ratio > 1 else 'faster'}" if self.differs else "no difference"
        )
        seen = f"; changes under {self.visible:.1%} can't be seen with {self.n} pairs" if self.visible else ""
        how = ", so the quickest quarter of the calls was compared" if self.quickest else ""
        return (
            f"ratio {self.ratio:.3f} [{low:.3f}, {high:.3f}]: {verdict}; a pair varies by {self.noise:.1%}{how}{seen}"
        )


def compare_times(candidate: Sequence[float], baseline: Sequence[float], confidence: float = 0.95) -> Comparison:
    """Compare times taken in turn: candidate[i] was measured right beside baseline[i].

    Raises ValueError where the two have unequal lengths or a time is not positive.
    """
    if len(candidate) != len(baseline):
        raise ValueError(f"{len(candidate)} times beside {len(baseline)}: expected pairs")
    if any(t <= 0 for t in (*candidate, *baseline)):
        raise ValueError("times must be positive")
    logs = [math.log(c / b) for c, b in zip(candidate, baseline, strict=True)]
    spread = _spread(logs)
    quickest = len(logs) >= _FEWEST_FOR_QUICKEST and _many_stand_out(logs, spread)
    tail = (1 - confidence) / 2
    bounds = _quickest_bounds(candidate, baseline, tail) if quickest else signed_rank_bounds(logs, tail)
    if bounds is None:
        middle = _median(logs) if logs else 0.0
        return Comparison(math.exp(middle), None, confidence, len(logs), math.expm1(spread), None, quickest)
    low, centre, high = bounds
    # What 80 % of comparisons would show lies 1.43 half widths of a 95 % interval away.
    visible = math.expm1((high - low) / 2 * 1.43) if quickest else smallest_visible(spread, len(logs), 1 - confidence)
    return Comparison(
        math.exp(centre), (math.exp(low), math.exp(high)), confidence, len(logs), math.expm1(spread), visible, quickest
    )


def _many_stand_out(logs: Sequence[float], spread: float) -> bool:
    middle = _median(logs)
    far = sum(abs(v - middle) > max(4 * spread, 0.02) for v in logs)
    return spread > _DISTURBED or far > _DISTURBED * len(logs)


def _quickest_bounds(candidate: Sequence[float], baseline: Sequence[float], alpha: float) -> tuple[float, float, float]:
    """Return (lower bound, estimate, upper bound) of the log ratio of the quickest quarters, by swapping pairs."""
    import numpy as np

    ours, theirs = np.log(np.asarray(candidate)), np.log(np.asarray(baseline))
    n = len(ours)
    kept = max(4, n // 4)
    swapped = np.random.default_rng(n).random((_SWAPS, n)) < 0.5

    def level(values: Any) -> Any:
        return np.partition(values, kept - 1, axis=-1)[..., :kept].mean(axis=-1)

    def above(shift: float) -> float:
        """The chance, were the true log ratio `shift`, of a difference as large as the one that was seen."""
        moved = ours - shift
        seen = level(moved) - level(theirs)
        drawn = level(np.where(swapped, theirs, moved)) - level(np.where(swapped, moved, theirs))
        return float((1 + (drawn >= seen - 1e-12).sum()) / (1 + _SWAPS))

    centre = float(level(ours) - level(theirs))
    reach = float(max(ours.max() - theirs.min(), theirs.max() - ours.min(), 1e-6)) + abs(centre)
    low, high = _edge(above, centre, -reach, alpha), _edge(lambda s: 1 - above(s), centre, reach, alpha)
    return low, centre, high


def _edge(chance: Any, inside: float, width: float, alpha: float) -> float:
    """Return where a chance that falls on the way from `inside` to `inside + width` crosses alpha."""
    outside = inside + width
    for _ in range(18):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if chance(middle) > alpha else (inside, middle)
    return outside


def _spread(logs: Sequence[float]) -> float:
    if not logs:
        return 0.0
    middle = _median(logs)
    return 1.4826 * _median([abs(v - middle) for v in logs])


def smallest_visible(spread: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the change of times, as a share, that n pairs of that spread (of log ratios) show with that power."""
    # Signed ranks need π/3 times the pairs of a t test on normal data.
    error = spread * math.sqrt(math.pi / 3 / n)
    return math.expm1((normal_quantile(1 - alpha / 2) + normal_quantile(power)) * error)


def signed_rank_bounds(values: Sequence[float], alpha: float) -> tuple[float, float, float] | None:
    """Return (lower bound, Hodges-Lehmann estimate, upper bound) of the centre of values that are symmetric about it.

    Each bound holds at confidence 1 − alpha: an order statistic of the Walsh averages, by Wilcoxon's signed ranks.
    None where there are too few values for that confidence.
    """
    import numpy as np

    table = np.asarray(values, dtype=float)
    if len(table) > _MOST_PAIRS:
        # Averages of neighbours keep the centre and bound the work.
        table = np.array([part.mean() for part in np.array_split(table, _MOST_PAIRS)])
    n = len(table)
    if n < 2:
        return None
    rank = _rank(n, alpha)
    if rank is None:
        return None
    left, right = np.triu_indices(n)
    averages = np.sort((table[left] + table[right]) / 2)
    return float(averages[rank - 1]), float(np.median(averages)), float(averages[len(averages) - rank])


def _rank(n: int, alpha: float) -> int | None:
    """Return the largest k with P(signed-rank sum < k) ≤ alpha: the Walsh average of that rank is the bound."""
    if n > _EXACT_UP_TO:
        mean, sigma = n * (n + 1) / 4, math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return max(1, math.floor(mean + normal_quantile(alpha) * sigma + 0.5))
    counts = [1]
    for rank in range(1, n + 1):
        longer = counts + [0] * rank
        for total, ways in enumerate(counts):
            longer[total + rank] += ways
        counts = longer
    below, k = 0.0, 0
    while below + counts[k] / 2**n <= alpha:
        below += counts[k] / 2**n
        k += 1
    return k or None


def quantile_bounds(
    candidate: Sequence[float], baseline: Sequence[float], quantile: float, alpha: float, *, ratio: bool, seed: int = 0
) -> tuple[float, float, float, float] | None:
    """Return (change, lower bound, upper bound, standard error) of a quantile against the baseline's, each bound at
    confidence 1 − alpha.

    The change is a ratio, or a difference. The median goes by signed ranks of the pairs, other quantiles by the
    bootstrap over pairs; None where too few values lie beyond the quantile to say anything.
    """
    if abs(quantile - 0.5) < 1e-9:
        pairs = list(zip(candidate, baseline, strict=True))
        logs = [math.log(c / b) for c, b in pairs] if ratio else [c - b for c, b in pairs]
        bounds = signed_rank_bounds(logs, alpha)
        if bounds is None:
            return None
        low, centre, high = (math.exp(v) for v in bounds) if ratio else bounds
        return centre, low, high, (high - low) / 3.3
    if len(candidate) * min(quantile, 1 - quantile) < 5:
        return None
    return quantile_change(candidate, baseline, quantile, alpha, ratio=ratio, seed=seed)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
