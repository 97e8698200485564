"""A made-up search whose best point is known, and a worker process that runs it; killed at will by the tests."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe.core.config import Choice, FloatRange, Ordered
from drupe.core.metrics import Measurement
from drupe.core.study import Dimension, Goal, Objective, Outcome, Space, StudySettings
from drupe.search.study import OptunaStudy

SPACE = Space(
    (
        Dimension("quantize", Choice(0, 1)),
        Dimension("lora.r", Ordered(2, 4, 8, 16, 32, 64)),
        Dimension("lora.lr", FloatRange(1e-5, 1e-2, log=True)),
        Dimension("quantize.bits", Ordered(2, 4, 8), {"quantize": [1]}),
    )
)
GOALS = (Goal("latency-p50", "threshold", 20.0, "lower"),)
OBJECTIVES = (Objective("accuracy-exact", "higher", 1), Objective("latency-p50", "lower", 2))


OPENED: list[OptunaStudy] = []
"""Studies that a test opened; closed after it."""


def measured(name: str, value: float, direction: Any = "higher", n: int = 100) -> Measurement:
    """Return a measurement of that value."""
    return Measurement(name, value, "", direction, n)


def outcome_of(point: Mapping[str, Any]) -> Outcome:
    """Return what the made-up passes give at a point: bigger ranks are better and slower, few bits lose accuracy."""
    import math

    bits = point.get("quantize.bits", 32)
    accuracy = 0.95 - 0.02 * abs(math.log10(point["lora.lr"]) + 3) - {2: 0.3, 4: 0.03, 8: 0.005, 32: 0.0}[bits]
    accuracy -= 0.1 / point["lora.r"]
    latency = 4.0 + bits * 0.7 + point["lora.r"] * 0.05
    return Outcome(
        "complete",
        {
            "accuracy-exact": measured("accuracy-exact", accuracy),
            "latency-p50": measured("latency-p50", latency, "lower"),
        },
        {"latency-p50 threshold": (latency - 20) / 20},
        candidate=f"{accuracy:.6f}",
    )


def new_study() -> OptunaStudy:
    """Return a study that is closed at the end of the test."""
    OPENED.append(OptunaStudy())
    return OPENED[-1]


def open_study(folder: Path, **settings: Any) -> OptunaStudy:
    """Open the made-up study in a folder."""
    study = new_study()
    study.open("cpu", SPACE, GOALS, OBJECTIVES, StudySettings(**{"max_trials": 20, "seed": 1, **settings}), folder)
    return study


def run(study: OptunaStudy, pause: float = 0.0) -> int:
    """Run the study to its end and return how many trials this call ran."""
    count = 0
    while True:
        trial = study.ask()
        if trial is None:
            if study.waiting():
                time.sleep(0.02)
                continue
            return count
        time.sleep(pause)
        study.tell(trial, outcome_of(trial.point))
        count += 1


def listing(study: OptunaStudy) -> list[tuple[int, dict[str, Any]]]:
    """Return the trials as (number, point)."""
    return [(trial.number, dict(trial.point)) for trial, _ in study.finished()]


if __name__ == "__main__":
    folder, sampler, trials, pause, storage, *rest = sys.argv[1:]
    opened = open_study(Path(folder), sampler=sampler, max_trials=int(trials), storage=storage or None)
    for meeting in filter(None, rest):
        # However long each took to start, both are there before either works.
        (Path(meeting) / str(os.getpid())).touch()
        while len(list(Path(meeting).iterdir())) < 2:
            time.sleep(0.01)
    print(run(opened, float(pause)), flush=True)
    opened.close()
