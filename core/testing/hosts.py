"""What every host must do, as a class of tests that an author subclasses."""

from __future__ import annotations

import importlib.metadata
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from drupe.core.accelerators import Accelerator
from drupe.core.errors import HostError, Interrupted
from drupe.core.hosts import Host, HostDescription, JobOptions
from drupe.core.job import Job, write_json
from drupe.core.model import Model
from drupe.core.testing.sites import install_plugin

__all__ = ["HostContract", "JobFolders", "contract_site"]

_PLUGIN = """
from drupe import PassSpec, hookimpl


@hookimpl
def drupe_passes():
    names = ("ContractAppend", "ContractNap", "ContractFail", "ContractDie", "ContractLarge", "ContractEnvironment")
    return [
        PassSpec(name=name, target=f"drupe_contract.passes:{name}", accepts={"text"}, produces="text") for name in names
    ]
"""
_PASSES = """
import os
import signal
import time

from drupe import Model, Pass, PassConfig


class TextPass(Pass):
    def made(self, context, text, name="text.txt"):
        (context.output_dir / name).write_text(text, encoding="utf-8")
        return Model.from_dir("text", context.output_dir)


class ContractAppend(TextPass):
    class Config(PassConfig):
        text: str = "!"
        name: str = "text.txt"

    def run(self, model, config, context):
        context.log.info("appending %s", config.text)
        return self.made(context, (model.folder / "text.txt").read_text(encoding="utf-8") + config.text, config.name)


class ContractNap(TextPass):
    class Config(PassConfig):
        naps: int = 10
        seconds: float = 0.1

    def run(self, model, config, context):
        for nap in range(config.naps):
            context.log.info("nap %d", nap)
            context.progress(nap, config.naps, "napping")
            time.sleep(config.seconds)
        return self.made(context, "rested")


class ContractFail(TextPass):
    def run(self, model, config, context):
        context.log.error("about to fail")
        raise ValueError("this pass always fails")


class ContractDie(TextPass):
    def run(self, model, config, context):
        context.log.error("about to die")
        os.kill(os.getpid(), signal.SIGKILL)


class ContractLarge(TextPass):
    class Config(PassConfig):
        size: int

    def run(self, model, config, context):
        with (context.output_dir / "large.bin").open("wb") as handle:
            handle.truncate(config.size)
        return Model.from_dir("text", context.output_dir)


class ContractEnvironment(TextPass):
    class Config(PassConfig):
        variable: str

    def run(self, model, config, context):
        return self.made(context, os.environ.get(config.variable, "unset"))
"""


def contract_site(folder: Path) -> Path:
    """Put the contract's own plugin into a folder and return it, for a host that several cases share."""
    files = {"drupe_contract/__init__.py": "", "drupe_contract/plugin.py": _PLUGIN}
    files["drupe_contract/passes.py"] = _PASSES
    return install_plugin(folder, "drupe-contract", files, plugins={"contract": "drupe_contract.plugin"})


class JobFolders:
    """Stages job folders on a model of one file, text.txt."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def stage(
        self,
        subject: str,
        config: Mapping[str, Any] | None = None,
        *,
        name: str = "job",
        text: str = "a",
        requires: Mapping[str, str] | None = None,
    ) -> Path:
        """Write a job folder for a pass of the contract's plugin and return it.

        requires: what the job needs besides drupe and that plugin, {distribution: version}.
        """
        folder = self._folder / name
        role = folder / "inputs" / "model"
        role.mkdir(parents=True)
        (role / "text.txt").write_text(text, encoding="utf-8")
        needed = {"drupe": importlib.metadata.version("drupe"), "drupe-contract": "1.0", **(requires or {})}
        job = Job(
            "pass",
            key=f"contract-{name}",
            name=name,
            subject=subject,
            config=dict(config or {}),
            inputs={"model": Model.from_dir("text", role)},
            accelerator=Accelerator(),
            requires=needed,
        )
        write_json(folder / "job.json", job.to_json())
        return folder


_SILENCE = 10.0
"""Seconds after which a job that told of no progress is asked to stop all the same."""


def _never() -> bool:
    return False


class HostContract:
    """Subclass it as `TestMyHost(HostContract)` and override the fixture `host`.

    A host that takes long to start may be shared by all cases: make it in a fixture of the module, with
    `contract_site(folder)` on its jobs' PYTHONPATH, and let `host` return it. Each case leaves it able to work; one
    closes it, after which a job starts it again.

    isolated: jobs run in a process that may die without taking the caller along. artifact_bytes: the size of the large
    artifact. patience: seconds within which a job may start and an end may be noticed.
    """

    isolated: ClassVar[bool] = True
    artifact_bytes: ClassVar[int] = 2 << 30
    patience: ClassVar[float] = 60.0

    # Fixtures to override

    @pytest.fixture
    def host(self, site: Path, tmp_path: Path) -> Iterator[Host]:
        """The host under test, on whose jobs' PYTHONPATH `site` is. To be overridden; close it after the yield."""
        pytest.fail("override the fixture `host` of HostContract: build your host with `site` on its jobs' PYTHONPATH")

    @pytest.fixture
    def failing_host(self, tmp_path: Path) -> Host | None:
        """A host of the same type that cannot work: unreachable, a wrong key. None where there is no such thing."""
        return None

    @pytest.fixture
    def site(self, tmp_path: Path) -> Path:
        """The folder with the contract's own plugin. A host without this file system copies it to where its jobs run
        and puts that place on their PYTHONPATH."""
        return contract_site(tmp_path / "site")

    @pytest.fixture
    def jobs(self, tmp_path: Path) -> JobFolders:
        """Makes job folders."""
        return JobFolders(tmp_path / "jobs")

    def run(
        self,
        host: Host,
        job: Path,
        *,
        cancelled: Callable[[], bool] = _never,
        events: list[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Mapping[str, Any]:
        """Run a job, keeping its events."""
        kept = events if events is not None else []
        return host.run(job, JobOptions(**options), kept.append, cancelled)

    # Cases

    def test_a_job_succeeds(self, host: Host, jobs: JobFolders) -> None:
        """Its result is done and its outputs lie in the job folder."""
        job = jobs.stage("ContractAppend", {"text": "b"})
        result = self.run(host, job)
        assert result["status"] == "done", result["error"]
        assert (job / "outputs" / "text.txt").read_text() == "ab"
        assert json.loads((job / "result.json").read_text())["model"] == result["model"]

    def test_jobs_follow_each_other(self, host: Host, jobs: JobFolders) -> None:
        """A second job is not touched by the first one."""
        for index in range(3):
            job = jobs.stage("ContractAppend", {"text": str(index)}, name=f"job-{index}")
            assert self.run(host, job)["status"] == "done"
            assert (job / "outputs" / "text.txt").read_text() == f"a{index}"

    def test_a_failing_pass_is_the_jobs_result(self, host: Host, jobs: JobFolders) -> None:
        """It is no HostError: another try would fail as well."""
        job = jobs.stage("ContractFail")
        result = self.run(host, job)
        assert result["status"] == "failed"
        assert result["error"]["type"] == "ValueError"
        assert "this pass always fails" in result["error"]["message"]
        assert "about to fail" in (job / "log.txt").read_text()
        assert self.run(host, jobs.stage("ContractAppend", name="next"))["status"] == "done"

    def test_a_failing_host_says_so_before_work_starts(self, failing_host: Host | None, jobs: JobFolders) -> None:
        """`check` names the fault and `run` raises HostError."""
        if failing_host is None:
            pytest.skip("this host can't fail by its config")
        assert failing_host.check(), "check() found nothing wrong with a host that can't work"
        with pytest.raises(HostError):
            self.run(failing_host, jobs.stage("ContractAppend"))

    def test_a_time_out_is_the_hosts_fault(self, host: Host, jobs: JobFolders) -> None:
        """The job is ended soon after its time is up, and the host works on."""
        if not self.isolated:
            pytest.skip("a job inside this process can't be ended from outside")
        self.run(host, jobs.stage("ContractAppend", name="warm-up"))
        started = time.monotonic()
        with pytest.raises(HostError):
            self.run(host, jobs.stage("ContractNap", {"naps": 1, "seconds": 300}, name="long"), timeout=1.0)
        assert time.monotonic() - started < 1 + self.patience
        assert self.run(host, jobs.stage("ContractAppend", name="next"))["status"] == "done"

    def test_a_job_can_be_cancelled(self, host: Host, jobs: JobFolders) -> None:
        """Asked to stop, the host stops the job: by Interrupted, or by a result that says so."""
        asked = threading.Event()
        # A host that streams no progress is asked as well; that it streams none is another case's finding.
        timer = threading.Timer(_SILENCE, asked.set)
        timer.daemon = True
        timer.start()
        started = time.monotonic()
        job = jobs.stage("ContractNap", {"naps": 3000, "seconds": 0.1})

        def note(event: Mapping[str, Any]) -> None:
            if event["event"] == "progress":
                asked.set()

        try:
            result = host.run(job, JobOptions(), note, asked.is_set)
        except Interrupted:
            pass
        else:
            assert result["status"] == "interrupted"
        finally:
            timer.cancel()
        assert asked.is_set()
        assert time.monotonic() - started < _SILENCE + self.patience
        assert self.run(host, jobs.stage("ContractAppend", name="next"))["status"] == "done"

    def test_a_killed_worker_is_the_hosts_fault(self, host: Host, jobs: JobFolders) -> None:
        """A crash in native code brings home the last lines of the log, and the next job finds a worker."""
        if not self.isolated:
            pytest.skip("a job inside this process takes it along")
        with pytest.raises(HostError) as caught:
            self.run(host, jobs.stage("ContractDie"))
        assert "about to die" in caught.value.log_tail
        assert self.run(host, jobs.stage("ContractAppend", name="next"))["status"] == "done"

    def test_a_large_artifact_comes_back_whole(self, host: Host, jobs: JobFolders) -> None:
        """2 GB by default; `artifact_bytes` says otherwise."""
        job = jobs.stage("ContractLarge", {"size": self.artifact_bytes})
        assert self.run(host, job)["status"] == "done"
        assert (job / "outputs" / "large.bin").stat().st_size == self.artifact_bytes

    def test_unicode_and_spaces_in_paths(self, host: Host, jobs: JobFolders) -> None:
        """In the job's folder, in its files' names and in its config."""
        job = jobs.stage("ContractAppend", {"text": "ü 漢", "name": "größe 漢 1.txt"}, name="job mit Ümlaut 漢")
        result = self.run(host, job)
        assert result["status"] == "done", result["error"]
        assert (job / "outputs" / "größe 漢 1.txt").read_text(encoding="utf-8") == "aü 漢"

    def test_progress_and_log_are_streamed(self, host: Host, jobs: JobFolders) -> None:
        """Progress arrives while the job runs; the log is in the job folder when it ends."""
        seen: list[float] = []
        job = jobs.stage("ContractNap", {"naps": 20, "seconds": 0.1})

        def note(event: Mapping[str, Any]) -> None:
            if event["event"] == "progress":
                seen.append(time.monotonic())

        host.run(job, JobOptions(), note, _never)
        ended = time.monotonic()
        assert len(seen) >= 2
        assert ended - seen[0] > 0.5, "all progress came at the end"
        assert "nap 19" in (job / "log.txt").read_text()

    def test_environment_variables_reach_the_job(self, host: Host, jobs: JobFolders) -> None:
        """`JobOptions.env` is set where the job runs, and gone for the next one."""
        config = {"variable": "DRUPE_CONTRACT_VALUE"}
        first, second = (jobs.stage("ContractEnvironment", config, name=name) for name in ("first", "second"))
        self.run(host, first, env={"DRUPE_CONTRACT_VALUE": "given"})
        self.run(host, second)
        assert (first / "outputs" / "text.txt").read_text() == "given"
        assert (second / "outputs" / "text.txt").read_text() == "unset"

    def test_concurrent_jobs_do_not_mix(self, host: Host, jobs: JobFolders) -> None:
        """As many as it has slots, two at least: a host with one slot queues the other."""
        count = max(2, min(4, host.describe().slots))
        folders = [jobs.stage("ContractAppend", {"text": str(i)}, name=f"job-{i}") for i in range(count)]
        with ThreadPoolExecutor(count) as pool:
            results = list(pool.map(lambda folder: self.run(host, folder), folders))
        assert [result["status"] for result in results] == ["done"] * count
        assert [(f / "outputs" / "text.txt").read_text() for f in folders] == [f"a{i}" for i in range(count)]

    def test_a_missing_plugin_is_told_before_work_starts(self, host: Host, jobs: JobFolders) -> None:
        """The message names the distribution that the host lacks."""
        job = jobs.stage("ContractAppend", requires={"no-such-plugin": "1.0"})
        with pytest.raises(HostError, match="no-such-plugin"):
            self.run(host, job)
        assert not list((job / "outputs").glob("*"))

    def test_a_version_mismatch_is_told_before_work_starts(self, host: Host, jobs: JobFolders) -> None:
        """The message names the distribution and both versions."""
        job = jobs.stage("ContractAppend", requires={"drupe-contract": "2.0"})
        with pytest.raises(HostError, match=r"drupe-contract 2\.0.*1\.0"):
            self.run(host, job)

    def test_it_describes_itself(self, host: Host) -> None:
        """With the versions that step keys need, its devices and its slots; the same each time."""
        description = host.describe()
        assert isinstance(description, HostDescription)
        assert description.versions["drupe"] == description.drupe
        assert description.slots >= 1
        assert all(device.get("device") for device in description.devices)
        assert host.describe() == description

    def test_a_working_host_has_no_faults(self, host: Host) -> None:
        """`check` finds nothing."""
        assert list(host.check()) == []

    def test_closing_twice_is_harmless(self, host: Host, jobs: JobFolders) -> None:
        """`close` ends what runs for the host; a second call does nothing."""
        self.run(host, jobs.stage("ContractAppend"))
        host.close()
        host.close()
