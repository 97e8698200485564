"""The tuning passes: what they hand out loads in peft and transformers, and merging gives the same model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model

from .conftest import make_pass, run_pass, sample

Make = Callable[..., JobContext]
FAST = {"learning_rate": 0.05, "max_steps": 8}

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("LoRA", {}),
    ("LoRA", {"use_rslora": True, "lora_dropout": 0.1}),
    ("LoRA", {"init_lora_weights": "pissa"}),
    ("LoRA", {"init_lora_weights": "olora", "use_rslora": True}),
    ("LoRA", {"target_modules": ["q_proj", "embed_tokens"]}),
    ("LoRA", {"modules_to_save": ["lm_head"]}),
    ("LoRA", {"target_modules": ".*layers.0.*proj", "rank_pattern": {"q_proj": 8}}),
    ("DoRA", {}),
    ("LoftQ", {}),
    ("LoHa", {}),
    ("LoKr", {}),
    ("QLoRA", {}),
    ("QLoRA", {"quant_type": "fp4", "double_quant": True}),
]


def logits(model: Any) -> Any:
    ids = torch.tensor([list(b"aaa="), list(b"bbbb")])
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def load_outside(model: Model, adapter: bool) -> Any:
    """Load with transformers and peft alone, as a user without Drupe would."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model.folder, local_files_only=True, dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(model.folder / "adapter")) if adapter else base


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "config"), METHODS, ids=lambda value: str(value))
def test_adapters_load_in_peft_and_merge_to_the_same_model(
    name: str, config: dict[str, Any], tiny: Model, make_context: Make
) -> None:
    context = make_context()
    tuned = run_pass(name, tiny, context, training_args=FAST, **config)
    assert tuned.attributes["adapter"] == "adapter"
    assert tiny.files.items() <= tuned.files.items()
    assert set(tuned.files) - set(tiny.files) == {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    losses = [step["loss"] for step in context.report["curves"]["steps"]]
    assert losses[-1] < losses[0]
    with_adapter = logits(load_outside(tuned, adapter=True))
    assert not torch.allclose(with_adapter, logits(load_outside(tiny, adapter=False)), atol=1e-3)
    merged = run_pass("MergeAdapterWeights", tuned, make_context())
    assert "adapter" not in merged.attributes
    assert not any(file.startswith("adapter") for file in merged.files)
    assert merged.files["tokenizer.json"] == tiny.files["tokenizer.json"]
    torch.testing.assert_close(logits(load_outside(merged, adapter=False)), with_adapter, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["LoRA", "QLoRA"])
def test_the_trained_loss_is_the_loss_of_what_is_handed_out(name: str, tiny: Model, make_context: Make) -> None:
    """An adapter for another base than the one beside it would show here."""
    context = make_context()
    tuned = run_pass(name, tiny, context, eval_dataset_size=0.2, training_args={**FAST, "max_steps": 12})
    told = context.report["curves"]["evaluations"][-1]["loss"]
    again = make_context()
    run_pass(
        "LoRA",
        run_pass("MergeAdapterWeights", tuned, make_context()),
        again,
        eval_dataset_size=0.2,
        training_args={"max_steps": 1, "eval_on_start": True, "learning_rate": 1e-6},
    )
    measured = again.report["curves"]["evaluations"][0]["loss"]
    # A QLoRA adapter was trained beside the rounded base, so it fits the float base nearly, not exactly.
    assert measured == pytest.approx(told, rel=1e-4 if name == "LoRA" else 0.1)


def test_what_changes_the_base_is_handed_out_for_the_unchanged_base(tiny: Model, make_context: Make) -> None:
    tuned = run_pass("LoRA", tiny, make_context(), init_lora_weights="pissa", alpha=8, training_args=FAST)
    written = json.loads((tuned.folder / "adapter/adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["init_lora_weights"]) == (8, 16, True)
    tensors = load_file(tuned.folder / "adapter/adapter_model.safetensors")
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {8}


def test_alpha_is_written_as_it_was_given(tiny: Model, make_context: Make) -> None:
    tuned = run_pass("LoRA", tiny, make_context(), alpha=64)
    text = (tuned.folder / "adapter/adapter_config.json").read_text()
    written = json.loads(text)
    assert written["lora_alpha"] == 64
    assert written["base_model_name_or_path"] == ""
    assert str(tiny.folder) not in text
    assert sorted(file for file in tuned.files if file.startswith("adapter/")) == [
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    ]


def test_equal_seeds_give_equal_files_and_others_give_others(tiny: Model, make_context: Make) -> None:
    args = {"lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj", "o_proj"]}
    first = run_pass("LoRA", tiny, make_context(seed=5), **args)
    assert run_pass("LoRA", tiny, make_context(seed=5), **args).digest == first.digest
    assert run_pass("LoRA", tiny, make_context(seed=6), **args).digest != first.digest
    assert run_pass("LoRA", tiny, make_context(seed=6), training_args={"seed": 5}, **args).digest == first.digest


def test_accumulation_and_larger_batches_are_the_same_training(tiny: Model, make_context: Make) -> None:
    losses = []
    for batch, accumulation in ((8, 1), (2, 4)):
        context = make_context()
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        run_pass("LoRA", tiny, context, training_args={**FAST, **sizes})
        losses.append([step["loss"] for step in context.report["curves"]["steps"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_recomputing_activations_changes_nothing(tiny: Model, make_context: Make) -> None:
    losses = []
    for recompute in (False, True):
        context = make_context()
        run_pass("LoRA", tiny, context, training_args={**FAST, "gradient_checkpointing": recompute})
        losses.append([step["loss"] for step in context.report["curves"]["steps"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_target_that_matches_nothing_lists_the_modules_there_are(tiny: Model, make_context: Make) -> None:
    with pytest.raises(
        ConfigError, match=r"'q_prj' matches no module of LlamaForCausalLM.*q_proj.*did you mean q_proj"
    ):
        run_pass("LoRA", tiny, make_context(), target_modules=["q_prj"])
    with pytest.raises(ConfigError, match=r"'\.\*nothing' matches no module.*down_proj, gate_proj"):
        run_pass("LoRA", tiny, make_context(), target_modules=".*nothing")
    with pytest.raises(ConfigError, match=r"'mlp' is a LlamaMLP, which takes no adapter"):
        run_pass("LoRA", tiny, make_context(), target_modules=["mlp"])
    with pytest.raises(ConfigError, match="no regular expression"):
        run_pass("LoRA", tiny, make_context(), target_modules="(")


def test_a_rank_above_the_width_is_refused(tiny: Model, make_context: Make) -> None:
    with pytest.raises(ConfigError, match=r"rank 40 is above the width 32 of .*k_proj.*at most 32"):
        run_pass("LoRA", tiny, make_context(), r=40)


def test_rows_longer_than_the_context_are_cut_and_told(
    tiny: Model, make_context: Make, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [sample(0, "a=", "1"), sample(1, "a" * 20, "1" * 500)]
    context = make_context({"toy": rows})
    with caplog.at_level("WARNING"):
        run_pass("LoRA", tiny, context)
    assert "1 of 2 rows were longer than 512 tokens; 9 tokens were cut" in caplog.text
    assert context.report["tuning"]["rows"]["train"]["cut_tokens"] == 9


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_needs_a_gpu_says_so_where_there_is_none(tiny: Model, make_context: Make) -> None:
    with pytest.raises(ConfigError, match=r"paged_adamw_8bit needs a CUDA GPU and no GPU is visible"):
        run_pass("QLoRA", tiny, make_context(), training_args={"optim": "paged_adamw_8bit"})
    with pytest.raises(ConfigError, match=r"use_liger_kernel needs a CUDA GPU"):
        run_pass("LoRA", tiny, make_context(), training_args={"use_liger_kernel": True})
    context = make_context()
    run_pass("QLoRA", tiny, context, training_args={"optim": "paged_adamw_32bit"})
    assert "pages a GPU's memory" in context.report["tuning"]["notes"][0]


@pytest.mark.parametrize(
    ("name", "attributes", "message"),
    [
        ("LoRA", {"adapter": "adapter"}, "has an adapter already; put MergeAdapterWeights before it"),
        ("LoRA", {"quantization": "gptq"}, r"the model is quantized \(gptq\); tune first"),
        ("LoRA", {"task": "text-classification"}, "trains text-generation models"),
        ("MergeAdapterWeights", {}, "has no adapter; put LoRA"),
        ("MergeAdapterWeights", {"adapter": "adapter", "quantization": "awq"}, "merge before quantizing"),
    ],
)
def test_a_chain_that_cannot_work_is_refused_before_work_starts(
    name: str, attributes: dict[str, Any], message: str, tiny: Model
) -> None:
    from drupe.core.accelerators import Accelerator
    from drupe.core.model import ModelInfo

    with pytest.raises(ConfigError, match=message):
        make_pass(name).plan(ModelInfo("hf", attributes), None, Accelerator())


def test_several_adapters_lie_side_by_side_and_one_is_merged(tiny: Model, make_context: Make) -> None:
    first = run_pass("LoRA", tiny, make_context(), adapter_name="one", training_args=FAST)
    both = run_pass("LoRA", first, make_context(), adapter_name="two", training_args={**FAST, "seed": 7})
    assert both.attributes["adapters"] == {"one": "adapters/one", "two": "adapters/two"}
    assert both.attributes["adapter"] == "adapters/two"
    assert first.files.items() <= both.files.items()
    # Each is trained on the bare base: the first one, alone or beside another, is the same.
    alone = run_pass("LoRA", tiny, make_context(), training_args={**FAST, "seed": 7})
    name = "adapter_model.safetensors"
    assert both.files[f"adapters/two/{name}"] == alone.files[f"adapter/{name}"]
    merged = [run_pass("MergeAdapterWeights", both, make_context(), adapter_name=n) for n in ("one", "two", None)]
    assert merged[1].digest == merged[2].digest != merged[0].digest
    lone = run_pass("MergeAdapterWeights", alone, make_context())
    assert merged[2].files == lone.files
    assert not merged[0].attributes.keys() & {"adapter", "adapters"}
    assert not any(file.startswith("adapter") for file in merged[0].files)


def test_adapters_that_clash_are_refused(tiny: Model, make_context: Make) -> None:
    named = run_pass("LoRA", tiny, make_context(), adapter_name="one", training_args=FAST)
    plain = run_pass("LoRA", tiny, make_context(), training_args=FAST)
    for model, config, what in (
        (named, {"adapter_name": "one"}, "has an adapter 'one' already"),
        (named, {}, "give both passes an adapter_name"),
        (plain, {"adapter_name": "two"}, "give both passes an adapter_name"),
    ):
        with pytest.raises(ConfigError, match=what):
            run_pass("LoRA", model, make_context(), training_args=FAST, **config)
    with pytest.raises(ConfigError, match="no adapter 'two'; there are one"):
        run_pass("MergeAdapterWeights", named, make_context(), adapter_name="two")
    with pytest.raises(ConfigError, match="its adapter has no name"):
        run_pass("MergeAdapterWeights", plain, make_context(), adapter_name="two")
