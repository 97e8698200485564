"""The program of docs/tensor-parallel.md, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.core.runtimes import GenerateOptions
from tests.plugins.huggingface.parallel.conftest import python_blocks
from tests.plugins.onnx.graphs import CPU


@pytest.mark.slow
@pytest.mark.full
def test_the_pages_program_generates_as_the_runtime_does(halves: Model, tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(python_blocks()[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "run.py"), str(halves.folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    runtime = get_registry().create("drupe_runtimes", "distributed_hf")
    with runtime.open(halves, CPU, {"threads": 1}) as session:
        wanted = session.generate("Once upon a time", GenerateOptions(max_new_tokens=16)).outputs["text"]
    assert wanted and done.stdout.strip() == f"Once upon a time{wanted}"
