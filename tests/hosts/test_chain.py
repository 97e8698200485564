"""One chain on every host, each from an empty store: the models are the same, byte for byte.

The chains wait and import more than they compute, each in one thread, so two of them run at any time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from drupe.core.store import Store
from drupe.hosts.bubblewrap import sandbox_fault
from tests.hosts.engines import engine_fault, podman
from tests.hosts.servers import slurm, sshd

pytestmark = pytest.mark.slow

_ROWS = [{"phrase": f"phrase number {n}", "tone": "glad" if n % 2 else "sad"} for n in range(24)]


def document(model: Path, system: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the tone example's chain on a tiny model: tune, merge, build; then measure."""
    return {
        "input_model": {"type": "HfModel", "model_path": str(model), "task": "text-generation"},
        "systems": {"there": {"threads": 1, "resources": {"cpus": 1}, **system}},
        "data_configs": [
            {
                "name": "tone",
                "type": "HuggingfaceContainer",
                "load_dataset_config": {"data_name": "json", "data_files": "phrases.jsonl", "split": "train"},
                "pre_process_data_config": {
                    "prompt_template": "Phrase: {phrase}\nTone:",
                    "answer_template": " {tone}",
                    "max_seq_len": 64,
                },
            }
        ],
        "evaluators": {
            "tone": {
                "metrics": [
                    {
                        "name": "accuracy",
                        "type": "accuracy",
                        "data_config": "tone",
                        "user_config": {"method": "generate", "max_new_tokens": 4},
                        "sub_types": [{"name": "accuracy_score", "priority": 1}],
                    }
                ]
            }
        },
        "evaluator": "tone",
        "passes": {
            "tune": {
                "type": "LoRA",
                "train_data_config": "tone",
                "r": 4,
                "target_modules": "all-linear",
                "training_args": {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 0.01},
            },
            "merge": {"type": "MergeAdapterWeights"},
            "build": {"type": "ModelBuilder", "precision": "int4"},
        },
        "host": "there",
        "target": "there",
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
    }


def chain(model: Path, system: dict[str, Any], folder: Path, **env: str) -> dict[str, Any]:
    """Run the chain on a system and return the digest of each step's model, and the measured accuracy."""
    return run(document(model, system, folder), folder, **env)


def run(workflow: dict[str, Any], folder: Path, **env: str) -> dict[str, Any]:
    """Run a workflow of that chain; see `chain`."""
    folder.mkdir(exist_ok=True)
    (folder / "phrases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
    (folder / "workflow.json").write_text(json.dumps(workflow))
    done = subprocess.run(
        [sys.executable, "-m", "drupe", "run", "workflow.json"],
        cwd=folder,
        env={**os.environ, "DRUPE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((folder / "out" / "drupe.json").read_text())
    (candidate,) = next(iter(manifest["targets"].values()))["candidates"]
    found = {step["pass"]: step["model"] for step in candidate["chain"]}
    assert all(found.values()) and len(found) == 3
    return {**found, "accuracy": candidate["measurements"]["accuracy-accuracy_score"]["value"]}


def local(model: Path, folder: Path) -> dict[str, Any]:
    return chain(model, {"type": "LocalSystem"}, folder)


def in_process(model: Path, folder: Path) -> dict[str, Any]:
    return chain(model, {"type": "LocalSystem", "in_process": True}, folder)


def python_environment(model: Path, folder: Path) -> dict[str, Any]:
    return chain(model, {"type": "PythonEnvironment", "python_environment_path": sys.prefix}, folder)


def bubblewrap(model: Path, folder: Path) -> dict[str, Any]:
    if (fault := sandbox_fault()) is not None:
        pytest.skip(fault)
    return chain(model, {"type": "LocalSystem", "sandbox": "bubblewrap"}, folder)


def ssh(model: Path, folder: Path) -> dict[str, Any]:
    _needs("sshd")
    with sshd(folder / "sshd") as server:
        system = {
            "type": "SSH",
            **server.reach(folder / "far away"),
            "environment": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        }
        return chain(model, system, folder)


def on_slurm(model: Path, folder: Path) -> dict[str, Any]:
    if os.getuid() != 0:
        pytest.skip("Slurm's daemons are started as root")
    _needs("slurmctld", "slurmd", "munged")
    with slurm(folder / "slurm") as conf:
        return chain(model, {"type": "Slurm"}, folder, SLURM_CONF=str(conf))


def ray(model: Path, folder: Path) -> dict[str, Any]:
    pytest.importorskip("ray")
    with _one_cluster:
        return chain(model, {"type": "Ray", "folder": str(folder / "far away")}, folder, **_token(folder))


def docker(model: Path, folder: Path) -> dict[str, Any]:
    pytest.importorskip("docker")
    # Podman takes short paths only.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-", ignore_cleanup_errors=True) as short:
        if (fault := engine_fault(Path(short))) is not None:
            pytest.skip(fault)
        with podman(Path(short)) as engine:
            system = {
                "type": "Docker",
                "image_name": engine.image,
                "url": engine.url,
                "python": sys.executable,
                "volumes": engine.volumes,
                "environment": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
            }
            return chain(model, system, folder)


def each_step_elsewhere(model: Path, folder: Path) -> dict[str, Any]:
    """Tuned on a Ray cluster, merged and built here, measured over SSH."""
    pytest.importorskip("ray")
    _needs("sshd")
    workflow = document(model, {"type": "LocalSystem"}, folder)
    same = {"threads": 1, "resources": {"cpus": 1}}
    with sshd(folder / "sshd") as server, _one_cluster:
        path = {"environment": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}}
        workflow["systems"] = {
            "cluster": {"type": "Ray", "folder": str(folder / "on the cluster"), **same},
            "here": {"type": "LocalSystem", **same},
            "board": {"type": "SSH", **server.reach(folder / "on the board"), **path, **same},
        }
        workflow |= {"host": "here", "target": "board"}
        workflow["passes"]["tune"]["host"] = "cluster"
        return run(workflow, folder, **_token(folder))


def torchrun(model: Path, folder: Path) -> dict[str, Any]:
    """Two processes tune, each half of every step's rows."""
    workflow = document(model, {"type": "LocalSystem", "launcher_processes": 2}, folder)
    workflow["passes"]["tune"]["training_args"]["per_device_train_batch_size"] = 2
    return run(workflow, folder)


SAME = [docker, ray, bubblewrap, on_slurm, ssh, python_environment, in_process]
"""What makes on another host what `local` makes in this machine's warm workers."""

_one_cluster = threading.Lock()
"""Each starts a Ray of its own, and two of them at once might choose the same ports."""


class Chains:
    """Runs chains in two threads and keeps what they made. folders: where each ran, by its function's name."""

    def __init__(self, model: Path, folder: Path, chains: list[Callable[[Path, Path], dict[str, Any]]]) -> None:
        self.folders = {function.__name__: folder / function.__name__ for function in chains}
        self._model = model
        self._waiting = deque(chains)
        self._made: dict[str, Future[dict[str, Any]]] = {function.__name__: Future() for function in chains}
        self._lanes = [threading.Thread(target=self._work, daemon=True) for _ in range(2)]
        for lane in self._lanes:
            lane.start()

    def __call__(self, function: Callable[[Path, Path], dict[str, Any]]) -> dict[str, Any]:
        """Return what a chain made, when it has; its failure, or its reason to be skipped, is raised here."""
        return self._made[function.__name__].result()

    def close(self) -> None:
        """Begin no other chain, and let those that run end: what they started ends with them."""
        self._waiting.clear()
        for lane in self._lanes:
            lane.join(330)

    def _work(self) -> None:
        while True:
            try:
                function = self._waiting.popleft()
            except IndexError:
                return
            folder = self.folders[function.__name__]
            folder.mkdir()
            try:
                self._made[function.__name__].set_result(function(self._model, folder))
            except BaseException as error:
                self._made[function.__name__].set_exception(error)


@pytest.fixture(scope="module")
def chains(
    request: pytest.FixtureRequest, tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Chains]:
    """The chains of the tests that were selected, and the one that all are compared with."""
    asked = [item.callspec.params["function"] for item in request.session.items if item.path == request.path]
    running = Chains(tiny_llama_dir, tmp_path_factory.mktemp("chains"), [local, *asked])
    yield running
    running.close()


@pytest.mark.parametrize("function", SAME, ids=lambda function: str(function.__name__))
def test_every_host_makes_the_same_models(function: Callable[[Path, Path], dict[str, Any]], chains: Chains) -> None:
    assert chains(function) == chains(local)


@pytest.mark.parametrize("function", [torchrun])
def test_two_processes_tune_under_torchrun(function: Callable[[Path, Path], dict[str, Any]], chains: Chains) -> None:
    """As many rows are seen as by one, so that another adapter comes out, which works."""
    assert chains(function).keys() == chains(local).keys()
    manifest = json.loads((chains.folders["torchrun"] / "out" / "drupe.json").read_text())
    (target,) = manifest["targets"].values()
    assert target["candidates"][0]["chain"][0]["report"]["tuning"]["processes"] == 2


@pytest.mark.parametrize("function", [each_step_elsewhere])
def test_each_step_on_the_host_that_the_workflow_names(
    function: Callable[[Path, Path], dict[str, Any]], chains: Chains
) -> None:
    """The same models, each made where it is told."""
    assert chains(function) == chains(local)
    folder = chains.folders["each_step_elsewhere"]
    records = list(Store(folder / "cache").records())
    assert {record["name"]: record["host"] for record in records} == {
        "input model": "here",
        "tune": "cluster",
        "merge": "here",
        "build": "here",
        "accuracy": "board",
    }
    # The board got the built model and nothing of the ones before it; the cluster never saw the built one.
    blobs = {record["name"]: set(record["model"]["files"].values()) for record in records if record["model"]}
    board, cluster = (set(Store(folder / f"on the {name}").sizes()) for name in ("board", "cluster"))
    assert blobs["build"] <= board and not board & (blobs["tune"] - blobs["build"])
    assert blobs["tune"] <= cluster and not cluster & (blobs["build"] - blobs["tune"])


def _token(folder: Path) -> dict[str, str]:
    (folder / "token").write_text("t" * 64)
    return {"RAY_AUTH_TOKEN_PATH": str(folder / "token")}


def _needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            pytest.skip(f"{program} is not installed")
