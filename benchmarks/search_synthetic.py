"""Samplers on a made-up pass set whose best feasible point is known: feasible hits and trials to the best point.

Every method gets the same budget. "TPE, blind" is TPE that is not told of the limits, as in tools that filter
afterwards.

    python benchmarks/search_synthetic.py [--seeds 30] [--trials 60]
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe.core.config import Choice, IntRange, Ordered
from drupe.core.metrics import Measurement
from drupe.core.study import Dimension, Goal, Objective, Outcome, Space, StudySettings
from drupe.search.space import points
from drupe.search.study import OptunaStudy

SPACE = Space(
    (
        Dimension("lora.r", Ordered(2, 4, 8, 16, 32, 64)),
        Dimension("lora.lr_step", IntRange(0, 11)),
        Dimension("method", Choice(0, 1, 2)),
        Dimension("method.bits", Ordered(2, 3, 4, 6, 8), {"method": [0, 1]}),
        Dimension("method.block", Ordered(16, 32, 64, 128), {"method": [0]}),
        Dimension("prune.share", IntRange(0, 8)),
    )
)
GOALS = (Goal("latency-p50", "threshold", 8.0, "lower"), Goal("size-mb", "threshold", 62.0, "lower"))
OBJECTIVES = (Objective("accuracy-exact", "higher"),)


def measure(point: Mapping[str, Any]) -> dict[str, float]:
    """Return what the made-up passes give: quality costs time and space, and pruning pays only up to a point."""
    bits = point.get("method.bits", 16)
    block = point.get("method.block", 64)
    kind = (0.0, 0.012, 0.0)[point["method"]]
    rate = point["lora.lr_step"]
    accuracy = 0.96 - 0.0015 * (rate - 7) ** 2 - 0.08 / point["lora.r"] - kind
    accuracy -= {2: 0.22, 3: 0.09, 4: 0.03, 6: 0.01, 8: 0.004, 16: 0.0}[bits] * (block / 64) ** 0.35
    accuracy -= 0.0012 * point["prune.share"] ** 2
    speed = 1 - 0.05 * point["prune.share"]
    latency = (5 + 1.1 * bits + 0.03 * point["lora.r"] + (2.0 if point["method"] == 1 else 0.0) + 24 / block) * speed
    size = (20 + 12.0 * bits + 80 / block + 0.25 * point["lora.r"]) * (1 - 0.04 * point["prune.share"])
    return {"accuracy-exact": accuracy, "latency-p50": latency, "size-mb": size}


def violations(values: Mapping[str, float]) -> dict[str, float]:
    return {f"{g.metric} threshold": (values[g.metric] - g.value) / g.value for g in GOALS}


def outcome(point: Mapping[str, Any], *, blind: bool) -> Outcome:
    values = measure(point)
    directions = {"accuracy-exact": "higher"}
    measured = {n: Measurement(n, v, "", directions.get(n, "lower"), 100) for n, v in values.items()}  # type: ignore[arg-type]
    return Outcome("complete", measured, {} if blind else violations(values))


def optimum() -> tuple[float, int, int]:
    """Return the best feasible accuracy, how many points are feasible, and how many there are."""
    best, feasible, total = -math.inf, 0, 0
    for point in points(SPACE):
        values = measure(point)
        total += 1
        if all(v <= 0 for v in violations(values).values()):
            feasible += 1
            best = max(best, values["accuracy-exact"])
    return best, feasible, total


def search(method: str, seed: int, trials: int, best: float) -> tuple[float, float, float]:
    """Return (share of feasible trials, trials until within a point of the optimum, what is missing at the end)."""
    blind = method == "TPE, blind"
    if method == "grid":
        everything = list(itertools.islice(points(SPACE), 200_000))
        random.Random(seed).shuffle(everything)
        asked = everything[:trials]
    else:
        name = {"Drupe (auto)": "auto", "random": "random", "TPE, blind": "tpe", "NSGA-II": "nsga2"}[method]
        asked = []
        with tempfile.TemporaryDirectory() as folder:
            study = OptunaStudy()
            settings = StudySettings(sampler=name, max_trials=trials, seed=seed)
            study.open("s", SPACE, () if blind else GOALS, OBJECTIVES, settings, Path(folder))
            while trial := study.ask():
                asked.append(trial.point)
                study.tell(trial, outcome(trial.point, blind=blind))
            study.close()
    hits, reached, top = 0, math.inf, -math.inf
    for number, point in enumerate(asked, 1):
        values = measure(point)
        if all(v <= 0 for v in violations(values).values()):
            hits += 1
            top = max(top, values["accuracy-exact"])
            if top >= best - 0.01:
                reached = min(reached, number)
    return hits / len(asked), reached, best - top


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--trials", type=int, default=60)
    arguments = parser.parse_args()
    best, feasible, total = optimum()
    print(f"{total:,} points, {feasible / total:.1%} of them feasible, best feasible accuracy {best:.4f}")
    print(f"{arguments.seeds} seeds, {arguments.trials} trials each")
    heads = ("feasible trials", "reached the best", "median trials to it", "missing at the end")
    print(f"{'method':14} {heads[0]:>16} {heads[1]:>17} {heads[2]:>20} {heads[3]:>19}")
    for method in ("Drupe (auto)", "TPE, blind", "NSGA-II", "random", "grid"):
        rows = [search(method, seed, arguments.trials, best) for seed in range(arguments.seeds)]
        reached = [r[1] for r in rows if math.isfinite(r[1])]
        middle = statistics.median(r[1] for r in rows)
        shown = f"{middle:.0f}" if math.isfinite(middle) else f"> {arguments.trials}"
        missing = statistics.median(r[2] for r in rows)
        hits = statistics.mean(r[0] for r in rows)
        missed = f"{missing:.2%}" if math.isfinite(missing) else "nothing feasible"
        print(f"{method:14} {hits:16.0%} {len(reached):>10} of {len(rows)} {shown:>20} {missed:>19}")


if __name__ == "__main__":
    main()
