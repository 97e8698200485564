"""Tuning on SmolLM2-135M: the passes learn, and what they hand out works outside Drupe."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drupe.core.context import JobContext, Resources
from drupe.core.data import Sample
from drupe.core.digests import digest_of
from drupe.core.model import Model
from tests.plugins.onnx import graphs
from tests.plugins.real_models import by_genai, by_transformers

from .conftest import run_pass

pytestmark = pytest.mark.slow
Make = Callable[..., JobContext]
TONE = Path(__file__).parents[3] / "examples" / "tone"
HELD = 20
FEW = {"target_modules": ["v_proj", "o_proj"]}
RANKS = {"ranks": [4, 16]}


@dataclass(frozen=True)
class Held:
    """Phrases that nothing is trained on, as one batch padded on the right, (phrases, length)."""

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, samples: list[Sample]) -> Held:
        length = max(len(sample.inputs["input_ids"]) for sample in samples)
        ids, labels = torch.zeros(len(samples), length, dtype=torch.long), torch.full((len(samples), length), -100)
        for row, sample in enumerate(samples):
            count = len(sample.inputs["input_ids"])
            ids[row, :count] = torch.from_numpy(sample.inputs["input_ids"])
            labels[row, :count] = torch.from_numpy(sample.inputs["labels"])
        return cls(ids, (ids != 0).long(), labels)

    def loss_and_accuracy(self, model: Any) -> tuple[float, float]:
        """The mean loss of a token of the answers, and the share of the phrases whose tone is told right."""
        with torch.inference_mode():
            out = model(input_ids=self.ids, attention_mask=self.mask, labels=self.labels)
        first = (self.labels != -100).int().argmax(1)
        rows = torch.arange(len(first))
        right = out.logits[rows, first - 1].argmax(-1) == self.labels[rows, first]
        return float(out.loss), float(right.float().mean())


@pytest.fixture(scope="module")
def phrases(smollm2_dir: Path) -> tuple[list[Sample], list[Sample]]:
    """Phrases to train on, and others."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    items = {}
    for file in sorted(TONE.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            items[item["phrase"]] = item["tone"]
    result = []
    for text in sorted(items, key=digest_of):
        prompt = tokenizer(f"Phrase: {text}\nTone:").input_ids
        answer = [*tokenizer(f" {items[text]}").input_ids, tokenizer.eos_token_id]
        ids, labels = np.array(prompt + answer), np.array([-100] * len(prompt) + answer)
        result.append(Sample(digest_of(text)[:8], {"input_ids": ids, "labels": labels}, items[text], digest_of(text)))
    return result[HELD:], result[:HELD]


def train(name: str, base: Model, context: JobContext, rate: float, steps: int = 5, **config: Any) -> Model:
    arguments = {"per_device_train_batch_size": 8, "max_steps": steps, "learning_rate": rate, "save_strategy": "no"}
    return run_pass(name, base, context, r=16, training_args=arguments, **config)


def plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()


def with_adapter(model: Model) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(plain(model.folder), str(model.folder / "adapter")).eval()


@pytest.mark.parametrize(
    ("name", "rate", "config", "most", "least"),
    [
        pytest.param("DoRA", 2e-3, {}, 0.7, 0.7, marks=pytest.mark.real_run("DoRA")),
        pytest.param("LoHa", 3e-2, FEW, 0.8, 0.55, marks=pytest.mark.real_run("LoHa")),
        pytest.param("LoKr", 3e-2, FEW, 0.85, 0.55, marks=pytest.mark.real_run("LoKr")),
        pytest.param("LoftQ", 2e-3, {}, 0.5, 0.75, marks=pytest.mark.real_run("LoftQ")),
        pytest.param("ElasticLoRA", 2e-3, RANKS, 1.3, 0.5, marks=pytest.mark.real_run("ElasticLoRA", "SelectRank")),
    ],
)
def test_a_short_training_tells_the_tones_of_other_phrases(
    name: str, rate: float, config: dict[str, Any], most: float, least: float, smollm2: Model,
    phrases: tuple[list[Sample], list[Sample]], make_context: Make,
) -> None:  # fmt: skip
    """The base itself has a loss of 9.6 and tells none of them."""
    rows, held = phrases
    tuned = train(name, smollm2, make_context({"toy": rows}, resources=Resources(cpus=2)), rate, **config)
    if name == "ElasticLoRA":
        tuned = run_pass("SelectRank", tuned, make_context(), rank=4)
    loss, accuracy = Held.of(held).loss_and_accuracy(with_adapter(tuned))
    assert loss < most and accuracy >= least, (loss, accuracy)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            "LoRA", marks=pytest.mark.real_run("LoRA", "MergeAdapterWeights", "ExtractAdapters", "ModelBuilder")
        ),
        pytest.param("QLoRA", marks=pytest.mark.real_run("QLoRA", "MergeAdapterWeights")),
    ],
)
def test_what_was_learned_is_kept_when_it_is_merged_or_set_apart(
    name: str, smollm2: Model, smollm2_says: np.ndarray, prose: np.ndarray,
    phrases: tuple[list[Sample], list[Sample]], make_context: Make, tmp_path: Path,
) -> None:  # fmt: skip
    rows, held = phrases
    judge = Held.of(held)
    context = make_context({"toy": rows, "held": held}, resources=Resources(cpus=2))
    told = {"eval_data_config": "held"} if name == "QLoRA" else {}
    tuned = train(name, smollm2, context, 2e-3, **told)
    merged = plain(run_pass("MergeAdapterWeights", tuned, make_context(resources=Resources(cpus=2))).folder)
    loss, accuracy = judge.loss_and_accuracy(merged)
    assert loss < 0.7 and accuracy >= 0.7, (loss, accuracy)
    if name == "QLoRA":
        # The adapter was trained beside a rounded base: on the float one it must do as well.
        assert loss <= context.report["curves"]["evaluations"][-1]["loss"] + 0.1
        return
    learned = by_transformers(with_adapter(tuned), prose)
    np.testing.assert_allclose(by_transformers(merged, prose), learned, atol=1e-3)
    assert np.abs(learned - smollm2_says).max() > 1
    # One graph serves with the adapter and without.
    built = graphs.run_pass("ModelBuilder", tuned, tmp_path / "a", precision="fp32", use_adapter=True)
    apart = graphs.run_pass("ExtractAdapters", built, tmp_path / "b")
    file = apart.folder / str(apart.attributes["constant_inputs"])
    np.testing.assert_allclose(by_genai(apart.folder, prose), smollm2_says, atol=2e-3)
    np.testing.assert_allclose(by_genai(apart.folder, prose, file), learned, atol=2e-3)
