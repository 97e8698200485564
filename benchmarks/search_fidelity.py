"""Multi-fidelity against full evaluation: sample evaluations and winners over made-up tone searches.

24 candidates answer the same selection samples; half of them clearly break the accuracy goal. Full evaluation answers
every sample with every candidate. Racing looks at growing parts and drops what can't be feasible or can't win any more;
trials come in a random order, or best first, as a sampler that has learned would ask for them.

    python benchmarks/search_fidelity.py [--seeds 30] [--samples 300]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np

from drupe.core.statistics.racing import Look, decide, stages
from drupe.core.study import Goal

GOAL = Goal("accuracy-exact", "threshold", 0.85, "higher", 0.95)


def mean(rows: Sequence[tuple[float, ...]]) -> float:
    return math.fsum(row[0] for row in rows) / len(rows)


def answers(random: np.random.Generator, accuracies: Sequence[float], samples: int) -> np.ndarray:
    """Return right or wrong per candidate and sample; samples are hard or easy for all, so that answers go together."""
    from scipy.special import expit, logit

    hardness = random.normal(0, 2.0, size=samples)
    table = np.empty((len(accuracies), samples))
    grid = np.linspace(-8, 8, 400)
    for index, accuracy in enumerate(accuracies):
        # The level at which the mean over samples is the accuracy asked for.
        level = grid[np.argmin([abs(expit(g - hardness).mean() - accuracy) for g in grid])]
        own = 0.8 * (level - hardness) + random.normal(0, 0.3, size=samples)
        table[index] = random.random(samples) < expit(own + 0.2 * logit(accuracy))
    return table


def race(table: np.ndarray) -> tuple[int | None, int]:
    """Return the winner and how many sample evaluations it took."""
    candidates, samples = table.shape
    sizes = stages(samples)
    spent, best = 0, None
    best_look: Look | None = None
    for number in range(candidates):
        for size in sizes:
            rows = {f"{i}": (float(table[number, i]),) for i in range(size)}
            look = Look(rows, samples, mean, proportion=True)
            rival = ("higher", look, best_look) if best_look is not None else None
            if size == samples or not decide([(GOAL, look, GOAL.value)], rival, looks=len(sizes) - 1).go_on:
                spent += size
                break
        if size == samples:
            value = mean(list(rows.values()))
            if value >= GOAL.value and (best_look is None or value > mean(list(best_look.rows.values()))):
                best, best_look = number, look
    return best, spent


def full(table: np.ndarray) -> tuple[int | None, int]:
    """Return the winner of measuring everything: the first of the best feasible ones."""
    values = table.mean(axis=1)
    feasible = values >= GOAL.value
    return (int(np.argmax(np.where(feasible, values, -1.0))) if feasible.any() else None), table.size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--samples", type=int, default=300)
    arguments = parser.parse_args()
    print(f"{arguments.seeds} searches of 24 candidates, {arguments.samples} samples, goal accuracy ≥ {GOAL.value}")
    for order in ("random order", "best first"):
        factors, same, lost = [], 0, []
        for seed in range(arguments.seeds):
            random = np.random.default_rng(seed)
            accuracies = [*random.uniform(0.3, 0.75, 12), *random.uniform(0.86, 0.97, 12)]
            random.shuffle(accuracies)
            if order == "best first":
                accuracies = sorted(accuracies, reverse=True)
            table = answers(random, accuracies, arguments.samples)
            (wanted, cost), (got, spent) = full(table), race(table)
            factors.append(cost / spent)
            same += wanted == got
            if wanted is not None and wanted != got:
                lost.append(table[wanted].mean() - (table[got].mean() if got is not None else 0.0))
        print(
            f"{order}: {np.median(factors):.1f} × fewer sample evaluations (least {min(factors):.1f}), same winner in "
            f"{same} of {arguments.seeds}" + (f", at most {max(lost):.1%} lost" if lost else "")
        )


if __name__ == "__main__":
    main()
