"""The example, run as a user runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

pytest.importorskip("onnxruntime", reason="the source model is compared with through ONNX Runtime")


def test_the_board_gets_the_build_that_takes_the_least_energy(tmp_path: Path) -> None:
    for name in ("mlp.yaml", "classifier.onnx"):
        shutil.copy(EXAMPLES / name, tmp_path)
    command = [sys.executable, "-m", "drupe", "run", str(tmp_path / "mlp.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    target = json.loads((tmp_path / "outputs" / "drupe.json").read_text())["targets"]["board"]
    energy = {
        c["point"]["compile.weight_bits"]: c["measurements"]["energy-per_sample"]["value"] for c in target["candidates"]
    }
    assert energy[8] < energy[16]
    winner = next(c for c in target["candidates"] if c["number"] == target["winner"])
    assert winner["point"] == {"compile.weight_bits": 8}
    assert winner["chain"][0]["host"] == "here"
    assert (tmp_path / "outputs" / "board" / "model" / "program.json").is_file()


def test_the_model_of_the_example_is_what_its_script_writes(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "make_classifier.py", tmp_path)
    subprocess.run([sys.executable, str(tmp_path / "make_classifier.py")], check=True)
    assert (tmp_path / "classifier.onnx").read_bytes() == (EXAMPLES / "classifier.onnx").read_bytes()
