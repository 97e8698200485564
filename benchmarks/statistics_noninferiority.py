"""False accepts of a non-inferiority goal at the boundary, where the true drop equals the limit.

The chances are computed, not simulated: for every count of lost items the fewest gained items that the method accepts
are found, and the trinomial probabilities of the accepted outcomes are summed.

    python benchmarks/statistics_noninferiority.py [--quick]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
from scipy.special import gammaln, ndtri

from drupe.core.statistics.paired import exceeds_p, score_z

ALPHA = 0.05
SIZES = (100, 150, 200, 250, 300, 350, 408)
FLIPS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.10)
LIMITS = (0.01, 0.02, 0.03, 0.05)

Accepts = Callable[[int, int, int, float], bool]


def point(lost: int, gained: int, n: int, limit: float) -> bool:
    """Accept where the observed drop is within the limit."""
    return (gained - lost) / n >= -limit - 1e-12


def wald(lost: int, gained: int, n: int, limit: float) -> bool:
    """Accept by the textbook interval of a paired difference."""
    d = (gained - lost) / n
    error = math.sqrt(max((lost + gained) / n - d * d, 0.0) / n)
    return d + limit > float(ndtri(1 - ALPHA)) * error


def score(lost: int, gained: int, n: int, limit: float) -> bool:
    """Accept by Tango's score statistic against the normal quantile."""
    return float(score_z(lost, gained, n, -limit)) >= float(ndtri(1 - ALPHA))


def exact(lost: int, gained: int, n: int, limit: float) -> bool:
    """Accept as Drupe does."""
    return exceeds_p(lost, gained, n, -limit) <= ALPHA


METHODS: dict[str, Accepts] = {"point rule": point, "Wald": wald, "score": score, "Drupe": exact}


def accepted(method: Accepts, n: int, limit: float, most: int) -> np.ndarray:
    """Return for each count of lost items the fewest gained items that are accepted (n + 1: none)."""
    fewest = np.full(most + 1, n + 1)
    gained = 0
    for lost in range(most + 1):
        while gained <= n - lost and not method(lost, gained, n, limit):
            gained += 1
        fewest[lost] = gained
        if gained > n - lost:
            break
    return fewest


def chance(fewest: np.ndarray, n: int, flips: float, difference: float) -> float:
    """Return the chance of acceptance when that share of answers flips and the true difference is `difference`."""
    p_gained, p_lost = (flips + difference) / 2, (flips - difference) / 2
    reach = min(n, math.ceil(n * flips + 8 * math.sqrt(n * flips) + 10))
    lost, gained = np.meshgrid(np.arange(min(reach, len(fewest) - 1) + 1), np.arange(reach + 1), indexing="ij")
    inside = (lost + gained <= n) & (gained >= fewest[lost])
    lost, gained = lost[inside], gained[inside]
    rest = n - lost - gained
    log = gammaln(n + 1) - gammaln(lost + 1) - gammaln(gained + 1) - gammaln(rest + 1)
    for count, p in ((lost, p_lost), (gained, p_gained), (rest, 1 - flips)):
        log = log + np.where(count == 0, 0.0, count * np.log(max(p, 1e-300)))
    return float(np.exp(log).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cells")
    quick = parser.parse_args().quick
    sizes, limits = ((100, 408), (0.01, 0.03)) if quick else (SIZES, LIMITS)
    worst: dict[str, tuple[float, str]] = dict.fromkeys(METHODS, (0.0, ""))
    print(f"{'n':>4} {'limit':>6} {'flips':>6}  " + "  ".join(f"{name:>10}" for name in METHODS))
    for n in sizes:
        for limit in limits:
            most = min(n, math.ceil(n * 0.075 + 8 * math.sqrt(n * 0.075) + 10))
            regions = {name: accepted(method, n, limit, most) for name, method in METHODS.items()}
            for flips in FLIPS:
                if flips < limit:
                    continue
                chances = {name: chance(region, n, flips, -limit) for name, region in regions.items()}
                row = "  ".join(f"{value:10.1%}" for value in chances.values())
                print(f"{n:4} {limit:6.0%} {flips:6.0%}  {row}")
                for name, value in chances.items():
                    worst[name] = max(worst[name], (value, f"n = {n}, limit {limit:.0%}, flips {flips:.0%}"))
    print()
    for name, (value, where) in worst.items():
        print(f"worst cell, {name}: {value:.1%} at {where}")


if __name__ == "__main__":
    main()
