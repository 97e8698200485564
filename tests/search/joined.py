"""A driver and processes that join its study, as a user starts them."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from drupe.core.errors import ConfigError
from drupe.search.reading import StudyView, find_home, read_study
from tests.support.workflows import ended, manifest, runs, start_drupe, toy_document, write_workflow

TRIALS, NAPS = 8, 3


def write(folder: Path, storage: str | None = None, *, unlucky: bool = False, **changes: Any) -> Path:
    """Write a search of eight trials, each of which naps, and return its path. unlucky: each needs space first."""
    passes: dict[str, Any] = {
        "append": {"type": "Append", "times": {"search": list(range(1, TRIALS + 1)), "ordered": True}},
        **({"luck": {"type": "Unlucky"}} if unlucky else {}),
        # By its name it would come first.
        "a nap": {"type": "Sleepy", "steps": NAPS, "seconds": 0.2},
    }
    strategy = {"max_trials": TRIALS, "seed": 1, **({"storage": storage} if storage else {})}
    systems = {"here": {"type": "LocalSystem"}}
    return write_workflow(
        folder, toy_document(folder, passes=passes, systems=systems, search_strategy=strategy, **changes)
    )


def begun(where: str, process: subprocess.Popen[str], trials: int = 1) -> StudyView:
    """Wait until the driver's study has finished so many trials, and return what there is of it."""
    end = time.monotonic() + 60
    while True:
        assert time.monotonic() < end and process.poll() is None, ended(process)
        try:
            view = read_study(find_home(where), "here")
        except ConfigError:
            time.sleep(0.1)
            continue
        if len(view.finished) >= trials:
            return view
        time.sleep(0.05)


def join(folder: Path, where: str, name: str = "here", *options: str) -> subprocess.Popen[str]:
    """Start `drupe worker`."""
    return start_drupe("worker", where, name, *options, folder=folder)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a process that must succeed, and return what it printed."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def check(folder: Path, cut: int = 0) -> None:
    """Every trial is there once and no finished step was done twice; cut: by kills."""
    candidates = manifest(folder)["targets"]["here"]["candidates"]
    assert [(c["number"], c["state"]) for c in candidates] == [(n, "complete") for n in range(TRIALS)]
    assert sorted(c["point"]["append.times"] for c in candidates) == list(range(1, TRIALS + 1))
    assert all(c["chain"] for c in candidates)
    lines = runs(folder)
    appended = [line for line in lines if line.startswith("Append")]
    assert set(appended) == {f"Append ! {n}" for n in range(1, TRIALS + 1)}
    naps = sum(line.startswith("Sleepy") for line in lines)
    assert 0 <= len(appended) - TRIALS + naps - TRIALS * NAPS <= cut
