"""Tuning on SmolLM2-135M: the passes learn, and what they hand out works outside Drupe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drupe.core.context import JobContext, Resources
from drupe.core.data import Sample
from drupe.core.digests import digest_of
from drupe.core.model import Model

from .conftest import run_pass

pytestmark = pytest.mark.slow
Make = Callable[..., JobContext]
TONE = Path(__file__).parents[3] / "examples" / "tone"
ARGS = {"per_device_train_batch_size": 16, "max_steps": 8, "learning_rate": 1e-3, "save_strategy": "no"}


@pytest.fixture(scope="module")
def phrases(smollm2_dir: Path) -> tuple[list[Sample], list[Sample]]:
    """Phrases to train on, and thirty others."""
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
    return result[30:], result[:30]


def accuracy(model: Any, held: list[Sample]) -> float:
    right = 0
    with torch.no_grad():
        for sample in held:
            labels: Any = sample.inputs["labels"]
            prompt = int((labels == -100).sum())
            ids = torch.from_numpy(sample.inputs["input_ids"][:prompt])[None]
            right += int(model(input_ids=ids).logits[0, -1].argmax()) == labels[prompt]
    return right / len(held)


@pytest.mark.parametrize("name", ["LoRA", "QLoRA"])
def test_a_short_training_learns_the_tones_and_the_merged_model_keeps_them(
    name: str, smollm2_dir: Path, phrases: tuple[list[Sample], list[Sample]], make_context: Make
) -> None:
    from transformers import AutoModelForCausalLM

    train, held = phrases
    base = Model.from_dir("hf", smollm2_dir, {"task": "text-generation"}).at(smollm2_dir)
    context = make_context({"toy": train, "held": held}, resources=Resources(cpus=1))
    tuned = run_pass(name, base, context, r=16, eval_data_config="held", training_args=ARGS)
    merged = run_pass("MergeAdapterWeights", tuned, make_context(resources=Resources(cpus=1)))
    loaded = AutoModelForCausalLM.from_pretrained(merged.folder, local_files_only=True).eval()
    assert accuracy(loaded, held) >= 0.6
    # The adapter of QLoRA was trained beside a rounded base: on the float one it must do as well.
    trained_beside = context.report["curves"]["evaluations"][-1]["loss"]
    losses = []
    with torch.no_grad():
        for sample in held:
            ids, labels = (torch.from_numpy(sample.inputs[key])[None] for key in ("input_ids", "labels"))
            losses.append(float(loaded(input_ids=ids, labels=labels).loss))
    assert np.mean(losses) <= trained_beside + 0.1
