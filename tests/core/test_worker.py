"""The worker: what it writes, what it keeps from the jobs that follow, limits, ranks, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from drupe.core.errors import HostError, StoreError
from drupe.core.host_faults import fault_data, fault_error, log_tail
from drupe.core.job import Job, write_json
from drupe.core.model import Model
from drupe.core.testing.sites import install_plugin
from drupe.core.worker import HOST_FAULT

_PLUGIN = """
from drupe import MetricSpec, PassSpec, hookimpl


@hookimpl
def drupe_passes():
    names = ("Say", "Grow", "Full", "FullInside", "Wait", "Leave", "Rank", "Report")
    return [PassSpec(name=n, target=f"drupe_worker_test.passes:{n}", accepts={"text"}, produces="text") for n in names]


@hookimpl
def drupe_metrics():
    return [MetricSpec(name=name, target=f"drupe_worker_test.passes:{name}") for name in ("Dated", "Plain")]
"""
_PASSES = """
import errno
import math
import os
import sys
import time
from datetime import datetime
from pathlib import Path

from drupe import Metric, MetricConfig, Model, Pass, PassConfig, SubType


class Text(Pass):
    def made(self, context, text):
        (context.output_dir / "text.txt").write_text(text)
        return Model.from_dir("text", context.output_dir)


class Say(Text):
    def run(self, model, config, context):
        print("printed")
        os.write(1, b"from native code\\n")
        print("an error", file=sys.stderr)
        told = {"threads": os.environ["OMP_NUM_THREADS"], "read": sys.stdin.read(), "where": os.getcwd()}
        told["variable"] = os.environ.get("GIVEN")
        os.environ["LEFT_BEHIND"] = "yes" if "LEFT_BEHIND" not in os.environ else "still there"
        told["left"] = os.environ["LEFT_BEHIND"]
        os.chdir("/")
        return self.made(context, repr(told))


class Grow(Text):
    def run(self, model, config, context):
        held = []
        while len(held) < 40:
            held.append(bytearray(os.urandom(1)) * (25 << 20))
            time.sleep(0.05)
        return self.made(context, "grown")


class Full(Text):
    def run(self, model, config, context):
        raise OSError(errno.ENOSPC, "No space left on device")


class FullInside(Text):
    def run(self, model, config, context):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


class Wait(Text):
    def run(self, model, config, context):
        (context.checkpoint_dir / "pid").write_text(str(os.getpid()))
        while True:
            context.progress(0, 1)
            time.sleep(0.05)


class Leave(Text):
    def run(self, model, config, context):
        sys.exit("gone")


class Report(Text):
    def run(self, model, config, context):
        context.report |= {"steps": 3, "curve": [0.5, math.nan], "begun": datetime(2024, 1, 2)}
        if (context.workflow_dir or Path()).name == "fails":
            raise ValueError("its own")
        made = self.made(context, "b")
        if (context.workflow_dir or Path()).name == "attributes":
            context.report.clear()
            return Model("text", made.files, {"scale": math.inf})
        return made


class Rank(Text):
    def run(self, model, config, context):
        import torch.distributed as dist

        dist.init_process_group("gloo")
        ranks = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, dist.get_rank())
        dist.destroy_process_group()
        return self.made(context, repr(ranks))


class Plain(Metric):
    Config = MetricConfig
    sub_types = {"size": SubType("characters", "lower")}
    default_sub_type = "size"

    def measure(self, model, session, samples, config, context):
        context.report["plain"] = 1
        return {"model": (1.0,)}

    def aggregate(self, rows, sub_type, config):
        return rows[0][0]


class Dated(Plain):
    def measure(self, model, session, samples, config, context):
        context.report["begun"] = datetime(2024, 1, 2)
        return super().measure(model, session, samples, config, context)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    files = {"drupe_worker_test/__init__.py": "", "drupe_worker_test/plugin.py": _PLUGIN}
    files["drupe_worker_test/passes.py"] = _PASSES
    return install_plugin(tmp_path / "site", "drupe-worker-test", files, plugins={"w": "drupe_worker_test.plugin"})


@pytest.fixture
def environment(site: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Path]:
    def stage(subject: str, name: str = "job", **fields: Any) -> Path:
        folder = tmp_path / name
        role = folder / "inputs" / "model"
        role.mkdir(parents=True)
        (role / "text.txt").write_text("a")
        job = Job("pass", name, name, subject, {}, inputs={"model": Model.from_dir("text", role)})
        data = job.to_json()
        data["resources"] |= fields
        write_json(folder / "job.json", data)
        return folder

    return stage


def run(job: Path, environment: dict[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "drupe.core.worker", str(job), *flags]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


class Serving:
    """A warm worker, spoken to as its protocol says."""

    def __init__(self, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "drupe.core.worker", "--serve"]
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self.next()["event"] == "ready"

    def next(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        event: dict[str, Any] = json.loads(self.process.stdout.readline())
        return event

    def send(self, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def do(self, job: Path, **options: Any) -> dict[str, Any]:
        self.send(job=str(job), **options)
        while (event := self.next())["event"] != "ended":
            pass
        return event


def test_one_job_writes_its_result_and_returns_its_exit_code(
    stage: Callable[..., Path], environment: dict[str, str]
) -> None:
    job = stage("Say", threads=3)
    assert run(job, environment).returncode == 0
    result = json.loads((job / "result.json").read_text())
    assert result["status"] == "done"
    assert result["seconds"] > 0
    assert result["peak_memory"] > 1 << 20
    told = eval((job / "outputs" / "text.txt").read_text())
    assert told["threads"] == "3"


def test_what_a_job_prints_is_in_its_log_and_not_in_the_protocol(
    stage: Callable[..., Path], environment: dict[str, str]
) -> None:
    worker = Serving(environment)
    job = stage("Say")
    assert worker.do(job) == {"event": "ended"}
    log = (job / "log.txt").read_text()
    assert all(text in log for text in ("printed", "from native code", "an error"))


def test_a_job_leaves_nothing_behind_for_the_next_one(stage: Callable[..., Path], environment: dict[str, str]) -> None:
    worker = Serving(environment)
    told = []
    for name, env in (("first", {"GIVEN": "1"}), ("second", {})):
        job = stage("Say", name=name)
        worker.do(job, env=env)
        told.append(eval((job / "outputs" / "text.txt").read_text()))
    assert told[0]["variable"] == "1"
    assert told[1]["variable"] is None
    assert told[1]["left"] == "yes"
    assert told[0]["where"] == told[1]["where"]
    assert told[0]["read"] == ""


def test_more_memory_than_allowed_ends_the_job_with_a_message(
    stage: Callable[..., Path], environment: dict[str, str]
) -> None:
    job = stage("Grow", memory=400 << 20)
    done = run(job, environment)
    assert done.returncode == HOST_FAULT
    fault = json.loads((job / "host_error.json").read_text())
    assert "may use 419 MB" in fault["message"]
    assert fault["retry"] is False


@pytest.mark.parametrize("how", ["Full", "FullInside"])
def test_a_full_disk_is_not_the_passes_fault(stage: Callable[..., Path], environment: dict[str, str], how: str) -> None:
    """Neither where a library that writes by itself tells it in its own words."""
    job = stage(how)
    assert run(job, environment).returncode == HOST_FAULT
    assert not (job / "result.json").exists()
    assert "make room" in json.loads((job / "host_error.json").read_text())["message"]


@pytest.mark.parametrize(
    ("case", "told", "kept"),
    [
        (
            "",
            ["PluginError", "report 'curve'", "float values", "report 'begun'", "finite numbers"],
            {"steps": 3},
        ),
        ("fails", ["ValueError", "its own"], {"steps": 3}),
        ("attributes", ["PluginError", "attribute 'scale'", "float values"], {}),
    ],
)
def test_what_is_not_json_is_the_passes_fault(
    stage: Callable[..., Path], environment: dict[str, str], case: str, told: list[str], kept: dict[str, Any]
) -> None:
    """And not the machine's, where it would be tried again; what else was reported stays."""
    job = stage("Report")
    data = json.loads((job / "job.json").read_text())
    write_json(job / "job.json", data | {"workflow_dir": str(job / case)})
    assert run(job, environment).returncode == 1
    result = json.loads((job / "result.json").read_text())
    assert (result["status"], result["model"], result["report"]) == ("failed", None, kept)
    assert all(text in f"{result['error']['type']}: {result['error']['message']}" for text in told)


def test_a_metric_that_reports_what_is_not_json_fails_alone(
    stage: Callable[..., Path], environment: dict[str, str]
) -> None:
    job = stage("")
    data = json.loads((job / "job.json").read_text())
    metrics = [{"name": n, "type": n, "config": {}, "data": None, "sub_types": ["size"]} for n in ("Dated", "Plain")]
    write_json(job / "job.json", data | {"kind": "measure", "options": {"metrics": metrics}})
    assert run(job, environment).returncode == 0
    result = json.loads((job / "result.json").read_text())
    assert "report 'begun' can't be written as JSON" in result["measurements"]["Dated"]["error"]
    assert result["measurements"]["Plain"]["values"]["size"]["value"] == 1.0
    assert result["report"] == {"plain": 1}


def test_code_that_leaves_its_process_is_told(stage: Callable[..., Path], environment: dict[str, str]) -> None:
    worker = Serving(environment)
    assert "gone" in worker.do(stage("Leave"))["fault"]["message"]
    assert worker.do(stage("Say", name="next")) == {"event": "ended"}


@pytest.mark.parametrize("how", ["signal", "file"])
def test_a_single_job_is_asked_to_stop(stage: Callable[..., Path], environment: dict[str, str], how: str) -> None:
    job = stage("Wait")
    process = subprocess.Popen([sys.executable, "-m", "drupe.core.worker", str(job)], env=environment)
    wait_for(job / "checkpoint" / "pid")
    if how == "signal":
        process.send_signal(signal.SIGTERM)
    else:
        (job / "cancel").touch()
    assert process.wait(20) == 130
    assert json.loads((job / "result.json").read_text())["status"] == "interrupted"


def test_a_warm_worker_ends_with_its_driver(stage: Callable[..., Path], environment: dict[str, str]) -> None:
    """Its input ends when the driver does, even by a kill; busy or idle."""
    idle, busy = Serving(environment), Serving(environment)
    job = stage("Wait")
    busy.send(job=str(job))
    wait_for(job / "checkpoint" / "pid")
    for worker in (idle, busy):
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        assert worker.process.wait(10) in (0, -signal.SIGKILL)


def test_a_worker_on_a_leash_ends_with_whoever_holds_it(
    stage: Callable[..., Path], environment: dict[str, str]
) -> None:
    job = stage("Wait")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys\n"
            "subprocess.Popen([sys.executable, '-m', 'drupe.core.worker', sys.argv[1], '--leash'],"
            " stdin=subprocess.PIPE, start_new_session=True).wait()",
            str(job),
        ],
        env=environment,
    )
    pid = int(wait_for(job / "checkpoint" / "pid"))
    holder.kill()
    holder.wait()
    end = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)


def launched(launcher: str, job: Path, environment: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    from drupe.core.hosts import JobOptions
    from tests.hosts.support import built_in

    host = built_in(
        "LocalSystem",
        tmp_path / "state",
        environment={"PYTHONPATH": environment["PYTHONPATH"], "OMP_NUM_THREADS": "1"},
        launcher_processes=2,
    )
    return dict(host.run(job, JobOptions(launcher=launcher), lambda event: None, lambda: False))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_under_a_launcher_the_ranks_see_each_other(
    launcher: str, stage: Callable[..., Path], environment: dict[str, str], tmp_path: Path
) -> None:
    job = stage("Rank")
    result = launched(launcher, job, environment, tmp_path)
    assert result["status"] == "done", result["error"]
    assert (job / "outputs" / "text.txt").read_text() == "[0, 1]"
    assert (job / "ranks" / "1" / "result.json").exists()


@pytest.mark.parametrize(
    ("launcher", "gpus", "package"), [("torchrun", 0.0, "torch"), ("accelerate", 1.0, "accelerate")]
)
def test_a_launcher_that_is_not_installed_is_one_message(
    launcher: str, gpus: float, package: str, stage: Callable[..., Path]
) -> None:
    from drupe.core.context import Resources
    from drupe.core.hosts import JobOptions
    from drupe.hosts.launch import worker_command
    from drupe.hosts.oneshot import run_command

    job = stage("Say")
    options = JobOptions(Resources(gpus=gpus), launcher=launcher)
    # An interpreter that sees nothing of what is installed for it.
    command = worker_command([sys.executable, "-I", "-S"], job, options, processes=2)
    with pytest.raises(HostError, match=f"pip install {package} there") as caught:
        run_command(command, job, lambda event: None, lambda: False)
    assert caught.value.retry is False


def test_faults_travel_as_data() -> None:
    error = fault_error(json.loads(json.dumps(fault_data(HostError("gone", "the tail", retry=False)))))
    assert (str(error), getattr(error, "log_tail", ""), getattr(error, "retry", True)) == ("gone", "the tail", False)
    assert isinstance(fault_error(fault_data(StoreError("full"))), StoreError)
    assert str(fault_error(fault_data(ValueError("odd")))) == "ValueError: odd"


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("\n".join(f"line {n}" for n in range(100_000)))
    assert log_tail(tmp_path).splitlines() == [f"line {n}" for n in range(99_980, 100_000)]
    assert log_tail(tmp_path / "nowhere") == ""


def wait_for(path: Path, seconds: float = 20) -> str:
    """Wait until a file has something in it, and return that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.05)
    raise TimeoutError(f"{path} did not come")
