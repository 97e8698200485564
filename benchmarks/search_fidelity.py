"""Multi-fidelity against full evaluation: sample evaluations and winners over made-up tone searches.

24 candidates answer the same selection samples; half of them clearly break the accuracy goal. Full evaluation answers
every sample with every candidate. Racing looks at growing parts and drops what can't be feasible or can't win any more;
trials come in a random order, or best first, as a sampler that has learned would ask for them.

    python benchmarks/search_fidelity.py [--seeds 30] [--samples 300] [--near 0.02] [--indifference 0.01 0.02]

--near: the good half has accuracies within so much of each other, so that nearly all is spent on ties. --indifference:
the same searches with these margins as well; how many winners are worse than the best by more than the margin is told
beside how many may be.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np

from drupe.core.statistics.racing import RISK, Look, decide, stages
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


def race(table: np.ndarray, indifference: float = 0.0) -> tuple[int | None, int]:
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
            goals = [(GOAL, look, GOAL.value)]
            if size == samples or not decide(goals, rival, looks=len(sizes) - 1, indifference=indifference).go_on:
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
    parser.add_argument("--near", type=float)
    parser.add_argument("--indifference", type=float, nargs="*", default=[])
    arguments = parser.parse_args()
    print(f"{arguments.seeds} searches of 24 candidates, {arguments.samples} samples, goal accuracy ≥ {GOAL.value}")
    for order in ("random order", "best first"):
        tables = [_table(seed, order, arguments) for seed in range(arguments.seeds)]
        for margin in (0.0, *arguments.indifference):
            print(f"{order}{f', indifference {margin:g}' if margin else ''}: {_told(tables, margin)}", flush=True)


def _table(seed: int, order: str, arguments: argparse.Namespace) -> np.ndarray:
    random = np.random.default_rng(seed)
    low, high = (0.86, 0.97) if arguments.near is None else (0.92 - arguments.near / 2, 0.92 + arguments.near / 2)
    accuracies = [*random.uniform(0.3, 0.75, 12), *random.uniform(low, high, 12)]
    random.shuffle(accuracies)
    if order == "best first":
        accuracies = sorted(accuracies, reverse=True)
    return answers(random, accuracies, arguments.samples)


def _told(tables: Sequence[np.ndarray], margin: float) -> str:
    factors, same, lost = [], 0, []
    for table in tables:
        (wanted, cost), (got, spent) = full(table), race(table, margin)
        factors.append(cost / spent)
        same += wanted == got
        if wanted is not None and wanted != got:
            lost.append(table[wanted].mean() - (table[got].mean() if got is not None else 0.0))
    outside = sum(one > margin + 1e-9 for one in lost)
    return (
        f"{np.median(factors):.1f} × fewer sample evaluations (least {min(factors):.1f}), same winner in {same} of "
        f"{len(tables)}" + (f", at most {max(lost):.1%} lost" if lost else "") + f"; worse by more than {margin:g}: "
        f"{outside} ({outside / len(tables):.1%}; {RISK:.0%} may be)"
    )


if __name__ == "__main__":
    main()
