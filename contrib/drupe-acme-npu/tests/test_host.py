"""The board as a host, through its real command."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from drupe import HostError, Interrupted, JobOptions, PluginError

from drupe_acme_npu import plugin
from drupe_acme_npu.host import AcmeBoard

COMMAND = [sys.executable, "-m", "drupe_acme_npu.board"]


@pytest.fixture
def board(tmp_path: Path) -> AcmeBoard:
    disk = tmp_path / "board"
    disk.mkdir()
    (disk / "serial").write_text("A-17\n")
    return host(disk)


def host(disk: Path, **values: Any) -> AcmeBoard:
    config = AcmeBoard.Config.model_validate({"board": str(disk), "command": COMMAND, **values})
    return AcmeBoard(plugin.drupe_hosts()[0], config, state_dir=disk.parent)


def staged(folder: Path, subject: str = "AcmeCompile", **changes: Any) -> Path:
    """Write the folder of a job that compiles a small model; `inputs` and `outputs` as the engine lays them out."""
    from .conftest import NPU, mlp

    model = mlp(folder / "inputs" / "model")
    (folder / "outputs").mkdir()
    job = {
        "schema": 1,
        "kind": "pass",
        "key": "0" * 64,
        "name": "compile",
        "subject": subject,
        "config": {},
        "inputs": {"model": model.to_json()},
        "data": {},
        "accelerator": NPU.to_json(),
        "resources": {"cpus": 1, "gpus": 0, "memory": None, "threads": 1},
        "seed": 0,
        "allow": [],
        "plugins": {},
        "requires": {},
        "workflow_dir": None,
        "options": {},
        **changes,
    }
    (folder / "job.json").write_text(json.dumps(job))
    return folder


def test_it_is_described_by_itself(board: AcmeBoard) -> None:
    described = board.describe()
    assert [device["device"] for device in described.devices] == ["acme_npu"]
    assert described.versions["drupe"] == described.drupe
    (Path(board.config.board) / "serial").write_text("B-18\n")
    assert host(Path(board.config.board)).describe().machine != described.machine
    assert board.check() == ()


def test_a_job_runs_there_and_comes_back(board: AcmeBoard, tmp_path: Path) -> None:
    job = staged(tmp_path / "job")
    result = board.run(job, JobOptions(), lambda event: None, lambda: False)
    assert result["status"] == "done"
    assert set(result["model"]["files"]) == {"program.json", "weights.npz"}
    assert (job / "outputs" / "program.json").is_file()
    assert [path.name for path in Path(board.config.board).iterdir()] == ["serial"]


def test_a_pass_that_fails_is_the_jobs_result(board: AcmeBoard, tmp_path: Path) -> None:
    job = staged(tmp_path / "job", config={"weight_bits": 5})
    result = board.run(job, JobOptions(), lambda event: None, lambda: False)
    assert result["status"] == "failed"
    assert "weight_bits" in result["error"]["message"]


def test_what_is_missing_on_the_board_is_the_hosts_fault(board: AcmeBoard, tmp_path: Path) -> None:
    job = staged(tmp_path / "job", requires={"no-such-distribution": "1.0"})
    with pytest.raises(HostError, match="no-such-distribution"):
        board.run(job, JobOptions(), lambda event: None, lambda: False)


def test_a_board_that_does_not_answer_is_a_host_error_and_a_fault(tmp_path: Path) -> None:
    gone = host(tmp_path / "nowhere")
    with pytest.raises(HostError, match="no board at"):
        gone.describe()
    (fault,) = gone.check()
    assert fault.kind == "needs"
    (missing,) = host(tmp_path, command=["no-such-command"]).check()
    assert "no-such-command" in missing.found


def test_the_command_of_this_environment_is_found_without_activating_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    disk = tmp_path / "board"
    disk.mkdir()
    assert host(disk, command=["acme-board"]).describe().versions["drupe"]


def slow_board(folder: Path) -> AcmeBoard:
    """A board whose worker takes a minute, and stops when it is told to."""
    command = folder / "slow.py"
    command.write_text(
        "import sys, time, json, signal\n"
        "if 'run' in sys.argv:\n"
        "    signal.signal(signal.SIGTERM, lambda *a: sys.exit(130))\n"
        "    print(json.dumps({'event': 'progress', 'done': 1, 'total': 2}), flush=True)\n"
        "    time.sleep(60)\n"
    )
    return host(folder, command=[sys.executable, str(command)])


def test_a_job_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(HostError, match=r"longer than its 0\.5 s"):
        slow_board(tmp_path).run(tmp_path, JobOptions(timeout=0.5), lambda event: None, lambda: False)
    assert time.monotonic() - started < 20


def test_cancelling_stops_the_job_on_the_board_and_events_arrive_before(tmp_path: Path) -> None:
    arrived = threading.Event()
    with pytest.raises(Interrupted, match="stopped before it had a result"):
        slow_board(tmp_path).run(tmp_path, JobOptions(), lambda event: arrived.set(), arrived.is_set)
    assert arrived.is_set()


def test_plugin_errors_are_not_swallowed(board: AcmeBoard, tmp_path: Path) -> None:
    job = staged(tmp_path / "job", subject="NoSuchPass")
    result = board.run(job, JobOptions(), lambda event: None, lambda: False)
    assert result["error"]["type"] == PluginError.__name__
