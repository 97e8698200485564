"""One chain on every host, each from an empty store: the models are the same, byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
    folder.mkdir()
    (folder / "phrases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
    (folder / "workflow.json").write_text(json.dumps(workflow))
    done = subprocess.run(
        [sys.executable, "-m", "drupe.core.cli", "run", "workflow.json"],
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


@pytest.fixture(scope="module")
def expected(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the chain makes in this machine's warm workers."""
    return chain(tiny_llama_dir, {"type": "LocalSystem"}, tmp_path_factory.mktemp("expected") / "run")


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder whose path is short enough for podman."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def test_in_process(expected: dict[str, Any], tiny_llama_dir: Path, tmp_path: Path) -> None:
    assert chain(tiny_llama_dir, {"type": "LocalSystem", "in_process": True}, tmp_path / "run") == expected


def test_python_environment(expected: dict[str, Any], tiny_llama_dir: Path, tmp_path: Path) -> None:
    system = {"type": "PythonEnvironment", "python_environment_path": sys.prefix}
    assert chain(tiny_llama_dir, system, tmp_path / "run") == expected


@pytest.mark.skipif(sandbox_fault() is not None, reason=str(sandbox_fault()))
def test_bubblewrap(expected: dict[str, Any], tiny_llama_dir: Path, tmp_path: Path) -> None:
    assert chain(tiny_llama_dir, {"type": "LocalSystem", "sandbox": "bubblewrap"}, tmp_path / "run") == expected


def test_ssh(expected: dict[str, Any], tiny_llama_dir: Path, tmp_path: Path) -> None:
    _needs("sshd")
    with sshd(tmp_path / "sshd") as server:
        system = {
            "type": "SSH",
            **server.reach(tmp_path / "far away"),
            "environment": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        }
        assert chain(tiny_llama_dir, system, tmp_path / "run") == expected


@pytest.mark.skipif(os.getuid() != 0, reason="Slurm's daemons are started as root")
def test_slurm(expected: dict[str, Any], tiny_llama_dir: Path, tmp_path: Path) -> None:
    _needs("slurmctld", "slurmd", "munged")
    with slurm(tmp_path / "slurm") as conf:
        assert chain(tiny_llama_dir, {"type": "Slurm"}, tmp_path / "run", SLURM_CONF=str(conf)) == expected


def test_ray(expected: dict[str, Any], tiny_llama_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    system = {"type": "Ray", "folder": str(tmp_path / "far away")}
    (tmp_path / "token").write_text("t" * 64)
    token = str(tmp_path / "token")
    assert chain(tiny_llama_dir, system, tmp_path / "run", RAY_AUTH_TOKEN_PATH=token) == expected


def test_docker(expected: dict[str, Any], tiny_llama_dir: Path, tmp_path: Path, short_dir: Path) -> None:
    pytest.importorskip("docker")
    fault = engine_fault(short_dir)
    if fault is not None:
        pytest.skip(fault)
    with podman(short_dir) as engine:
        system = {
            "type": "Docker",
            "image_name": engine.image,
            "url": engine.url,
            "python": sys.executable,
            "volumes": engine.volumes,
            "environment": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        }
        assert chain(tiny_llama_dir, system, tmp_path / "run") == expected


def test_each_step_on_the_host_that_the_workflow_names(
    expected: dict[str, Any], tiny_llama_dir: Path, tmp_path: Path
) -> None:
    """Tuned on a Ray cluster, merged and built here, measured over SSH: the same models, each made where it is told."""
    pytest.importorskip("ray")
    _needs("sshd")
    from drupe.core.store import Store

    (tmp_path / "token").write_text("t" * 64)
    folder = tmp_path / "run"
    workflow = document(tiny_llama_dir, {"type": "LocalSystem"}, folder)
    same = {"threads": 1, "resources": {"cpus": 1}}
    with sshd(tmp_path / "sshd") as server:
        path = {"environment": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}}
        workflow["systems"] = {
            "cluster": {"type": "Ray", "folder": str(tmp_path / "on the cluster"), **same},
            "here": {"type": "LocalSystem", **same},
            "board": {"type": "SSH", **server.reach(tmp_path / "on the board"), **path, **same},
        }
        workflow |= {"host": "here", "target": "board"}
        workflow["passes"]["tune"]["host"] = "cluster"
        assert run(workflow, folder, RAY_AUTH_TOKEN_PATH=str(tmp_path / "token")) == expected
    hosts = {record["name"]: record["host"] for record in Store(folder / "cache").records()}
    assert hosts == {
        "input model": "here",
        "tune": "cluster",
        "merge": "here",
        "build": "here",
        "accuracy": "board",
    }
    # The board got the built model and nothing of the ones before it; the cluster never saw the built one.
    blobs = {record["name"]: set(record["model"]["files"].values()) for record in Store(folder / "cache").records()
             if record["model"]}  # fmt: skip
    board, cluster = (set(Store(tmp_path / f"on the {name}").sizes()) for name in ("board", "cluster"))
    assert blobs["build"] <= board and not board & (blobs["tune"] - blobs["build"])
    assert blobs["tune"] <= cluster and not cluster & (blobs["build"] - blobs["tune"])


def test_two_processes_tune_under_torchrun(expected: dict[str, Any], tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Each takes half of every step's rows: as many are seen, so that another adapter comes out, which works."""
    folder = tmp_path / "run"
    workflow = document(tiny_llama_dir, {"type": "LocalSystem", "launcher_processes": 2}, folder)
    workflow["passes"]["tune"]["training_args"]["per_device_train_batch_size"] = 2
    assert run(workflow, folder).keys() == expected.keys()
    (target,) = json.loads((folder / "out" / "drupe.json").read_text())["targets"].values()
    assert target["candidates"][0]["chain"][0]["report"]["tuning"]["processes"] == 2


def _needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            pytest.skip(f"{program} is not installed")
