"""kill -9 at random moments on `drupe run` and on its workers: after resuming, no trial is lost or doubled.

Every round is a whole search of small texts by the real driver, in warm worker processes. Three kinds in turn: one
worker and the driver is killed, two workers and the driver is killed, two workers and one of their processes is killed.
Where a driver was killed, the same command is run again.

python benchmarks/search_driver_kill.py [--rounds 50] [--seed 1]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.workflows import runs, start_drupe, toy_document, write_workflow  # noqa: E402

from drupe.search.reading import find_home, read_study  # noqa: E402

TRIALS = 6
TIMES = [1, 2, 3, 4, 5, 6, 7, 8]
KINDS = ("driver, one worker", "driver, two workers", "worker of two")


def workflow(folder: Path, workers: int) -> Path:
    """Write a search of six points of sixteen by TPE: each appends, naps three times and is measured."""
    passes = {
        "append": {"type": "Append", "text": {"search": ["!", "?"]}, "times": {"search": TIMES, "ordered": True}},
        "nap": {"type": "Sleepy", "steps": 3, "seconds": 0.05},
    }
    strategy = {"sampler": "tpe", "max_trials": TRIALS, "seed": 4, "workers": workers}
    systems = {"here": {"type": "LocalSystem"}}
    return write_workflow(folder, toy_document(folder, passes=passes, systems=systems, search_strategy=strategy))


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a run, which must succeed."""
    output, _ = process.communicate(timeout=300)
    if process.returncode != 0:
        raise AssertionError(f"the run ended with {process.returncode}:\n{output}")


def outcome(folder: Path) -> tuple[list[tuple[int, Mapping[str, Any]]], int | None]:
    """Return the trials as (number, point), and the winner. Raises AssertionError where one is lost, doubled or not
    whole, in the manifest or in the study itself."""
    target = json.loads((folder / "out" / "drupe.json").read_text())["targets"]["here"]
    candidates = target["candidates"]
    assert [(c["number"], c["state"]) for c in candidates] == [(n, "complete") for n in range(TRIALS)], candidates
    view = read_study(find_home(str(folder / "out")))
    assert [t.number for t, _ in view.finished] == list(range(TRIALS)), view.finished
    assert not view.running, view.running
    return [(c["number"], c["point"]) for c in candidates], target["winner"]


def done_again(folder: Path) -> int:
    """Return how much of the work was done more than once: passes and naps that a kill cut short."""
    counts = Counter(line for line in runs(folder) if line.startswith("Append"))
    naps = sum(line.startswith("Sleepy") for line in runs(folder))
    return sum(counts.values()) - len(counts) + naps - 3 * len(counts)


def disturbed(folder: Path, kind: str, seconds: float) -> bool:
    """Run a search, killing once after so many seconds from its first trial on, and again to its end where the driver
    was killed. Return whether something was killed; a worker that was may have been idle."""
    path = workflow(folder, 1 if kind == KINDS[0] else 2)
    process = start_drupe("run", path, folder=folder)
    while not runs(folder) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(seconds)
    killed = process.poll() is None
    if kind == KINDS[2]:
        try:
            workers = [p for p in psutil.Process(process.pid).children() if "--serve" in p.cmdline()]
        except psutil.NoSuchProcess:
            workers = []
        killed = bool(workers)
        if workers:
            workers[0].kill()
        finish(process)
        return killed
    process.kill()
    process.communicate()
    finish(start_drupe("run", path, folder=folder))
    return killed


def main() -> None:
    """Run the rounds and print what held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    killed, exact, alone, same, again = 0, 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "undisturbed"
        whole.mkdir()
        started = time.monotonic()
        finish(start_drupe("run", workflow(whole, 1), folder=whole))
        print(f"undisturbed: {time.monotonic() - started:.1f} s", flush=True)
        expected = outcome(whole)
        for index in range(arguments.rounds):
            folder = Path(scratch) / str(index)
            folder.mkdir()
            kind = KINDS[index % len(KINDS)]
            killed += disturbed(folder, kind, draw.uniform(0.0, 1.6))
            try:
                found = outcome(folder)
                exact += 1
            except AssertionError as error:
                print(f"round {index} ({kind}): {error}", flush=True)
                continue
            if kind == KINDS[0]:
                alone += 1
                same += found == expected
            again += done_again(folder)
    print(f"{arguments.rounds} rounds, {killed} of them killed midway")
    print(f"exactly {TRIALS} trials afterwards, none lost or doubled: {exact} of {arguments.rounds}")
    print(f"one worker: the same trials and winner as undisturbed: {same} of {alone}")
    print(f"pieces of work that were cut short and begun again: {again}")
    if exact < arguments.rounds or same < alone or again > killed * 2:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
