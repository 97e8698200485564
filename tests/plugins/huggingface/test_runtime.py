"""The runtime hf: what sessions of transformers models give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, EvaluationError
from drupe.core.model import Model, ModelInfo
from drupe.core.runtimes import GenerateOptions, Session
from drupe.plugins.huggingface.loading import load_model
from drupe.plugins.huggingface.plugin import drupe_runtimes
from drupe.plugins.huggingface.runtime import TransformersRuntime

RUNTIME = TransformersRuntime(drupe_runtimes()[0])


def opened(folder: Path, task: str | None = None, **options: object) -> Session:
    attributes = {"task": task} if task else {}
    return RUNTIME.open(Model("hf", {}, attributes, path=folder), Accelerator(), {"threads": 1, **options})


def test_capabilities_follow_the_architecture() -> None:
    assert RUNTIME.capabilities(Model("hf", {}, {"architecture": "LlamaForCausalLM"})) == (
        "forward",
        "generate",
        "score",
    )
    assert RUNTIME.capabilities(Model("hf", {}, {"task": "text-classification"})) == ("forward",)


def test_quantized_checkpoints_need_their_own_libraries() -> None:
    needed = [
        RUNTIME.requirements(ModelInfo("hf", {"quantization": kind})) for kind in ("torchao", "compressed-tensors")
    ]
    assert needed == [("torchao>=0.18",), ("compressed-tensors>=0.19",)]
    assert (
        RUNTIME.requirements(ModelInfo("hf", {}))
        == RUNTIME.requirements(ModelInfo("hf", {"quantization": "olive"}))
        == ()
    )


def test_generate_is_what_transformers_generates(tiny_llama_dir: Path) -> None:
    import torch

    session = opened(tiny_llama_dir, "text-generation")
    prompt = session.tokenize("abc")
    given = session.generate("abc", GenerateOptions(max_new_tokens=12)).outputs
    reference = load_model(Model("hf", {}, {}, path=tiny_llama_dir)).generate(
        torch.tensor(prompt)[None], max_new_tokens=12, do_sample=False
    )[0, len(prompt) :]
    assert given["token_ids"].tolist() == reference.tolist()
    assert len(given["token_seconds"]) == len(given["token_ids"])
    assert (np.diff(given["token_seconds"]) > 0).all()


def test_a_stop_ends_and_cuts_the_text(tiny_llama_dir: Path) -> None:
    session = opened(tiny_llama_dir, "text-generation")
    text = session.generate("abc", GenerateOptions(max_new_tokens=12)).outputs["text"]
    stop = text[3]
    given = session.generate("abc", GenerateOptions(max_new_tokens=12, stop=(stop,))).outputs
    assert given["text"] == text[: text.index(stop)]
    assert len(given["token_ids"]) < 12


def test_sampling_repeats_with_its_seed_and_differs_between_seeds(tiny_llama_dir: Path) -> None:
    session = opened(tiny_llama_dir, "text-generation")

    def ids(seed: int) -> list[int]:
        options = GenerateOptions(max_new_tokens=16, temperature=1.5, top_p=0.95, seed=seed)
        return list(session.generate("abc", options).outputs["token_ids"])

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_score_is_the_log_probability_of_each_label(tiny_llama_dir: Path) -> None:
    session = opened(tiny_llama_dir, "text-generation")
    ids = session.tokenize("hello world")
    labels = np.where(np.arange(len(ids)) < 5, -100, ids)
    scored = session.score(ids, labels).outputs["logprobs"]
    assert np.isnan(scored[:5]).all()
    logits = session.forward({"input_ids": ids[None]}).outputs["logits"][0].astype(float)
    table = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [table[i - 1, ids[i]] for i in range(5, len(ids))]
    np.testing.assert_allclose(scored[5:], expected, atol=1e-5)


def test_the_first_position_is_never_scored(tiny_llama_dir: Path) -> None:
    session = opened(tiny_llama_dir, "text-generation")
    ids = session.tokenize("ab")
    assert np.isnan(session.score(ids, ids).outputs["logprobs"][0])


def test_forward_of_an_encoder_takes_what_it_says(tiny_bert_dir: Path) -> None:
    session = opened(tiny_bert_dir, "text-classification")
    shapes = session.input_shapes()
    assert set(shapes) == {"input_ids", "token_type_ids", "attention_mask"}
    batch = {name: np.ones((3, 7), dtype=kind) for name, (_, kind) in shapes.items()}
    assert session.forward(batch).outputs["logits"].shape == (3, 2)
    with pytest.raises(EvaluationError, match="takes no input 'pixels'"):
        session.forward({"pixels": np.ones((1, 1))})


def test_forward_takes_the_keys_and_values_of_earlier_tokens(tiny_llama_dir: Path) -> None:
    import torch

    session = opened(tiny_llama_dir, "text-generation")
    ids = session.tokenize("abcdef")[None]
    whole = session.forward({"input_ids": ids}).outputs["logits"]
    with torch.inference_mode():
        past = load_model(Model("hf", {}, {}, path=tiny_llama_dir))(torch.tensor(ids[:, :4]), use_cache=True)
    pairs = np.stack([np.stack([layer.keys, layer.values]) for layer in past.past_key_values.layers])
    for _ in range(2):
        rest = session.forward({"input_ids": ids[:, 4:], "past_key_values": pairs}).outputs["logits"]
        np.testing.assert_allclose(rest, whole[:, 4:], atol=1e-5)


def test_half_precision_comes_back_as_float32(tiny_llama_dir: Path) -> None:
    session = opened(tiny_llama_dir, "text-generation", dtype="bfloat16")
    assert session.forward({"input_ids": np.array([[1, 2]])}).outputs["logits"].dtype == np.float32


def test_a_text_that_brings_its_begin_token_gets_no_second_one(tiny_llama_dir: Path) -> None:
    session = opened(tiny_llama_dir, "text-generation")
    assert session.tokenize("<s>ab").tolist() == [256, *session.tokenize("ab").tolist()]


def test_unknown_options_and_absent_devices_are_told(tiny_llama_dir: Path) -> None:
    with pytest.raises(ConfigError, match="has no option 'thread'"):
        RUNTIME.options(Accelerator(), {"thread": 2})
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(EvaluationError, match="PyTorch sees none"):
            RUNTIME.open(Model("hf", {}, {}, path=tiny_llama_dir), Accelerator("gpu"), {})


def test_an_empty_prompt_is_told(tiny_llama_dir: Path) -> None:
    with pytest.raises(EvaluationError, match="no tokens"):
        opened(tiny_llama_dir, "text-generation").generate("", GenerateOptions())


@pytest.mark.slow
def test_a_real_model_answers(smollm2_dir: Path) -> None:
    session = opened(smollm2_dir, "text-generation")
    given = session.generate("The capital of France is", GenerateOptions(max_new_tokens=8, stop=("\n",))).outputs
    assert given["text"] == " Paris."
    ids = session.tokenize("The capital of France is Paris.")
    other = session.tokenize("The capital of France is Rome.")
    assert np.nansum(session.score(ids, ids).outputs["logprobs"]) > np.nansum(
        session.score(other, other).outputs["logprobs"]
    )
