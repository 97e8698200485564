"""A search whose trials run on a Ray cluster that loses a node, with a shared store below a URL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.workflows import TOY, drupe, ended, environment, toy_document, write_workflow

ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'drupe[ray]')")
pytestmark = pytest.mark.slow

_LENGTHS = [1, 2, 3, 4, 6, 8, 10, 12]


def sweep(folder: Path, system: dict[str, Any], workers: int, *, nap: float = 0.08, **changes: Any) -> Path:
    """Write a workflow of eight trials, each of which naps ten times and is timed, and return its path."""
    folder.mkdir()
    passes = {
        "append": {"type": "Append", "times": {"search": _LENGTHS, "ordered": True}},
        "nap": {"type": "Sleepy", "steps": 10, "seconds": nap},
    }
    strategy = {"max_trials": 8, "seed": 3, "workers": workers}
    systems = {"here": system}
    document = toy_document(folder, passes=passes, systems=systems, search_strategy=strategy, **changes)
    timed = {"name": "speed", "type": "toy_seconds", "user_config": {"nap": 0.2}, "sub_types": [{"name": "value"}]}
    document["evaluators"]["quality"]["metrics"].append(timed)
    return write_workflow(folder, document)


def start(path: Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "drupe", "run", str(path)],
        env={**environment(path.parent), **env},
        cwd=path.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def naps(log: Path) -> tuple[int, int]:
    """How many naps are over, and how many are in their fifth step or beyond."""
    lines = log.read_text().splitlines() if log.exists() else []
    ended = lines.count("Sleepy 9")
    return ended, lines.count("Sleepy 4") - ended


def outcome(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the winner's point and every candidate's state."""
    target = json.loads((path.parent / "out" / "drupe.json").read_text())["targets"]["here"]
    winner = next(c for c in target["candidates"] if c["number"] == target["winner"])
    return winner["point"], [candidate["state"] for candidate in target["candidates"]]


def test_a_node_that_dies_midway_costs_no_trial(tmp_path: Path) -> None:
    """The study completes, no finished step is done again, timed jobs are alone, and the winner is the one of a single
    machine."""
    token = tmp_path / "token"
    token.write_text("t" * 64)
    os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(token))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    # Which one wins does not depend on how long a nap is.
    alone = sweep(tmp_path / "alone", {"type": "LocalSystem", "in_process": True}, 1, nap=0.0)
    done = drupe("run", alone, folder=alone.parent)
    assert done.returncode == 0, done.stdout + done.stderr

    memory = 100 * 2**20
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": memory},
    )
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=memory)
        folder = tmp_path / "swept"
        log, hold = folder / "toy.log", tmp_path / "hold"
        pythonpath = os.pathsep.join(filter(None, [str(TOY), os.environ.get("PYTHONPATH", "")]))
        system = {
            "type": "Ray",
            "address": cluster.address,
            "folder": str(tmp_path / "far away"),
            "resources": {"cpus": 1},
            "environment": {
                "PYTHONPATH": pythonpath,
                "DRUPE_TOY_LOG": str(log),
                "DRUPE_TOY_HOLD": str(hold),
                "DRUPE_LOCKS": str(tmp_path / "locks"),
            },
        }
        path = sweep(folder, system, 2, cache_dir=f"file://{tmp_path}/shared")
        process = start(path)
        # Two trials are done; then both nodes are kept at a nap, however long each takes to come to it.
        for reached in (lambda: naps(log)[0] >= 2, lambda: naps(log)[1] == 2):
            end = time.monotonic() + 120
            while not reached():
                assert time.monotonic() < end and process.poll() is None, ended(process)
                time.sleep(0.02)
            hold.touch()
        raylet = psutil.Process(second.all_processes["raylet"][0].process.pid)
        doomed = raylet.children(recursive=True)
        cluster.remove_node(second, allow_graceful=False)
        # Its workers outlive a node a little: the nap is not to end before they do.
        assert not psutil.wait_procs(doomed, timeout=120)[1]
        hold.unlink()
        output, _ = process.communicate(timeout=180)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert process.returncode == 0, output
    assert "host failed" in output or "failed (attempt 1)" in output, output
    point, states = outcome(path)
    assert states == ["complete"] * 8
    assert point == outcome(alone)[0]
    lines = log.read_text().splitlines()
    appended = sorted(int(line.split()[-1]) for line in lines if line.startswith("Append"))
    assert appended == _LENGTHS
    napped = [line for line in lines if line.startswith("Sleepy")]
    # The nap that was cut short goes on after the last step that it finished.
    assert 80 < len(napped) <= 82
    measured = [line for line in lines if line.startswith("measure")]
    assert len(measured) == len(set(measured)) == 8
    # Both nodes are this machine: while one measures, the other's nap is stopped.
    began = [n for n, line in enumerate(lines) if line == "timed begin"]
    assert len(began) == 8
    assert all(lines[n + 1] == "timed end" for n in began)
    search = json.loads((folder / "out" / "drupe.json").read_text())["targets"]["here"]["search"]
    assert search["workers"] == 2
    assert 1.6 <= search["exclusive_seconds"] < search["seconds"]
