"""Several workers on one study: steps shared, timed metrics alone, kills and interruptions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from drupe.core import trial_workers
from drupe.core.engine import Engine
from drupe.core.hosts import Host, HostDescription
from drupe.core.store import Store
from drupe.core.study import Trial
from drupe.core.workflow.read import read_workflow
from tests.core.workflow.plugins import base_document, make_registry
from tests.support.workflows import drupe, ended, manifest, runs, start_drupe, toy_document, write_workflow

_TIMED = {"name": "speed", "type": "toy_seconds", "sub_types": [{"name": "value"}]}


def search(folder: Path, *, workers: int = 2, naps: int = 6, timed: float | None = None, seed: int = 0) -> Path:
    """Write a search of four trials: two naps, and after each of them two texts. Return its path."""
    passes = {
        "nap": {"type": "Sleepy", "steps": {"search": [naps, 2 * naps], "ordered": True}, "seconds": 0.1},
        "append": {"type": "Append", "text": {"search": ["!", "?"]}},
    }
    strategy = {"max_trials": 4, "seed": seed, "workers": workers}
    document = toy_document(folder, passes=passes, systems={"here": {"type": "LocalSystem"}}, search_strategy=strategy)
    if timed is not None:
        entry: dict[str, Any] = {**_TIMED, "user_config": {"nap": timed}}
        document["evaluators"]["quality"]["metrics"].append(entry)
    return write_workflow(folder, document)


def servants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the warm workers of a driver."""
    return [p for p in psutil.Process(process.pid).children() if "--serve" in p.cmdline()]


def until(condition: Any, process: subprocess.Popen[str], seconds: float = 60) -> Any:
    """Wait for a condition while a driver runs, and return what it gave."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end and process.poll() is None, ended(process)
        time.sleep(0.01)
    return found


class EightCores(Host):
    """A host whose machine has eight cores."""

    def describe(self) -> HostDescription:
        return HostDescription(versions={}, devices=[{"device": "cpu", "cores": 8}])


class Cluster(EightCores):
    """One whose nodes have eight cores each."""

    one_machine = False


def check(folder: Path, naps: int = 6, cut: int = 0) -> None:
    """Every trial is there once, no finished step was done twice; cut: how many naps may have been begun again."""
    target = manifest(folder)["targets"]["here"]
    assert [(c["number"], c["state"]) for c in target["candidates"]] == [(n, "complete") for n in range(4)]
    assert len({tuple(sorted(c["point"].items())) for c in target["candidates"]}) == 4
    # Both naps make the same text, so that what follows them is the same step.
    assert sorted(line for line in runs(folder) if line.startswith("Append")) == ["Append ! 1", "Append ? 1"]
    done = sum(line.startswith("Sleepy") for line in runs(folder))
    assert 3 * naps <= done <= 3 * naps + cut


def test_a_timed_metric_has_the_machine_alone_while_others_are_stopped(tmp_path: Path) -> None:
    done = drupe("run", search(tmp_path, timed=0.4), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    check(tmp_path)
    lines = runs(tmp_path)
    began = [n for n, line in enumerate(lines) if line == "timed begin"]
    assert len(began) == 2
    assert all(lines[n + 1] == "timed end" for n in began)
    shares = manifest(tmp_path)["targets"]["here"]["search"]
    assert shares["workers"] == 2
    assert 0.8 <= shares["exclusive_seconds"] < shares["seconds"]
    assert f"2 workers, {shares['seconds']:.1f} s; for {shares['exclusive_share']:.1%}" in done.stdout


def test_a_trial_that_would_wait_for_another_ones_step_lets_the_next_one_go_first(tmp_path: Path) -> None:
    done = drupe("run", search(tmp_path, seed=2), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    check(tmp_path)
    first, second = manifest(tmp_path)["targets"]["here"]["candidates"][:2]
    assert first["point"]["nap.steps"] == second["point"]["nap.steps"], "take another seed: this shows nothing"
    naps = [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("nap")]
    assert naps[0] == naps[1] == "nap (Sleepy) on here …"


def test_a_killed_workers_trial_runs_again(tmp_path: Path) -> None:
    process = start_drupe("run", search(tmp_path), folder=tmp_path)
    until(lambda: "Sleepy 2" in runs(tmp_path), process)
    servants(process)[0].kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "host here failed (attempt 1)" in output
    check(tmp_path, cut=1)


def test_a_killed_driver_leaves_nobody_behind_not_even_one_that_was_stopped(tmp_path: Path) -> None:
    path = search(tmp_path, naps=12, timed=2)
    process = start_drupe("run", path, folder=tmp_path)
    until(lambda: len(servants(process)) == 2, process)
    workers = servants(process)
    until(
        lambda: any(w.status() == psutil.STATUS_STOPPED for w in workers) and "timed begin" in runs(tmp_path), process
    )
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    done = drupe("run", search(tmp_path, naps=12, timed=0.1), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ctrl_c_ends_all_workers_and_the_same_command_goes_on(tmp_path: Path) -> None:
    path = search(tmp_path)
    process = start_drupe("run", path, folder=tmp_path)
    until(lambda: runs(tmp_path).count("Sleepy 2") == 2, process)
    workers = servants(process)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert not psutil.wait_procs(workers, timeout=10)[1]
    done = drupe("run", path, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    check(tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_trials_whose_host_failed_are_run_again_and_count_once(tmp_path: Path, workers: int) -> None:
    passes = {
        "append": {"type": "Append", "times": {"search": [1, 2, 3], "ordered": True}},
        "unlucky": {"type": "Unlucky"},
    }
    strategy = {"max_trials": 3, "seed": 1, "workers": workers}
    systems = {"here": {"type": "LocalSystem"}}
    path = write_workflow(tmp_path, toy_document(tmp_path, passes=passes, systems=systems, search_strategy=strategy))
    failed = drupe("run", path, folder=tmp_path)
    assert failed.returncode == 1
    assert "the host here failed 3 trials in a row, last with: the board is gone" in failed.stdout
    assert runs(tmp_path).count("Unlucky True") == 3
    status = drupe("search", "status", tmp_path / "out", folder=tmp_path)
    assert "3 set aside" in status.stdout
    (tmp_path / "space").touch()
    done = drupe("run", path, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    candidates = manifest(tmp_path)["targets"]["here"]["candidates"]
    assert [(c["number"], c["state"]) for c in candidates] == [(n, "complete") for n in range(3)]
    assert sorted(c["point"]["append.times"] for c in candidates) == [1, 2, 3]
    assert sorted(line for line in runs(tmp_path) if line.startswith("Append")) == [f"Append ! {n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("host", "resources", "beside", "alone"),
    [
        (EightCores, {}, 4, 8),
        (EightCores, {"threads": 1}, 1, 1),
        (EightCores, {"cpus": 3}, 3, 3),
        (Cluster, {}, 8, 8),
    ],
)
def test_workers_on_one_machine_share_its_cores_unless_told_otherwise(
    tmp_path: Path, host: type[Host], resources: dict[str, int], beside: int, alone: int
) -> None:
    registry = make_registry()
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(base_document(search_strategy={"workers": 2})))
    workflow = read_workflow(path, registry)
    system = workflow.systems["here"]
    systems = {"here": replace(system, config={**system.config, "resources": resources})}
    engine = Engine(replace(workflow, systems=systems), registry, Store(tmp_path / "cache"))
    engine._hosts["here"] = host(None, None, state_dir=tmp_path)  # type: ignore[arg-type]
    assert engine.resources("here", alone=False).thread_count == beside
    assert engine.resources("here").thread_count == alone


class Two:
    """A study of two trials, the first of which another process is at."""

    def __init__(self, keys: tuple[str, str]) -> None:
        self._left = [Trial(number, {"key": key}) for number, key in enumerate(keys)]

    def ask(self) -> Trial | None:
        return self._left.pop(0) if self._left else None


def test_a_single_worker_of_several_processes_takes_another_trial_than_one_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "cache")
    monkeypatch.setattr(trial_workers, "next_step", lambda runner, point: point["key"])
    runner: Any = SimpleNamespace(engine=SimpleNamespace(store=store))
    order: list[int] = []
    with ExitStack() as elsewhere:
        elsewhere.enter_context(store.lock("a" * 64))

        def run(trial: Trial, lock: threading.Lock) -> None:
            order.append(trial.number)
            elsewhere.close()

        study: Any = Two(("a" * 64, "b" * 64))
        workers = trial_workers.TrialWorkers(
            study, runner, run, workers=1, cancelled=lambda: False, stop=lambda: None, aside=True
        )
        workers.work()
    assert order == [1, 0]
