"""SpinQuant: the rotated decoder says what it said, and rounding it costs less than after a rotation by chance."""

from __future__ import annotations

import argparse
import pydoc
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from drupe.core.data import Sample
from drupe.core.errors import DrupeError, Interrupted
from drupe.core.model import Model
from drupe.plugins.huggingface.loading import load_model, load_tokenizer
from drupe.plugins.quantization.checkpoint import float_state
from drupe.plugins.quantization.layers import Scheme
from drupe.plugins.quantization.rtn import round_layer
from drupe.plugins.quantization.spinning.cayley import CayleySGD
from drupe.plugins.quantization.spinning.config import RotationTrainingArgs, SpinQuantConfig
from drupe.plugins.quantization.spinning.coordinates import coordinates
from drupe.plugins.quantization.spinning.rounding import rounded_inputs, rounded_weights
from drupe.plugins.tuning.checkpoints import Checkpoints
from drupe.testing import PassContract, make_context, tiny_causal_lm
from tests.plugins.onnx.graphs import CPU, run_pass
from tests.plugins.quantization.decoders import decoder, logits
from tests.plugins.quantization.workflows import assert_idle, examined


def samples(rows: Any) -> list[Sample]:
    return [Sample(f"s{n}", {"input_ids": np.asarray(row)}, content_key=f"k{n}") for n, row in enumerate(rows)]


def text(count: int = 8, length: int = 16) -> list[Sample]:
    random = np.random.default_rng(7)
    return samples(random.integers(0, 250, length - n % 3) for n in range(count))


def spun(model: Model, folder: Path, report: dict[str, Any] | None = None, **config: Any) -> Model:
    context = make_context(folder, accelerator=CPU, data={"text": text()})
    made = run_pass("SpinQuant", model, folder, context=context, **{"data_config": "text", **config})
    if report is not None:
        report.update(context.report)
    return made


class TestSpinQuant(PassContract):
    name = "SpinQuant"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_causal_lm(tmp_path / "model")

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"data_config": "text"}

    @pytest.fixture
    def data(self) -> dict[str, Any]:
        return {"text": text()}


# The parts


def test_cayley_steps_stay_orthogonal_and_find_the_rotation() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = coordinates(12, "random", generator, "cpu").start
    wanted[0] *= torch.sign(torch.linalg.det(wanted))  # Steps don't mirror.
    points = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    turn = torch.nn.Parameter(torch.eye(12, dtype=torch.float64))
    optimizer = CayleySGD([turn], lr=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        (points @ turn - points @ wanted).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(turn.T @ turn, torch.eye(12, dtype=torch.float64), atol=1e-10, rtol=0)
    torch.testing.assert_close(turn.detach(), wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize("mode", ["hadamard", "random"])
@pytest.mark.parametrize("keeps_mean", [True, False])
def test_where_learning_begins(mode: str, keeps_mean: bool) -> None:
    made = coordinates(24, mode, torch.Generator().manual_seed(1), "cpu", keeps_mean=keeps_mean)
    matrix = made.matrix().detach()
    one = torch.eye(24, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, one)
    states = torch.randn(5, 24, dtype=torch.float64)
    assert torch.allclose((states @ matrix).mean(-1), states.mean(-1)) == keeps_mean
    if mode == "hadamard":
        # An outlier in one channel is spread over all.
        assert float(matrix.abs().max()) < 0.6
    other = torch.linalg.qr(torch.randn(*made.learned.shape, dtype=torch.float64))[0]
    made.learned.data = other
    assert not torch.allclose(made.matrix(), matrix) and torch.allclose(made.matrix() @ made.matrix().T, one)
    assert torch.allclose((states @ made.matrix()).mean(-1), states.mean(-1)) == keeps_mean
    made.reset()
    torch.testing.assert_close(made.matrix().detach(), matrix)


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_are_rounded_as_rtn_does_and_gradients_pass(symmetric: bool) -> None:
    weights = torch.randn(6, 64, requires_grad=True)
    scheme = Scheme(4, 32, symmetric)
    found = rounded_weights(weights, scheme)
    torch.testing.assert_close(found.detach(), round_layer(weights.detach(), scheme, search=False).weights())
    found.sum().backward()
    assert weights.grad is not None and bool((weights.grad == 1).all())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per_token", [True, False])
def test_inputs_have_no_more_numbers_than_their_bits(symmetric: bool, per_token: bool) -> None:
    states = torch.randn(2, 3, 500, requires_grad=True) * torch.tensor([1.0, 10.0, 0.1])[:, None] + 0.05
    found = rounded_inputs(states, 3, symmetric=symmetric, per_token=per_token)
    counts = [len(torch.unique(row.detach().round(decimals=4))) for row in found.reshape(6, -1)]
    assert max(counts) <= 8 and (min(counts) > 5) == per_token
    off = (found - states).detach().abs().amax(-1)
    assert bool((off < 0.5 * states.detach().abs().amax(-1)).all()) == per_token


# Same logits


OPT = {"ffn_dim": 96, "word_embed_proj_dim": 64, "max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("kind", "mode", "config"),
    [
        ("Llama", "hadamard", {"tie_word_embeddings": True}),
        ("Llama", "random", {"attention_bias": True, "mlp_bias": True}),
        ("Qwen2", "hadamard", {}),
        ("Qwen3", "hadamard", {"head_dim": 32}),
        ("Phi3", "hadamard", {}),
        ("Gemma", "random", {"head_dim": 16}),
        ("OPT", "hadamard", {**OPT, "tie_word_embeddings": True}),
        ("OPT", "random", {**OPT, "layer_norm_elementwise_affine": False}),
        ("Phi", "hadamard", {}),
        ("GPTNeoX", "random", {"use_parallel_residual": True}),
        ("GPTNeoX", "hadamard", {"use_parallel_residual": False}),
    ],
)
def test_the_logits_stay_and_states_and_values_turn(
    tmp_path: Path, kind: str, mode: str, config: dict[str, Any]
) -> None:
    source = decoder(tmp_path / "m", kind, **config)
    report: dict[str, Any] = {}
    turned = spun(source, tmp_path / "job", report, rotate_mode=mode)
    np.testing.assert_allclose(logits(turned), logits(source), atol=1e-5 * float(np.abs(logits(source)).max()))
    assert report["rotations"] == {"states": 1, "values": 2} and report["largest_change"] < 1e-5
    before, after = (float_state(model.folder) for model in (source, turned))
    changed = [name for name in before if "layers" in name and before[name].ndim == 2]
    assert all(not torch.allclose(before[name], after[name], atol=1e-3) for name in changed) and changed
    again = spun(source, tmp_path / "again", rotate_mode=mode, seed=5)
    assert not torch.allclose(float_state(again.folder)[changed[0]], after[changed[0]], atol=1e-3)


def test_the_stored_type_stays(tmp_path: Path) -> None:
    source = tiny_causal_lm(tmp_path / "m")
    load_model(source).to(torch.bfloat16).save_pretrained(tmp_path / "m")
    source = Model.from_dir("hf", tmp_path / "m", source.attributes)
    made = spun(source, tmp_path / "job", data_config=None, nsamples=8, seqlen=12)
    assert load_model(made).dtype == torch.bfloat16 and made.attributes["rotation"] == "learned"


# Learning


LENGTH = 64


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, torch.Tensor, list[Sample]]:
    """A tiny Llama that knows some Python, rows that nothing was made from, and text to calibrate with.

    Its feed-forwards' inner channels have scales of their own, as a grid of a whole row dislikes; it says the same.
    """
    folder = tmp_path_factory.mktemp("trained")
    source = tiny_causal_lm(folder)
    network = load_model(source, dtype="float32", trainable=True).train()
    pages = Path(argparse.__file__).read_text(encoding="utf-8")
    ids = np.frombuffer(pages.encode("ascii", "ignore"), np.uint8).astype(np.int64)
    rows = torch.from_numpy(ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH))
    generator = torch.Generator().manual_seed(1)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(200):
        batch = rows[320:][torch.randint(len(rows) - 320, (16,), generator=generator)]
        optimizer.zero_grad()
        network(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    with torch.no_grad():
        for block in network.model.layers:
            scales = torch.exp(torch.randn(128, generator=generator))
            block.mlp.up_proj.weight *= scales[:, None]
            block.mlp.down_proj.weight /= scales
    network.eval().save_pretrained(folder)
    return Model.from_dir("hf", folder, source.attributes), rows[:64], samples(rows[64:320])


def loss(model: Model, rows: torch.Tensor) -> float:
    with torch.inference_mode():
        return float(load_model(model, dtype="float32")(input_ids=rows, labels=rows).loss)


def test_rounding_costs_less_than_after_quarots_rotation(
    trained: tuple[Model, torch.Tensor, list[Sample]], tmp_path: Path
) -> None:
    source, unseen, calibration = trained
    context = make_context(tmp_path / "spun", accelerator=CPU, data={"text": calibration})
    learned = run_pass(
        "SpinQuant",
        source,
        tmp_path / "spun",
        context=context,
        data_config="text",
        w_symmetric=True,
        training_args={"gradient_accumulation_steps": 1},
    )
    rotated = run_pass("QuaRot", source, tmp_path / "rotated")
    cost = {}
    for name, model in (("learned", learned), ("rotated", rotated)):
        rounded = run_pass("Rtn", model, tmp_path / f"{name}4", bits=4, group_size=-1, sym=True)
        cost[name] = loss(rounded, unseen) - loss(source, unseen)
    assert loss(learned, unseen) == pytest.approx(loss(source, unseen), abs=1e-4)
    assert cost["learned"] < 0.75 * cost["rotated"], cost
    told = context.report["learning"]
    assert told["kept"] == "learned" and told["steps"] == 56
    assert told["sequences"] == {"learned_from": 224, "judged_on": 32}
    assert told["loss"]["float"] < told["loss"]["learned"] < told["loss"]["begun_with"]
    assert [point["step"] for point in told["curve"]] == [1, 10, 20, 30, 40, 50, 56]


def test_rotations_are_learned_for_rounded_inputs_too(
    trained: tuple[Model, torch.Tensor, list[Sample]], tmp_path: Path
) -> None:
    source, _, calibration = trained
    context = make_context(tmp_path / "job", accelerator=CPU, data={"text": calibration})
    run_pass(
        "SpinQuant",
        source,
        tmp_path / "job",
        context=context,
        data_config="text",
        w_bits=16,
        a_bits=3,
        a_symmetric=False,
        training_args={"num_train_epochs": 3, "gradient_accumulation_steps": 1},
    )
    found = context.report["learning"]["loss"]
    assert found["learned"] < found["begun_with"] and found["float"] < found["begun_with"] - 0.1


def test_blocks_that_run_again_learn_the_same_and_half_precision_much_the_same(tmp_path: Path) -> None:
    source = decoder(tmp_path / "m", "Qwen2")
    told: dict[str, dict[str, Any]] = {}
    for name, more in (("plain", {}), ("again", {"gradient_checkpointing": True}), ("less", {"bf16": True})):
        told[name] = {}
        spun(source, tmp_path / name, told[name], a_bits=8, training_args={"max_steps": 3, "logging_steps": 1, **more})
    curves = {name: [point["loss"] for point in report["learning"]["curve"]] for name, report in told.items()}
    assert len(curves["plain"]) == 3 and curves["plain"][0] != curves["plain"][1]
    assert curves["again"] == pytest.approx(curves["plain"])
    assert curves["less"] == pytest.approx(curves["plain"], abs=0.05) and curves["less"] != curves["plain"]


def test_what_does_not_help_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = decoder(tmp_path / "m")
    report: dict[str, Any] = {}
    made = spun(source, tmp_path / "job", report, training_args={"learning_rate": 1e-30, "max_steps": 2})
    assert report["learning"]["kept"] == "begun with" and "those that learning began with" in caplog.text
    np.testing.assert_allclose(logits(made), logits(source), atol=1e-5 * float(np.abs(logits(source)).max()))


# What a stopped run leaves

ARGUMENTS = {"max_steps": 6, "logging_steps": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}


def test_a_cancelled_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    source = decoder(tmp_path / "m")
    reports: dict[str, dict[str, Any]] = {"whole": {}}
    whole = spun(source, tmp_path / "whole", reports["whole"], training_args=ARGUMENTS)
    seen: list[int] = []
    stopped = make_context(
        tmp_path / "stopped",
        accelerator=CPU,
        data={"text": text()},
        on_progress=lambda told: seen.append(told["done"]) if told["message"].startswith("learning") else None,
        is_cancelled=lambda: len(seen) >= 4,
    )
    with pytest.raises(Interrupted):
        run_pass("SpinQuant", source, tmp_path, context=stopped, data_config="text", training_args=ARGUMENTS)
    again = make_context(tmp_path / "again", accelerator=CPU, data={"text": text()})
    again.checkpoint_dir = stopped.checkpoint_dir
    made = run_pass("SpinQuant", source, tmp_path, context=again, data_config="text", training_args=ARGUMENTS)
    learning = again.report["learning"]
    assert learning["resumed_from"] == 4
    assert {**learning, "resumed_from": None} == reports["whole"]["learning"]
    assert made.digest == whole.digest


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_checkpoint_and_its_own_text(tmp_path: Path) -> None:
    source = decoder(tmp_path / "m")
    arguments = {**ARGUMENTS, "max_steps": 40, "save_strategy": "steps", "save_steps": 2}
    config = {"data_config": None, "nsamples": 8, "seqlen": 12, "training_args": arguments}
    whole = spun(source, tmp_path / "whole", **config)
    script = f"""
from pathlib import Path
from drupe.core.model import Model
from tests.plugins.quantization.test_spinquant import spun
folder = Path({str(source.folder)!r})
model = Model.from_dir("hf", folder, {dict(source.attributes)!r}).at(folder)
spun(model, Path({str(tmp_path / "killed")!r}), **{config!r})
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[3])
    kept = tmp_path / "killed" / "checkpoint"
    deadline = time.monotonic() + 120
    while not Checkpoints(kept / "learning").steps() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    phases: set[str] = set()
    again = make_context(tmp_path / "again", accelerator=CPU, on_progress=lambda told: phases.add(told["message"]))
    again.checkpoint_dir = kept
    made = run_pass("SpinQuant", source, tmp_path, context=again, **config)
    assert 0 < again.report["learning"]["resumed_from"] < 40
    assert "writing calibration text" not in phases
    assert made.digest == whole.digest


# What is refused


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"w_bits": 16}, "nothing is rounded and there is nothing to learn"),
        ({"w_bits": 3}, "4, 8 or 16"),
        ({"a_bits": 1}, "greater than or equal to 2"),
        ({"rotate_mode": "hadamar"}, "'hadamard' or 'random'"),
        ({"training_args": {"learning_rte": 1}}, "did you mean learning_rate"),
        ({"training_args": {"weight_decay": 0.1}}, "weight_decay: 0.1 can't be followed: .*Cayley SGD"),
        ({"training_args": {"optim": "adamw_torch"}}, "can't be followed"),
        ({"training_args": {"output_dir": "x"}}, "output_dir: 'x' can't be followed"),
    ],
)
def test_values_that_mean_nothing_are_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SpinQuantConfig.model_validate(values)


def test_arguments_of_older_files_are_read_and_what_has_no_effect_is_told(tmp_path: Path) -> None:
    arguments = {"warmup_ratio": 0.1, "output_dir": "x", "weight_decay": 0.0, "report_to": "none", "bf16": True}
    config = {"rotate_mode": "random", "a_bits": 8, "training_args": arguments}
    found = examined(tmp_path, "SpinQuant", config)
    assert not [fault for fault in found.faults if fault.kind != "needs"]
    assert [notice.path for notice in found.notices] == [
        "passes.p.training_args.output_dir",
        "passes.p.training_args.warmup_ratio",
    ]
    assert found.workflow is not None
    assert SpinQuantConfig.model_validate({"training_args": None}).training_args == RotationTrainingArgs()


@pytest.mark.parametrize(
    ("config", "idle"),
    [
        ({"w_bits": 16, "a_bits": 8, "w_group_size": 64, "w_symmetric": True}, ["w_group_size", "w_symmetric"]),
        ({"a_symmetric": False, "a_per_token": False}, ["a_symmetric", "a_per_token"]),
        ({"w_group_size": 64, "w_symmetric": True, "a_bits": 8, "a_per_token": False}, []),
    ],
)
def test_grids_of_what_is_not_rounded_are_told(tmp_path: Path, config: dict[str, Any], idle: list[str]) -> None:
    assert_idle(tmp_path, "SpinQuant", config, idle)


@pytest.mark.parametrize(
    ("kind", "config", "values", "message"),
    [
        ("Gemma2", {"head_dim": 16}, {}, "Gemma2ForCausalLM: model.layers.0 has norms elsewhere"),
        ("Mixtral", {"num_local_experts": 2}, {}, "MixtralForCausalLM: .*; expected a decoder"),
        ("Llama", {"head_dim": 6}, {}, "no Hadamard matrix of size 6 is known here; give rotate_mode: random"),
        (
            "Llama",
            {},
            {"w_group_size": 64},
            "groups of 64 do not divide the 96 columns of .*the largest that does is 32",
        ),
    ],
)
def test_what_can_not_be_rotated_is_told(
    tmp_path: Path, kind: str, config: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(DrupeError, match=message):
        spun(decoder(tmp_path / "m", kind, **config), tmp_path / "job", **values)


@pytest.mark.slow
@pytest.mark.real_run("SpinQuant")
def test_smollm2s_blocks_rounded_to_four_bits_keep_more_after_two_steps(smollm2_cut_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = Model.from_dir("hf", smollm2_cut_dir, {"task": "text-generation"})
    page = load_tokenizer(source)(pydoc.render_doc("argparse", renderer=pydoc.plaintext))["input_ids"]
    data = {"pages": samples(np.asarray(page[: 8 * 64]).reshape(8, 64))}
    context = make_context(tmp_path / "job", accelerator=CPU, data=data)
    made = run_pass(
        "SpinQuant",
        source,
        tmp_path / "job",
        context=context,
        data_config="pages",
        training_args={"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1},
    )
    # Nats a token on a page that was not learned from.
    told = context.report["learning"]["loss"]
    assert context.report["largest_change"] < 1e-4
    assert told["learned"] - told["float"] < 0.8 * (told["begun_with"] - told["float"]), told
    # Merged and rounded for good, it is what was judged.
    network = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32).eval()
    for name, module in network.named_modules():
        if "_proj" in name:
            scheme = Scheme(4, module.in_features, symmetric=False)
            module.weight.data = round_layer(module.weight.data, scheme, search=False).weights()
    judge = torch.tensor([page[7 * 64 : 8 * 64]])
    with torch.inference_mode():
        assert float(network(input_ids=judge, labels=judge).loss) == pytest.approx(told["learned"], abs=0.02)
