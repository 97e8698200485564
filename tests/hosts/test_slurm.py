"""Slurm against a real cluster of one node on loopback."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe.core.errors import HostError, Interrupted
from drupe.core.hosts import Host, JobOptions
from drupe.core.testing import HostContract, JobFolders
from tests.hosts.servers import slurm
from tests.hosts.support import built_in, needs_program

pytestmark = [
    needs_program("sbatch", "slurmctld", "slurmd", "munged", package="slurm-wlm"),
    pytest.mark.skipif(os.getuid() != 0, reason="Slurm's daemons are started as root"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with slurm(tmp_path_factory.mktemp("slurm")) as conf:
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(conf)
        yield conf
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def queue() -> str:
    """What waits or runs, by its state and name."""
    command = ["squeue", "--noheader", "--format=%T %j"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.usefixtures("cluster")
class TestSlurm(HostContract):
    artifact_bytes = 64 << 20

    @pytest.fixture
    def host(self, site: Path, tmp_path: Path) -> Iterator[Host]:
        resources = {"cpus": 1}
        host = built_in("Slurm", tmp_path / "state", environment={"PYTHONPATH": str(site)}, resources=resources)
        yield host
        host.close()

    @pytest.fixture
    def failing_host(self, tmp_path: Path) -> Host:
        return built_in("Slurm", tmp_path / "state", partition="nowhere")

    def test_a_job_that_the_cluster_kills_is_the_hosts_fault(self, host: Host, jobs: JobFolders) -> None:
        """Cancelled by somebody else: told within seconds, though there is no accounting."""
        seen: list[Any] = []

        def kill() -> None:
            end = time.monotonic() + 30
            while not [e for e in seen if e["event"] == "progress"] and time.monotonic() < end:
                time.sleep(0.1)
            number = next(e["id"] for e in seen if e["event"] == "state")
            subprocess.run(["scancel", number], check=True)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        started = time.monotonic()
        with pytest.raises(HostError, match=r"the cluster stopped Slurm job|ended as CANCELLED"):
            self.run(host, jobs.stage("ContractNap", {"naps": 900}), events=seen)
        killer.join(30)
        assert time.monotonic() - started < 45

    def test_a_job_that_waits_can_be_cancelled(self, host: Host, jobs: JobFolders) -> None:
        """It leaves the queue."""
        subprocess.run(["scontrol", "update", "PartitionName=main", "State=DOWN"], check=True)
        try:
            with pytest.raises(Interrupted):
                self.run(host, jobs.stage("ContractAppend"), cancelled=lambda: "PENDING drupe" in queue())
            assert "PENDING drupe" not in queue()
        finally:
            subprocess.run(["scontrol", "update", "PartitionName=main", "State=UP"], check=True)

    def test_what_the_cluster_refuses_is_told_at_once(self, site: Path, tmp_path: Path, jobs: JobFolders) -> None:
        """More cores than any node has."""
        from drupe.core.context import Resources

        host = built_in("Slurm", tmp_path / "state", environment={"PYTHONPATH": str(site)})
        with pytest.raises(HostError, match="asks for 4096 cores") as caught:
            self.run(host, jobs.stage("ContractAppend"), resources=Resources(cpus=4096))
        assert caught.value.retry is False


def test_without_a_controller_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slurm.conf").write_text("ClusterName=x\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    host = built_in("Slurm", tmp_path / "state")
    (fault,) = host.check()
    assert "sinfo" in str(fault)


def test_without_slurm_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    host = built_in("Slurm", tmp_path / "state")
    with pytest.raises(HostError, match="is not installed here"):
        host.run(JobFolders(tmp_path / "jobs").stage("ContractAppend"), JobOptions(), lambda e: None, lambda: False)
