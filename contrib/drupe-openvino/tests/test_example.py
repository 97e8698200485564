"""The example, run as a user runs it: one workflow, two targets, a model for each."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_each_target_gets_a_model_of_its_own_kind(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    for name in ("two_targets.yaml", "sentences.jsonl"):
        shutil.copy(EXAMPLES / name, tmp_path)
    command = [sys.executable, "-m", "drupe", "run", str(tmp_path / "two_targets.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    targets = json.loads((tmp_path / "outputs" / "drupe.json").read_text())["targets"]
    for name, kind, suffix in (("onnxruntime", "onnx", ".onnx"), ("openvino", "openvino", ".xml")):
        target = targets[name]
        assert target["artifact"]["kind"] == kind
        assert list((tmp_path / "outputs" / target["model"]).glob(f"*{suffix}"))
        winner = next(c for c in target["candidates"] if c["number"] == target["winner"])
        assert winner["measurements"]["closeness-cosine"]["value"] >= 0.95
        complete = [c for c in target["candidates"] if c["state"] == "complete"]
        assert len(complete) >= 2
