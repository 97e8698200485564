"""Training arguments: today's names, older names, what is told, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from drupe.core.errors import ConfigError
from drupe.core.introspect import class_fields
from drupe.core.registry import get_registry
from drupe.core.workflow.read import examine
from drupe.plugins.tuning.argument_names import NEUTRAL, TOLD, known_names, refusal, upgrade
from drupe.plugins.tuning.arguments import OPTIMIZERS, SCHEDULERS, TrainingArgs
from drupe.plugins.tuning.library_names import compile_modes, optimizer_arguments, schedule_arguments
from drupe.plugins.tuning.optimizers import make_optimizer, warmup_steps


def read(**values: Any) -> tuple[TrainingArgs, list[str]]:
    notices: list[str] = []
    return TrainingArgs.model_validate(values, context={"notices": notices}), notices


def test_every_argument_of_the_installed_transformers_is_followed_told_or_refused_with_a_reason() -> None:
    for name in class_fields("transformers.training_args", "TrainingArguments"):
        followed = name in TrainingArgs.model_fields or name in upgrade({name: 1})[0].keys() & TrainingArgs.model_fields
        upgraded = set(upgrade({name: 1})[0]) <= set(TrainingArgs.model_fields)
        reason = refusal(name) != "Drupe's training loop has no such feature"
        assert followed or upgraded or name in TOLD or name in NEUTRAL or reason, name


@pytest.mark.parametrize(
    ("older", "newer", "value"),
    [
        ("evaluation_strategy", "eval_strategy", "steps"),
        ("per_gpu_train_batch_size", "per_device_train_batch_size", 2),
        ("no_cuda", "use_cpu", True),
        ("warmup_ratio", "warmup_steps", 0.25),
    ],
)
def test_an_older_name_is_upgraded_with_one_notice(older: str, newer: str, value: Any) -> None:
    args, notices = read(**{older: value})
    assert getattr(args, newer) == value
    assert len(notices) == 1
    assert older in notices[0]
    assert newer in notices[0]


def test_group_by_length_becomes_the_sampling_strategy() -> None:
    assert read(group_by_length=True)[0].train_sampling_strategy == "group_by_length"
    assert read(group_by_length=False)[0].train_sampling_strategy == "random"


def test_both_spellings_keep_the_newer_and_tell() -> None:
    args, notices = read(evaluation_strategy="epoch", eval_strategy="steps")
    assert args.eval_strategy == "steps"
    assert any("evaluation_strategy is dropped" in notice for notice in notices)


@pytest.mark.parametrize(("name", "value"), [("dataloader_num_workers", 4), ("auto_find_batch_size", True)])
def test_an_argument_without_effect_is_told_and_leaves_the_key(name: str, value: Any) -> None:
    args, notices = read(**{name: value})
    assert args == TrainingArgs()
    assert len(notices) == 1
    assert f"{name} has no effect" in notices[0]


def test_an_unknown_argument_is_a_fault_with_the_nearest_name() -> None:
    with pytest.raises(ValidationError, match=r"learnin_rate is no training argument.*did you mean learning_rate\?"):
        read(learnin_rate=1e-3)


@pytest.mark.parametrize(
    ("name", "value"), [("fp16", True), ("push_to_hub", True), ("deepspeed", {"stage": 2}), ("report_to", "wandb")]
)
def test_what_cannot_be_followed_is_refused_with_the_reason(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=rf"{name}.*can't be followed here.*leave it out"):
        read(**{name: value})


def test_values_that_ask_for_nothing_pass_in_silence() -> None:
    assert read(fp16=False, push_to_hub=False, report_to="none", lr_scheduler_kwargs=None) == (TrainingArgs(), [])


def test_an_optimizer_that_is_not_offered_names_those_that_are() -> None:
    with pytest.raises(ValidationError, match=r"adamw_torchy.*did you mean adamw_torch"):
        read(optim="adamw_torchy")


def test_a_warm_up_below_one_is_a_share_of_all_steps() -> None:
    assert warmup_steps(TrainingArgs(warmup_steps=0.1), 95) == 10
    assert warmup_steps(TrainingArgs(warmup_steps=7), 95) == 7


def test_names_are_known_without_importing_transformers() -> None:
    assert {"learning_rate", "fsdp", "torch_compile_backend"} <= known_names()


def test_whoever_reads_a_workflow_is_told_what_has_no_effect(tmp_path: Path) -> None:
    arguments = {"dataloader_num_workers": 4, "max_steps": {"search": [1, 2]}}
    document = {
        "input_model": {"type": "HfModel", "model_path": "model"},
        "data_configs": [{"name": "text", "type": "HuggingfaceContainer"}],
        "passes": {"tune": {"type": "LoRA", "train_data_config": "text", "training_args": arguments}},
    }
    (tmp_path / "model").mkdir()
    (tmp_path / "workflow.json").write_text(json.dumps(document), encoding="utf-8")
    told = [str(notice) for notice in examine(tmp_path / "workflow.json", get_registry()).notices]
    [line] = [text for text in told if "dataloader_num_workers" in text]
    assert line.startswith("passes.tune: training_args.dataloader_num_workers has no effect: ")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"torch_compile_mode": "max-autotun"},
            r"torch_compile_mode 'max-autotun' is not offered; expected one of default, .*did you mean max-autotune\?",
        ),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycle": 2}},
            r"lr_scheduler_kwargs: cosine has no argument 'num_cycle' to set; it takes num_cycles",
        ),
        (
            {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {"power": 2}},
            r"constant_with_warmup has no argument 'power' to set; it takes none",
        ),
        ({"optim_args": "amsgrad"}, r"optim_args 'amsgrad': expected 'key=value,key=value', found 'amsgrad'"),
        (
            {"optim_args": "amsgrat=True"},
            r"optim_args: adamw_torch_fused has no argument 'amsgrat' to set; it takes am",
        ),
        (
            {"optim": "sgd", "optim_args": "lr=0.1"},
            r"optim_args: sgd has no argument 'lr' to set; .*momentum, nesterov",
        ),
        ({"optim_args": "weight_decay=0.1"}, "adamw_torch_fused has no argument 'weight_decay' to set"),
    ],
)
def test_texts_that_libraries_would_refuse_are_refused_before_work(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        read(**values)


@pytest.mark.parametrize(
    ("optim", "given", "message"),
    [
        ("sgd", "nesterov=True", "'nesterov=True': sgd refuses them: Nesterov momentum requires a momentum"),
        ("adamw_torch_fused", "foreach=True", "`fused` and `foreach` cannot be `True`"),
        ("rmsprop", "alpha=much", "'alpha=much': rmsprop refuses them: '<=' not supported"),
    ],
)
def test_values_that_an_optimizer_refuses_are_told_with_their_key(optim: str, given: str, message: str) -> None:
    import torch

    args, _ = read(optim=optim, optim_args=given)
    with pytest.raises(ConfigError, match=rf"training_args\.optim_args .*{message}"):
        make_optimizer(torch.nn.Linear(2, 2), args, torch.device("cpu"))


def test_texts_that_libraries_take_are_taken() -> None:
    args, notices = read(
        torch_compile_mode="reduce-overhead",
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": 1e-6, "num_cycles": 0.5},
        optim_args="amsgrad=True",
    )
    assert not notices
    # As transformers has it: who names a mode asks for compiling.
    assert args.torch_compile is True and read()[0].torch_compile is None
    for name in OPTIMIZERS:
        assert optimizer_arguments(name) != frozenset(), name
    for name in SCHEDULERS:
        assert schedule_arguments(name) is not None, name


def test_modes_are_those_of_the_installed_pytorch() -> None:
    import torch._inductor

    assert compile_modes() == tuple(torch._inductor.list_mode_options())


def test_options_of_what_is_not_used_are_told() -> None:
    _, notices = read(torch_compile=False, torch_compile_mode="default", liger_kernel_config={"rope": True})
    assert notices == [
        "torch_compile_mode has no effect: torch_compile is false",
        "liger_kernel_config has no effect: use_liger_kernel is not true",
    ]
