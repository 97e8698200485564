"""Several processes train one adapter: what comes out is what one process with the same steps makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from drupe.core.accelerators import Accelerator
from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.plugins.tuning.arguments import TrainingArgs
from drupe.plugins.tuning.parallel import Alone, deal
from drupe.plugins.tuning.rows import rows_of

from .conftest import make_pass, run_pass, toy_samples

Make = Callable[..., JobContext]

_SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from drupe.core.context import JobContext
from drupe.core.model import Model
from tests.plugins.tuning.conftest import Source, run_pass, toy_samples

folder, model_dir, variants = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
model = Model.from_dir("hf", model_dir, {"task": "text-generation"}).at(model_dir)
for name, config in variants.items():
    output = folder / name / str(rank)
    output.mkdir(parents=True)
    stop_after, seen = config.pop("stop_after", None), [0]
    context = JobContext(
        output_dir=output,
        checkpoint_dir=folder / name / "checkpoint",
        data_source=Source({"toy": toy_samples()}),
        rank=rank,
        world_size=size,
        on_progress=lambda event: seen.__setitem__(0, event["done"]),
        # Only one of the processes hears of the cancellation.
        is_cancelled=lambda: rank == 1 and stop_after is not None and seen[0] >= stop_after,
    )
    try:
        run_pass("LoRA", model, context, **config)
        ended = "done"
    except BaseException as fault:
        ended = type(fault).__name__
    (output / "report.json").write_text(json.dumps({"ended": ended, "seen": seen[0], **context.report}))
"""


def config(batch: int, **arguments: Any) -> dict[str, Any]:
    """Steps of the same rows, however many processes share them."""
    return {
        "eval_dataset_size": 0.25,
        "training_args": {
            "per_device_train_batch_size": batch,
            "max_steps": 6,
            "learning_rate": 0.01,
            "use_cpu": True,
            **arguments,
        },
    }


def launch(folder: Path, model_dir: Path, variants: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    (folder / "script.py").write_text(_SCRIPT)
    root = Path(__file__).parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    command += [str(folder / "script.py"), str(folder), str(model_dir), json.dumps(variants)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_two_processes_make_what_one_makes(
    tiny: Model, tiny_llama_dir: Path, make_context: Make, tmp_path: Path
) -> None:
    alone = make_context()
    run_pass("LoRA", tiny, alone, **config(8))
    wanted = load_file(alone.output_dir / "adapter" / "adapter_model.safetensors")
    variants = {
        "whole": config(4),
        "sharded": config(4, fsdp="full_shard auto_wrap"),
        "adafactor": config(4, optim="adafactor"),
        "stopped": {**config(4, max_steps=200), "stop_after": 3},
    }
    launch(tmp_path, tiny_llama_dir, variants)
    for name in ("whole", "sharded"):
        reports = [json.loads((tmp_path / name / str(rank) / "report.json").read_text()) for rank in (0, 1)]
        for report in reports:
            assert report["ended"] == "done"
            assert report["tuning"]["processes"] == 2
            for kind in ("steps", "evaluations"):
                losses = [[entry["loss"] for entry in r["curves"][kind]] for r in (report, alone.report)]
                assert len(losses[0]) == len(losses[1])
                torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-4, atol=1e-4)
        made = [load_file(tmp_path / name / str(r) / "adapter" / "adapter_model.safetensors") for r in (0, 1)]
        assert made[0].keys() == wanted.keys()
        for key, tensor in wanted.items():
            torch.testing.assert_close(made[0][key], made[1][key], rtol=0, atol=0)
            torch.testing.assert_close(made[0][key], tensor, rtol=0.02, atol=2e-3)
        tokens = sum(entry["tokens"] for entry in reports[0]["curves"]["steps"])
        assert tokens == sum(entry["tokens"] for entry in alone.report["curves"]["steps"])
    layers = sum(tensor.numel() for name, tensor in base_weights(tiny_llama_dir) if ".layers." in name)
    whole = alone.report["tuning"]["held_parameters"]
    assert whole - layers <= reports[0]["tuning"]["held_parameters"] <= whole - 0.45 * layers
    assert reports[0]["tuning"]["forecast"]["plan"] == reports[1]["tuning"]["forecast"]["plan"]
    assert reports[0]["tuning"]["forecast"]["training_seconds"] > 0
    first = [json.loads((tmp_path / "adafactor" / str(rank) / "report.json").read_text()) for rank in (0, 1)]
    assert [report["ended"] for report in first] == ["done", "done"]
    # Both stop after the same step, although one alone was told, and only the first keeps a checkpoint.
    stopped = [json.loads((tmp_path / "stopped" / str(rank) / "report.json").read_text()) for rank in (0, 1)]
    assert [report["ended"] for report in stopped] == ["Interrupted", "Interrupted"]
    assert stopped[0]["seen"] == stopped[1]["seen"] < 10
    kept = sorted(path.name for path in (tmp_path / "stopped" / "checkpoint" / "training").iterdir())
    assert kept == [f"step-{int(stopped[0]['seen']):08d}.pt"]


def base_weights(folder: Path) -> list[tuple[str, torch.Tensor]]:
    return [pair for path in folder.glob("*.safetensors") for pair in load_file(path).items()]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_row_is_dealt_once_and_tokens_evenly(size: int) -> None:
    rows = rows_of(toy_samples(), None, "toy")[0]
    shares = [[row.length for row in deal(rows, rank, size)] for rank in range(size)]
    assert sorted(length for share in shares for length in share) == sorted(row.length for row in rows)
    sums = [sum(share) for share in shares]
    assert max(sums) - min(sums) <= 2 * max(row.length for row in rows)
    assert Alone().share(rows) == list(rows)


@pytest.mark.parametrize(
    ("given", "sharded"),
    [("full_shard", True), ("full_shard auto_wrap", True), (["full_shard"], True), ("", False), (False, False)],
)
def test_transformers_options_are_read(given: Any, sharded: bool) -> None:
    assert TrainingArgs.model_validate({"fsdp": given, "fsdp_config": {"version": 2}}).fsdp is sharded


@pytest.mark.parametrize("given", ["full_shard offload", "hybrid_shard", ["shard_grad_op"]])
def test_other_ways_to_shard_are_refused_by_name(given: Any) -> None:
    with pytest.raises(ValidationError, match="is not offered; expected full_shard"):
        TrainingArgs.model_validate({"fsdp": given})


def test_a_four_bit_base_is_not_sharded() -> None:
    tuning = make_pass("QLoRA")
    made = tuning.Config(train_data_config="toy", training_args={"fsdp": True})
    with pytest.raises(ConfigError, match="can't hold shares of a four-bit base"):
        tuning.check(made, Accelerator())


def test_one_process_says_that_it_shards_nothing(tiny: Model, make_context: Make) -> None:
    context = make_context()
    run_pass("LoRA", tiny, context, **config(4, fsdp=True, max_steps=1))
    assert "training_args.fsdp has no effect: one process trains" in context.report["tuning"]["notes"]
    assert context.report["tuning"]["processes"] == 1
