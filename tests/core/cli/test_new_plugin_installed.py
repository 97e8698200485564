"""From `drupe new-plugin` to a run: installed with pip into fresh environments, between two of Drupe's passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from drupe.testing import tiny_encoder

REPOSITORY = Path(__file__).parents[3]
pytestmark = pytest.mark.slow


def fresh_environment(folder: Path) -> Path:
    """Make a virtual environment that sees this one's packages, and return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    seen = [sysconfig.get_paths()["purelib"], str(REPOSITORY / "src")]
    (site / "seen.pth").write_text("\n".join(seen) + "\n")
    return folder / "bin" / "python"


def call(*command: str | Path, folder: Path) -> str:
    env = {**os.environ, "DRUPE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_pass_works_between_two_built_in_ones(tmp_path: Path) -> None:
    here, there = fresh_environment(tmp_path / "here"), fresh_environment(tmp_path / "there")
    drupe = (here, "-m", "drupe")
    call(*drupe, "new-plugin", "acme-round", "--pass", "RoundWeights", folder=tmp_path)
    for python in (here, there):
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-build-isolation"]
        call(*pip, "./acme-round", folder=tmp_path)
    call(here, "-m", "pytest", "-q", "-p", "no:cacheprovider", "acme-round", folder=tmp_path)

    tiny_encoder(tmp_path / "model")
    for host in ("local", "other"):
        document = {
            "input_model": {"type": "HfModel", "model_path": "model", "task": "text-classification"},
            "systems": {
                "local": {"type": "LocalSystem"},
                "other": {"type": "PythonEnvironment", "python_environment_path": str(tmp_path / "there")},
            },
            "passes": {
                "convert": {"type": "OnnxConversion"},
                "round": {"type": "RoundWeights", "limit": 0.01, "host": host},
                "quantize": {"type": "OnnxDynamicQuantization"},
            },
            "host": "local",
            "target": "local",
            "output_dir": f"out-{host}",
            "cache_dir": f"cache-{host}",
        }
        (tmp_path / "w.json").write_text(json.dumps(document))
        call(*drupe, "run", "w.json", folder=tmp_path)
        manifest = json.loads((tmp_path / f"out-{host}" / "drupe.json").read_text())
        text = json.dumps(manifest)
        assert "RoundWeights" in text
        assert list((tmp_path / f"out-{host}").rglob("*.onnx"))
