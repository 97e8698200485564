"""The training loop: resuming, stopping, evaluation, failures."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from drupe.core.context import JobContext
from drupe.core.errors import Interrupted, PassError
from drupe.core.model import Model
from drupe.plugins.tuning.checkpoints import Checkpoints
from drupe.plugins.tuning.curves import Curves, svg

from .conftest import run_pass, sample, toy_samples

Make = Callable[..., JobContext]


def cancel_at(step: int) -> tuple[Callable[[Mapping[str, Any]], None], Callable[[], bool]]:
    """An observer of progress and a cancellation that comes once `step` steps are done."""
    seen = [0.0]

    def progress(event: Mapping[str, Any]) -> None:
        seen[0] = event["done"]

    return progress, lambda: seen[0] >= step


CONFIG: dict[str, Any] = {
    "lora_dropout": 0.1,
    "eval_dataset_size": 0.25,
    "training_args": {
        "max_steps": 12,
        "learning_rate": 0.01,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 4,
    },
}


def test_a_cancelled_run_goes_on_as_if_nothing_had_happened(tiny: Model, make_context: Make, tmp_path: Path) -> None:
    undisturbed = make_context()
    whole = run_pass("LoRA", tiny, undisturbed, **CONFIG)
    on_progress, is_cancelled = cancel_at(5)
    with pytest.raises(Interrupted):
        run_pass(
            "LoRA",
            tiny,
            make_context(checkpoint_dir=tmp_path / "c", on_progress=on_progress, is_cancelled=is_cancelled),
            **CONFIG,
        )
    torch.manual_seed(99)
    resumed = make_context(checkpoint_dir=tmp_path / "c")
    result = run_pass("LoRA", tiny, resumed, **CONFIG)
    assert resumed.report["tuning"]["resumed_from"] == 5
    assert result.digest == whole.digest
    losses = [[step["loss"] for step in c.report["curves"]["steps"]] for c in (undisturbed, resumed)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_checkpoint(tiny: Model, make_context: Make, tmp_path: Path) -> None:
    args = {**CONFIG["training_args"], "max_steps": 100, "save_strategy": "steps", "save_steps": 4}
    config = {**CONFIG, "training_args": args}
    whole = run_pass("LoRA", tiny, make_context(), **config)
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from drupe.core.context import JobContext
        from drupe.core.model import Model
        from tests.plugins.tuning.conftest import Source, run_pass, toy_samples
        folder = Path({str(tiny.folder)!r})
        model = Model.from_dir("hf", folder, {{"task": "text-generation"}}).at(folder)
        out = Path({str(tmp_path)!r}) / "killed"
        out.mkdir()
        context = JobContext(out, Path({str(tmp_path)!r}) / "c", data_source=Source({{"toy": toy_samples()}}))
        run_pass("LoRA", model, context, **{config!r})
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[3])
    checkpoints = Checkpoints(tmp_path / "c" / "training")
    deadline = time.monotonic() + 120
    while not checkpoints.steps() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed = make_context(checkpoint_dir=tmp_path / "c")
    result = run_pass("LoRA", tiny, resumed, **config)
    assert 0 < resumed.report["tuning"]["resumed_from"] < 100
    assert result.digest == whole.digest


def test_a_checkpoint_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, {"a": torch.ones(2)})
    checkpoints.save(2, {"a": torch.zeros(2)})
    (tmp_path / "step-00000002.pt").write_bytes(b"torn")
    found = checkpoints.latest()
    assert found is not None
    assert found[0] == 1


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 6):
        checkpoints.save(step, {"step": step}, best=step == 3)
    assert checkpoints.steps() == [4, 5]
    assert checkpoints.best() == {"step": 3}
    assert not list(tmp_path.glob(".*"))


def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_checkpoint(
    tiny: Model, make_context: Make, tmp_path: Path
) -> None:
    args = {"max_steps": 50, "learning_rate": 1e30, "max_grad_norm": 0, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(
        PassError, match=r"(loss is|norm is) (nan|inf) at step \d+ of 50; the checkpoint of step \d+ is kept"
    ):
        run_pass("LoRA", tiny, make_context(checkpoint_dir=tmp_path / "c"), training_args=args)
    found = Checkpoints(tmp_path / "c" / "training").latest()
    assert found is not None
    assert all(torch.isfinite(torch.tensor(step["loss"])) for step in found[1]["curves"]["steps"])


def test_the_best_adapter_is_handed_out_and_training_stops_early(tiny: Model, make_context: Make) -> None:
    noise = [sample(i, "ab"[i % 2] * (i % 5 + 1) + "=", str(i * 7 % 10)) for i in range(16)]
    other = [sample(100 + i, "cd"[i % 2] * (i % 5 + 1) + "=", str(i * 3 % 10)) for i in range(8)]
    context = make_context({"toy": noise, "other": other})
    tuned = run_pass(
        "LoRA",
        tiny,
        context,
        r=16,
        eval_data_config="other",
        early_stopping_patience=2,
        training_args={
            "max_steps": 200,
            "learning_rate": 0.02,
            "eval_strategy": "steps",
            "eval_steps": 5,
            "load_best_model_at_end": True,
        },
    )
    facts = context.report["tuning"]
    evaluations = context.report["curves"]["evaluations"]
    lowest = min(evaluations, key=lambda e: e["loss"])
    assert facts["stopped_early"]
    assert facts["steps"] < 200
    assert facts["best_step"] == lowest["step"] == facts["steps"] - 10
    again = make_context({"toy": noise, "other": other})
    run_pass(
        "LoRA",
        run_pass("MergeAdapterWeights", tuned, make_context()),
        again,
        eval_data_config="other",
        training_args={"max_steps": 1, "eval_on_start": True, "learning_rate": 1e-6},
    )
    assert again.report["curves"]["evaluations"][0]["loss"] == pytest.approx(lowest["loss"], rel=1e-4)


def test_options_that_need_evaluation_data_say_so(tiny: Model, make_context: Make) -> None:
    from pydantic import ValidationError

    for config in (
        {"early_stopping_patience": 1},
        {"training_args": {"eval_strategy": "steps"}},
        {"training_args": {"load_best_model_at_end": True}},
    ):
        with pytest.raises(ValidationError, match="eval_dataset_size"):
            run_pass("LoRA", tiny, make_context(), **config)


def test_epochs_make_the_steps_that_transformers_would_make(tiny: Model, make_context: Make) -> None:
    context = make_context({"toy": toy_samples(10)})
    sizes = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "num_train_epochs": 2.5}
    run_pass("LoRA", tiny, context, training_args={**sizes, "max_steps": -1})
    assert context.report["tuning"]["steps"] == 5
    assert len(context.report["curves"]["steps"]) == 5


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit", "adafactor", "sgd", "adagrad", "rmsprop"])
def test_every_optimizer_learns(optim: str, tiny: Model, make_context: Make) -> None:
    context = make_context()
    rate = 5.0 if optim == "sgd" else 0.02
    run_pass("LoRA", tiny, context, training_args={"optim": optim, "max_steps": 15, "learning_rate": rate})
    losses = [step["loss"] for step in context.report["curves"]["steps"]]
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("linear", {}),
        ("cosine", {}),
        ("polynomial", {"power": 2.0}),
        ("constant_with_warmup", {}),
        ("inverse_sqrt", {}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("warmup_stable_decay", {"num_decay_steps": 2}),
    ],
)
def test_the_learning_rate_follows_its_schedule(
    name: str, kwargs: dict[str, Any], tiny: Model, make_context: Make
) -> None:
    context = make_context()
    args = {"max_steps": 6, "warmup_steps": 2, "lr_scheduler_type": name, "lr_scheduler_kwargs": kwargs}
    run_pass("LoRA", tiny, context, training_args={**args, "learning_rate": 0.01})
    rates = [step["learning_rate"] for step in context.report["curves"]["steps"]]
    assert rates[0] == 0.0
    assert rates[2] == pytest.approx(0.01)
    assert (rates[-1] < 0.01) == (name != "constant_with_warmup")


def test_progress_carries_loss_rate_and_speed(tiny: Model, make_context: Make) -> None:
    events: list[Mapping[str, Any]] = []
    run_pass("LoRA", tiny, make_context(on_progress=events.append))
    assert [event["done"] for event in events] == [1, 2, 3]
    assert events[0]["total"] == 3
    assert set(events[0]["values"]) == {"loss", "learning_rate", "tokens_per_second"}


def test_the_picture_is_well_formed_and_shows_both_losses() -> None:
    from xml.etree import ElementTree

    steps = [
        {"step": i, "loss": 5.0 / i, "learning_rate": 1e-3, "tokens_per_second": 100.0, "memory": 2**30}
        for i in range(1, 9)
    ]
    picture = svg(Curves(steps, [{"step": 4, "loss": 1.5}]), "a <title>")
    root = ElementTree.fromstring(picture)
    lines = [element for element in root.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 5
    assert "evaluation" in picture


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    curves = Curves([{"step": i, "loss": 0.0} for i in range(1, 5001)])
    kept = curves.to_json()["steps"]
    assert len(kept) <= 2001
    assert kept[-1]["step"] == 5000
