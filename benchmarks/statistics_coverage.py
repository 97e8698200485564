"""How often intervals and bounds hold: proportions (computed), bootstrap bounds (simulated), and best of 20.

python benchmarks/statistics_coverage.py [--quick]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from drupe.core.metrics import Measurement
from drupe.core.statistics.proportions import lower_bound, proportion_interval, upper_bound, wilson_interval
from drupe.core.statistics.verdicts import judge
from drupe.core.study import Goal

Rows = Sequence[tuple[float, ...]]


def wald(successes: int, n: int) -> tuple[float, float]:
    p = successes / n
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    return p - half, p + half


def clopper_pearson(successes: int, n: int) -> tuple[float, float]:
    return lower_bound(successes, n, 0.025), upper_bound(successes, n, 0.025)


def proportions(sizes: Sequence[int]) -> None:
    methods: dict[str, Callable[[int, int], tuple[float, float]]] = {
        "Wald": wald,
        "Wilson": wilson_interval,
        "Clopper-Pearson": clopper_pearson,
        "Drupe": proportion_interval,
    }
    truth = np.linspace(0.0005, 0.9995, 1999)
    print("coverage of the 95 % interval of a proportion, over p from 0 to 1")
    print(f"{'n':>5}  " + "  ".join(f"{name + ' mean':>20} {'least':>6}" for name in methods))
    for n in sizes:
        chances = stats.binom.pmf(np.arange(n + 1)[:, None], n, truth[None, :])
        cells = []
        for method in methods.values():
            ends = np.array([method(k, n) for k in range(n + 1)])
            covered = ((ends[:, :1] <= truth) & (truth <= ends[:, 1:])) * chances
            coverage = covered.sum(axis=0)
            cells.append(f"{coverage.mean():20.1%} {coverage.min():6.1%}")
        print(f"{n:5}  " + "  ".join(cells))


def mean(rows: Rows) -> float:
    return math.fsum(row[0] for row in rows) / len(rows)


def perplexity(rows: Rows) -> float:
    return math.exp(math.fsum(row[0] for row in rows) / math.fsum(row[1] for row in rows))


def at_quantile(quantile: float) -> Callable[[Rows], float]:
    return lambda rows: float(np.quantile([row[0] for row in rows], quantile))


def false_accepts(name: str, rounds: int, n: int) -> float:
    """Return how often a goal whose limit is exactly the truth is passed at 95 % confidence."""
    passed = 0
    for seed in range(rounds):
        random = np.random.default_rng([seed, n])
        passed += _one(name, random, n).status == "PASS"
    return passed / rounds


def _one(name: str, random: np.random.Generator, n: int) -> object:
    tokens = random.integers(10, 80, size=n).astype(float)
    if name == "perplexity, percent":
        base = random.gamma(3, 1, size=n) * tokens
        own = base * 1.02 + random.normal(0, 0.3, size=n) * np.sqrt(tokens)
        # Rows are independent, so the true ratio of perplexities is that of the expectations.
        limit = (math.exp(0.02 * 3.0) - 1) * 100
        return _compare("ppl-perplexity", "percent-max-degradation", limit, own, base, tokens, perplexity)
    if name == "skewed mean, difference":
        base = random.lognormal(0, 1, size=n)
        own = base + random.lognormal(-1, 0.8, size=n)
        limit = math.exp(-1 + 0.32)
        return _compare("err-mean", "max-degradation", limit, own, base, tokens, mean)
    if name == "skewed mean, threshold":
        rows = {str(i): (v, 1.0) for i, v in enumerate(random.lognormal(0, 1, size=n).tolist())}
        goal = Goal("err-mean", "threshold", math.exp(0.5), "lower", 0.95)
        return judge(goal, _measurement("err-mean", rows, mean), aggregate=mean)
    quantile = {"p50": 0.5, "p90": 0.9}[name.split()[0]]
    metric = f"latency-{name.split()[0]}"
    aggregate = at_quantile(quantile)
    own, base = random.lognormal(0, 0.3, size=n), random.lognormal(0, 0.3, size=n)
    if name.endswith("threshold"):
        rows = {str(i): (v, 1.0) for i, v in enumerate(own.tolist())}
        limit = math.exp(0.3 * stats.norm.ppf(quantile))
        goal = Goal(metric, "threshold", limit, "lower", 0.95)
        return judge(goal, _measurement(metric, rows, aggregate), aggregate=aggregate)
    return _compare(metric, "percent-max-degradation", 5.0, own * 1.05, base, tokens, aggregate)


def _compare(
    metric: str,
    kind: str,
    limit: float,
    own: np.ndarray,
    base: np.ndarray,
    tokens: np.ndarray,
    aggregate: Callable[[Rows], float],
) -> object:
    ours = {str(i): (float(v), float(t)) for i, (v, t) in enumerate(zip(own, tokens, strict=True))}
    theirs = {str(i): (float(v), float(t)) for i, (v, t) in enumerate(zip(base, tokens, strict=True))}
    goal = Goal(metric, kind, limit, "lower", 0.95)
    return judge(
        goal, _measurement(metric, ours, aggregate), _measurement(metric, theirs, aggregate), aggregate=aggregate
    )


def _measurement(metric: str, rows: dict[str, tuple[float, ...]], aggregate: Callable[[Rows], float]) -> Measurement:
    return Measurement(metric, aggregate(list(rows.values())), "", "lower", len(rows), rows=rows)


BOUNDS = (
    "perplexity, percent",
    "skewed mean, difference",
    "skewed mean, threshold",
    "p50 threshold",
    "p90 threshold",
    "p50 ratio",
    "p90 ratio",
)


def best_of(candidates: int = 20, n: int = 500, flips: float = 0.05, rounds: int = 2000) -> tuple[float, float]:
    """Return by how much the best of equal candidates flatters itself: by its point, and measured again elsewhere."""
    random = np.random.default_rng(1)
    truth = 0.7
    flattered = again = 0.0
    for _ in range(rounds):
        base = random.random(n) < truth
        # Each candidate flips a share of the answers, as many to right as to wrong.
        lost = random.random((candidates, n)) < flips / 2 / truth
        gained = random.random((candidates, n)) < flips / 2 / (1 - truth)
        values = np.where(base, ~lost, gained).mean(axis=1)
        flattered += values.max() - base.mean()
        again += (random.random(n) < truth).mean() - truth
    return flattered / rounds, again / rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    quick = parser.parse_args().quick
    proportions((60, 100) if quick else (20, 60, 100, 200, 300, 408, 1000))
    rounds = 200 if quick else 1000
    print(f"\nfalse accepts where the truth lies on the limit, {rounds} rounds, 5 % allowed")
    print(f"{'goal':26} " + "  ".join(f"n = {n:<4}" for n in (60, 120, 408)))
    for name in BOUNDS:
        print(f"{name:26} " + "  ".join(f"{false_accepts(name, rounds, n):8.1%}" for n in (60, 120, 408)))
    point, unseen = best_of(rounds=200 if quick else 1000)
    print(f"\nbest of 20 equal candidates on 500 items, 5 % of answers flipping: the point flatters by {point:.1%},")
    print(f"the value on items that nobody selected on by {abs(unseen):.1%}")


if __name__ == "__main__":
    main()
