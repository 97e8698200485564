"""Docker through the engine API: Podman's where containers run, and what is told where they don't."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe.core.errors import HostError
from drupe.core.hosts import Host, JobOptions
from drupe.core.testing import HostContract, JobFolders
from tests.hosts.engines import Engine, engine_fault, podman
from tests.hosts.support import built_in

docker = pytest.importorskip("docker", reason="the docker library is not installed (pip install 'drupe[docker]')")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("podman")
    fault = engine_fault(folder)
    if fault is not None:
        pytest.skip(fault)
    with podman(folder) as running:
        yield running


def reach(engine: Engine, tmp_path: Path, site: Path | None = None, **config: Any) -> Host:
    """Return a host at the engine."""
    environment = {"PYTHONPATH": str(site)} if site else {}
    volumes = engine.volumes + ([f"{site}:{site}:ro"] if site else [])
    given: dict[str, Any] = {
        "image_name": engine.image,
        "url": engine.url,
        "python": sys.executable,
        "volumes": volumes,
        "environment": environment,
    }
    return built_in("Docker", tmp_path / "state", **{**given, **config})


@pytest.mark.slow
class TestDocker(HostContract):
    artifact_bytes = 64 << 20

    @pytest.fixture
    def host(self, engine: Engine, site: Path, tmp_path: Path) -> Iterator[Host]:
        host = reach(engine, tmp_path, site)
        yield host
        host.close()

    @pytest.fixture
    def failing_host(self, engine: Engine, tmp_path: Path) -> Host:
        return reach(engine, tmp_path, image_name="localhost/no-such-image:1")

    def test_no_container_is_left(self, host: Host, engine: Engine, jobs: JobFolders) -> None:
        """Whether the job went well or not."""
        self.run(host, jobs.stage("ContractAppend", name="good"))
        with pytest.raises(HostError):
            self.run(host, jobs.stage("ContractDie", name="bad"))
        assert docker.DockerClient(base_url=engine.url).containers.list(all=True) == []

    def test_more_memory_than_allowed_ends_the_job(self, host: Host, jobs: JobFolders) -> None:
        """By the worker's own watch or by the kernel's."""
        from drupe.core.context import Resources

        job = jobs.stage("ContractAppend")
        with pytest.raises(HostError):
            self.run(host, job, resources=Resources(memory=8 << 20))


def test_an_interpreter_that_is_not_in_the_image(engine: Engine, tmp_path: Path) -> None:
    host = reach(engine, tmp_path, python="/no/such/python")
    (fault,) = host.check()
    assert "/no/such/python does not run in the image" in str(fault)
    assert "not found" in str(fault)
    host.close()


def test_an_interpreter_that_does_not_answer(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for without end, and its container is removed."""
    monkeypatch.setattr("drupe.hosts.docker._ANSWER_SECONDS", 2)
    script = tmp_path / "sleeping" / "python"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    host = reach(engine, tmp_path, python=str(script), volumes=[*engine.volumes, f"{script.parent}:{script.parent}:ro"])
    begun = time.monotonic()
    (fault,) = host.check()
    assert time.monotonic() - begun < 30
    assert f"{script} does not run in the image" in str(fault)
    assert "no answer in 2 s" in str(fault)
    host.close()
    assert docker.DockerClient(base_url=engine.url).containers.list(all=True) == []
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [("unix:///nowhere.sock", "no container engine answers"), ("tcp://elsewhere:2375", "on another machine")],
)
def test_an_engine_that_is_not_there_is_one_message(tmp_path: Path, url: str, message: str) -> None:
    host = built_in("Docker", tmp_path / "state", image_name="any", url=url)
    (fault,) = host.check()
    assert message in str(fault)
    with pytest.raises(HostError, match=message):
        host.run(JobFolders(tmp_path / "jobs").stage("ContractAppend"), JobOptions(), lambda e: None, lambda: False)
