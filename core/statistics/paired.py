"""Two models on the same items: is the difference of their proportions above a limit?

Of n items, `lost` were right with the baseline only and `gained` with the candidate only. The difference is
d = (gained − lost)/n. Wald intervals are too narrow here: with no lost item among 100 they accept anything.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from drupe.core.statistics.special import beta_quantile, log_factorials, normal_quantile, normal_tail

__all__ = ["difference_bounds", "exceeds_p", "score_interval", "score_z"]

_NUISANCE_RISK = 0.0005
"""The chance left out when the share of differing answers is confined to its own interval (Berger and Boos 1994)."""
_NUISANCE_POINTS = 48
_EXACT_UP_TO = 160
"""With more differing answers than this the score statistic is as good as normal."""


def score_z(lost: Any, gained: Any, n: int, difference: float) -> Any:
    """Return Tango's (1998) score statistic for H0: d = difference. Counts may be numbers or arrays.

    Raises ValueError where |difference| ≥ 1.
    """
    import numpy as np

    if not -1 < difference < 1:
        raise ValueError(f"a difference of proportions lies between -1 and 1, not at {difference}")
    lost, gained = np.asarray(lost, dtype=float), np.asarray(gained, dtype=float)
    # The restricted estimate of the gained share solves 2n·q² − B·q + gained·d(1 + d) = 0.
    half = gained * (1 + difference) + lost * (1 - difference) + 2 * n * difference
    root = np.sqrt(np.maximum(half * half - 8 * n * gained * difference * (1 + difference), 0.0))
    share = np.clip((half + root) / (4 * n), max(0.0, difference), (1 + difference) / 2)
    variance = n * (2 * share - difference - difference * difference)
    distance = gained - lost - n * difference
    with np.errstate(divide="ignore", invalid="ignore"):
        z = distance / np.sqrt(np.maximum(variance, 0.0))
    z = np.where(distance == 0, 0.0, z)
    return float(z) if z.ndim == 0 else z


def exceeds_p(lost: int, gained: int, n: int, difference: float) -> float:
    """Return the p-value of H0: d ≤ difference against d > difference.

    Exact and unconditional: the score statistic's tail probability, at its largest over the share of differing answers.
    The share is confined to its Berger-Boos interval. With many differing answers the normal tail is taken.
    """
    if difference <= -1:
        return 0.0
    if difference >= 1:
        return 1.0
    z = score_z(lost, gained, n, difference)
    if z <= 0:
        return max(0.5, normal_tail(z))
    if lost + gained > _EXACT_UP_TO:
        return normal_tail(z)
    return min(1.0, _largest_tail(lost, gained, n, difference, z) + _NUISANCE_RISK)


def _largest_tail(lost: int, gained: int, n: int, difference: float, z: float) -> float:
    import numpy as np

    differing = lost + gained
    tail = _NUISANCE_RISK / 2
    low = beta_quantile(differing, n - differing + 1, tail) if differing else 0.0
    high = beta_quantile(differing + 1, n - differing, 1 - tail) if differing < n else 1.0
    low = max(low, abs(difference))
    if high <= low:
        # The data speak against every share that the hypothesis allows.
        high = min(1.0, low * (1 + 1e-9) + 1e-12)
    shares = np.linspace(low, high, _NUISANCE_POINTS)
    p_gained, p_lost = (shares + difference) / 2, (shares - difference) / 2
    most = [_reach(n, float(p.max())) for p in (p_lost, p_gained)]
    b, c = np.meshgrid(np.arange(most[0] + 1), np.arange(most[1] + 1), indexing="ij")
    inside = b + c <= n
    extreme = inside & (score_z(b, c, n, difference) >= z - 1e-9)
    b, c = b[extreme], c[extreme]
    rest = n - b - c
    table = log_factorials(n)
    coefficient = table[n] - table[b] - table[c] - table[rest]
    with np.errstate(divide="ignore"):
        log_lost, log_gained = np.log(p_lost), np.log(p_gained)
        log_rest = np.log(np.maximum(1 - shares, 0.0))
    total = coefficient[None, :] + _times(b, log_lost) + _times(c, log_gained) + _times(rest, log_rest)
    return float(np.exp(total).sum(axis=1).max())


def _times(counts: Any, logs: Any) -> Any:
    """counts · log p for every p, where 0 · log 0 is 0."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        product = logs[:, None] * counts[None, :]
    return np.where(counts[None, :] == 0, 0.0, product)


def _reach(n: int, p: float) -> int:
    """Return a count that Bin(n, p) passes with a chance below 1e-9."""
    return min(n, math.ceil(n * p + 7 * math.sqrt(n * p * (1 - p)) + 12))


@lru_cache(maxsize=256)
def difference_bounds(lost: int, gained: int, n: int, alpha: float) -> tuple[float, float]:
    """Return the lower and the upper one-sided bound of d, each at confidence 1 − alpha, by inverting `exceeds_p`."""
    return _lower(lost, gained, n, alpha), -_lower(gained, lost, n, alpha)


def _lower(lost: int, gained: int, n: int, alpha: float) -> float:
    low, high = -1.0, (gained - lost) / n
    for _ in range(18):
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds_p(lost, gained, n, middle) <= alpha else (low, middle)
    return low


def score_interval(lost: float, gained: float, n: int, confidence: float) -> tuple[float, float]:
    """Return Tango's (1998) two-sided score interval of d."""
    z = normal_quantile(0.5 + confidence / 2)
    middle = (gained - lost) / n
    ends = []
    for edge, sign in ((-1.0, 1), (1.0, -1)):
        inside, outside = middle, edge
        for _ in range(60):
            between = (inside + outside) / 2
            beyond = not -1 < between < 1 or sign * score_z(lost, gained, n, between) > z
            inside, outside = (inside, between) if beyond else (between, outside)
        ends.append((inside + outside) / 2)
    return ends[0], ends[1]
