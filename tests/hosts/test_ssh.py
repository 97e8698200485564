"""SSH against a real sshd on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe.core.errors import HostError
from drupe.core.hosts import Host, JobOptions
from drupe.core.testing import HostContract, JobFolders, contract_site
from tests.hosts.servers import Sshd, free_port, sshd
from tests.hosts.support import built_in, needs_program

pytestmark = needs_program("sshd", "ssh", package="openssh-server")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


def reach(server: Sshd, tmp_path: Path, **config: Any) -> Host:
    """Return a host at the server; config over what reaches it."""
    return built_in("SSH", tmp_path / "state", **{**server.reach(tmp_path / "far away"), **config})


@pytest.fixture(scope="module")
def shared(server: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host that has its connection already."""
    folder = tmp_path_factory.mktemp("ssh")
    host = reach(server, folder, environment={"PYTHONPATH": str(contract_site(folder / "site"))})
    yield host
    host.close()


class TestSSH(HostContract):
    artifact_bytes = 256 << 20

    @pytest.fixture
    def host(self, shared: Host) -> Host:
        return shared

    @pytest.fixture
    def untouched(self, server: Sshd, site: Path, tmp_path: Path) -> Iterator[Host]:
        """A host where nothing lies yet."""
        host = reach(server, tmp_path, environment={"PYTHONPATH": str(site)})
        yield host
        host.close()

    @pytest.fixture
    def failing_host(self, server: Sshd, tmp_path: Path) -> Host:
        return reach(server, tmp_path, key_file=str(server.wrong_key))

    def test_only_what_is_missing_travels(self, untouched: Host, jobs: JobFolders) -> None:
        sent: list[Any] = []
        for name in ("first", "second"):
            self.run(untouched, jobs.stage("ContractAppend", name=name, text="one"), events=sent)
        assert sum(1 for event in sent if event["event"] == "state") == 1

    def test_what_a_job_made_is_there_for_the_next_one(self, untouched: Host, jobs: JobFolders) -> None:
        self.run(untouched, jobs.stage("ContractAppend", {"text": "b"}, name="first"))
        sent: list[Any] = []
        assert (
            self.run(untouched, jobs.stage("ContractAppend", name="next", text="ab"), events=sent)["status"] == "done"
        )
        assert not [event for event in sent if event["event"] == "state"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"port": free_port()}, "can't be reached"),
        ({"address": "nowhere.invalid"}, "can't be reached"),
        ({"python": "/no/such/python"}, "is no program there"),
        ({"python": "/usr/bin/python3"}, "drupe is not installed there"),
        ({"options": {"UserKnownHostsFile": "/dev/null", "StrictHostKeyChecking": "yes"}}, "host key"),
        ({"folder": "/proc/nowhere"}, "can't be opened"),
    ],
)
def test_what_is_wrong_is_told_in_one_message(
    server: Sshd, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    host = reach(server, tmp_path, **config)
    (fault,) = host.check()
    assert message in str(fault)
    assert "\n" not in str(fault)


def test_too_few_gpus_are_told_before_work_starts(server: Sshd, tmp_path: Path) -> None:
    host = reach(server, tmp_path, resources={"gpus": 64})
    (fault,) = host.check()
    assert "resources.gpus" in str(fault) and "64" in str(fault)
    host.close()


def test_no_space_there_is_told_before_anything_is_sent(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = reach(server, tmp_path)
    job = JobFolders(tmp_path / "jobs").stage("ContractAppend")
    large = job / "inputs" / "model" / "text.txt"
    with large.open("wb") as handle:
        handle.truncate(1 << 43)
    with pytest.raises(HostError, match="are free; make room"):
        host.run(job, JobOptions(), lambda event: None, lambda: False)
    host.close()


def test_data_files_travel_with_the_job(server: Sshd, tmp_path: Path) -> None:
    """A measuring job whose data lies beside the workflow, and in a folder outside of it."""
    from drupe.core.accelerators import Accelerator
    from drupe.core.job import Job, JobData, write_json
    from drupe.core.model import Model

    workflow, outside = tmp_path / "work flow", tmp_path / "outside"
    for folder, name in ((workflow, "near.jsonl"), (outside, "far.jsonl")):
        folder.mkdir()
        (folder / name).write_text('{"text": "a"}\n')
    near, far = "near.jsonl", str(outside / "far.jsonl")
    data = {
        name: JobData("HuggingfaceContainer", {"load_dataset_config": {"data_name": "json", "data_files": path}})
        for name, path in (("near", near), ("far", far))
    }
    from drupe.core.job_files import job_files, relocated

    folder = tmp_path / "job"
    (folder / "inputs" / "model").mkdir(parents=True)
    (folder / "inputs" / "model" / "text.txt").write_text("a")
    model = Model.from_dir("text", folder / "inputs" / "model")
    job = Job(
        "measure",
        "k" * 64,
        "data",
        "",
        {},
        inputs={"model": model},
        data=data,
        accelerator=Accelerator(),
        workflow_dir=str(workflow),
        options={"metrics": []},
    )
    write_json(folder / "job.json", job.to_json())
    files = job_files(job)
    assert set(files) == {str(workflow / near), far}
    host = reach(server, tmp_path)
    result = host.run(folder, JobOptions(), lambda event: None, lambda: False)
    assert result["status"] == "done", result["error"]
    host.close()
    moved = relocated(job, Path("/there"), files)
    assert moved.data["far"].config["load_dataset_config"]["data_files"] == f"/there{far}"
    assert moved.data["near"].config["load_dataset_config"]["data_files"] == near
    assert moved.workflow_dir == f"/there{workflow}"
    assert json.dumps(moved.to_json())
