"""Systems that can't do their part: one message each, before any work, with the place in the file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.servers import Sshd, free_port, sshd
from tests.hosts.support import needs_program
from tests.support.workflows import TOY, drupe, runs, toy_document, write_workflow

needs_ssh = needs_program("sshd", "ssh", package="openssh-server")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


def refused(folder: Path, system: dict[str, Any], **changes: Any) -> str:
    """Run a workflow whose target is that system, and whose pass runs here; return the one line that it ends with."""
    systems = {"here": {"type": "LocalSystem", "in_process": True}, "there": system}
    path = write_workflow(folder, toy_document(folder, systems=systems, **{"target": "there", **changes}))
    done = drupe("run", path, folder=folder)
    assert done.returncode == 1, done.stdout + done.stderr
    assert runs(folder) == [], "work was done before the fault was told"
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("error: systems.there"), line
    return line


@needs_ssh
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"port": free_port()}, "can't be reached"),
        ({"key_file": "WRONG"}, "the key is not accepted there"),
        ({"python": "/no/such/python"}, "is no program there"),
        ({"python": "/usr/bin/python3", "environment": {}}, "drupe is not installed there"),
        ({"folder": "/proc/nowhere"}, "can't be opened"),
        ({"resources": {"gpus": 64}}, "there.resources.gpus: 64 asked for"),
    ],
)
def test_a_machine_behind_ssh(server: Sshd, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    system = {"type": "SSH", **server.reach(tmp_path / "far"), "environment": {"PYTHONPATH": str(TOY)}, **change}
    if system["key_file"] == "WRONG":
        system["key_file"] = str(server.wrong_key)
    assert message in refused(tmp_path, system)


@needs_ssh
def test_a_plugin_that_is_not_there(server: Sshd, tmp_path: Path) -> None:
    """The target measures with a metric of a plugin that its environment lacks."""
    system = {"type": "SSH", **server.reach(tmp_path / "far"), "environment": {}}
    # What the server is reached with must not bring this process's own path along.
    assert "is of drupe-toy 1.0; there is none; install the same version there" in refused(tmp_path, system)


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ({"type": "LocalSystem", "resources": {"gpus": 64}}, "there.resources.gpus: 64 asked for"),
        ({"type": "LocalSystem", "accelerators": [{"device": "gpu"}]}, "accelerators.0.device: no gpu is found there"),
        ({"type": "PythonEnvironment", "python_environment_path": sys.base_prefix}, "is not installed"),
        ({"type": "Ray", "address": f"127.0.0.1:{free_port()}"}, "can't be reached"),
        ({"type": "Docker", "image_name": "any", "url": "unix:///nowhere.sock"}, "there is no /nowhere.sock"),
    ],
)
def test_a_system_that_is_not_what_the_file_says(tmp_path: Path, system: dict[str, Any], message: str) -> None:
    if system["type"] == "Ray":
        pytest.importorskip("ray")
    if system["type"] == "Docker":
        pytest.importorskip("docker")
    if system["type"] == "PythonEnvironment":
        system = {**system, "environment": {"PYTHONPATH": ""}}
    if system.get("accelerators") and list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    assert message in refused(tmp_path, system)


def test_several_faults_are_told_at_once(tmp_path: Path) -> None:
    systems = {
        "here": {"type": "LocalSystem", "in_process": True},
        "one": {"type": "LocalSystem", "resources": {"gpus": 64}},
        "two": {"type": "LocalSystem", "resources": {"gpus": 65}},
    }
    document = toy_document(tmp_path, systems=systems, target="two")
    document["passes"]["append"]["host"] = "one"
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 1
    assert "systems.one.resources.gpus: 64" in done.stderr and "systems.two.resources.gpus: 65" in done.stderr
    assert runs(tmp_path) == []


def test_a_system_that_nothing_uses_is_left_alone(tmp_path: Path) -> None:
    systems = {
        "here": {"type": "LocalSystem", "in_process": True},
        "away": {"type": "SSH", "address": "nowhere.invalid"},
    }
    done = drupe("run", write_workflow(tmp_path, toy_document(tmp_path, systems=systems)), folder=tmp_path)
    assert done.returncode == 0, done.stderr
