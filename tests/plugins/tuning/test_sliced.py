"""Tuning after SliceGPT: the adapter fits the sliced base, and merging makes a sliced model that plain torch loads."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drupe.core.context import JobContext, Resources
from drupe.core.data import Sample
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.testing import make_context as make_plain_context
from tests.plugins.onnx import graphs

from .conftest import make_pass, run_pass
from .test_methods import FAST, logits

Make = Callable[..., JobContext]

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("LoRA", {}),
    ("LoRA", {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}),
    ("LoRA", {"init_lora_weights": "pissa"}),
    ("DoRA", {}),
    ("LoftQ", {}),
    ("LoKr", {}),
    ("QLoRA", {"double_quant": True}),
]


@pytest.fixture(scope="module")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tiny Llama, its states cut by a quarter."""
    from drupe.testing import tiny_causal_lm

    folder = tmp_path_factory.mktemp("sliced")
    rows = [Sample(f"s{n}", {"input_ids": np.arange(n, n + 40) % 250}, content_key=f"k{n}") for n in range(8)]
    context = make_plain_context(folder / "job", accelerator=graphs.CPU, data={"text": rows})
    source = tiny_causal_lm(folder / "model")
    # A width that divides nothing: 51 of 64.
    values = {"calibration_data_config": "text", "sparsity": 0.2, "round_interval": 1}
    return graphs.run_pass("SliceGPT", source, folder, context=context, **values)


def load_outside(model: Model, adapter: bool = False) -> Any:
    """Load with the file beside the model, and peft, as a user without Drupe would."""
    from peft import PeftModel

    found = importlib.util.spec_from_file_location("sliced_decoder_copy", model.folder / "sliced_decoder.py")
    assert found is not None and found.loader is not None
    loader = importlib.util.module_from_spec(found)
    found.loader.exec_module(loader)
    base = loader.load(model.folder)
    return PeftModel.from_pretrained(base, str(model.folder / "adapter")) if adapter else base


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "config"), METHODS, ids=str)
def test_adapters_fit_the_sliced_base_and_merge_to_a_sliced_model(
    name: str, config: dict[str, Any], sliced: Model, make_context: Make
) -> None:
    context = make_context()
    tuned = run_pass(name, sliced, context, training_args=FAST, **config)
    assert tuned.kind == "sliced" and sliced.files.items() <= tuned.files.items()
    losses = [step["loss"] for step in context.report["curves"]["steps"]]
    assert losses[-1] < losses[0]
    # The blocks are known as layers: memory and time are forecast, and rows are packed.
    assert context.report["tuning"]["forecast"] and context.report["tuning"]["packed"]
    with_adapter = logits(load_outside(tuned, adapter=True))
    assert not torch.allclose(with_adapter, logits(load_outside(sliced)), atol=1e-3)
    merged = run_pass("MergeAdapterWeights", tuned, make_context())
    assert merged.kind == "sliced" and set(merged.files) == set(sliced.files)
    assert merged.files["sliced.safetensors"] != sliced.files["sliced.safetensors"]
    torch.testing.assert_close(logits(load_outside(merged)), with_adapter, rtol=1e-3, atol=1e-3)


def test_the_four_bit_base_is_what_qlora_trains_on(sliced: Model) -> None:
    qlora = make_pass("QLoRA")
    config = qlora.Config(train_data_config="toy")
    base = qlora.load(sliced, config, torch.device("cpu"), "float32")  # type: ignore[attr-defined]
    kinds = {name.rpartition(".")[2]: type(module).__name__ for name, module in base.named_modules()}
    assert kinds["q_proj"] == kinds["down_proj"] == "Linear4bit" and kinds["lm_head"] == "Linear"
    packed = base.model.layers[0].mlp.down_proj.weight
    assert packed.dtype == torch.uint8 and packed.numel() < 48 * 96


def test_merged_weights_have_the_type_that_is_asked_for(sliced: Model, make_context: Make) -> None:
    tuned = run_pass("LoRA", sliced, make_context())
    merged = run_pass("MergeAdapterWeights", tuned, make_context(), torch_dtype="bfloat16")
    assert load_outside(merged).dtype == torch.bfloat16 and merged.attributes["dtype"] == "bfloat16"
    assert "bfloat16" in (merged.folder / "config.json").read_text(encoding="utf-8")


def test_an_elastic_adapter_is_cut(sliced: Model, make_context: Make) -> None:
    tuned = run_pass("ElasticLoRA", sliced, make_context(), r=4, ranks=[2, 4])
    cut = run_pass("SelectRank", tuned, make_context(), rank=2)
    merged = run_pass("MergeAdapterWeights", cut, make_context())
    torch.testing.assert_close(logits(load_outside(merged)), logits(load_outside(cut, True)), rtol=1e-3, atol=1e-3)


def test_fused_layers_of_whole_models_are_refused_before_work() -> None:
    lora = make_pass("LoRA")
    config = lora.Config(train_data_config="toy", training_args={"use_liger_kernel": True})
    with pytest.raises(ConfigError, match="no layers for sliced models; leave it out"):
        lora.plan(ModelInfo("sliced", {"task": "text-generation"}), config, graphs.CPU)


@pytest.mark.slow
@pytest.mark.full
def test_smollm2_wins_back_what_slicing_took(smollm2_dir: Path, tmp_path: Path, make_context: Make) -> None:
    import pydoc

    from drupe.core.registry import get_registry
    from drupe.plugins.huggingface.loading import load_tokenizer

    source = Model.from_dir("hf", smollm2_dir, {"task": "text-generation"})
    pages = [
        np.asarray(load_tokenizer(source)(pydoc.render_doc(name, renderer=pydoc.plaintext))["input_ids"])
        for name in ("argparse", "logging", "zipfile")
    ]
    rows = np.concatenate([page[: len(page) // 256 * 256].reshape(-1, 256) for page in pages[:2]])
    unseen = pages[2][:256]
    data = [Sample(f"p{n}", {"input_ids": row, "labels": row}, content_key=f"k{n}") for n, row in enumerate(rows[:12])]
    context = make_plain_context(tmp_path / "job", accelerator=graphs.CPU, data={"pages": data[:8]})
    values = {"calibration_data_config": "pages", "sparsity": 0.35}
    cut = graphs.run_pass("SliceGPT", source, tmp_path / "job", context=context, **values)
    args = {"per_device_train_batch_size": 2, "max_steps": 6, "learning_rate": 1e-3, "save_strategy": "no"}
    tuned = run_pass(
        "LoRA", cut, make_context({"toy": data}, resources=Resources(cpus=1)), r=16, alpha=32, training_args=args
    )
    merged = run_pass("MergeAdapterWeights", tuned, make_context(resources=Resources(cpus=1)))
    runtime = get_registry().create("drupe_runtimes", "hf")
    losses = []
    for model in (source, cut, merged):
        with runtime.open(model, graphs.CPU, {}) as session:
            losses.append(-float(session.score(unseen, unseen).outputs["logprobs"][1:].mean()))

    assert losses[2] < losses[1] - 0.1, losses
