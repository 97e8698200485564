"""Metrics on real models, tiny ones, through the runtimes that workflows use."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.accelerators import Accelerator
from drupe.core.data import Sample
from drupe.core.model import Model
from drupe.core.registry import Registry
from drupe.core.runtimes import Runtime, Session
from tests.plugins.metrics.sessions import configured, context, metric, questions


def opened(name: str, model: Model) -> Session:
    runtime: Runtime = Registry.discover().create("drupe_runtimes", name)
    session = runtime.open(model, Accelerator(), runtime.options(Accelerator(), {"threads": 1}))
    session.capabilities = tuple(runtime.capabilities(model))
    return session


@pytest.fixture(scope="module")
def llama(tiny_llama_dir: Path) -> Model:
    return Model.from_dir("hf", tiny_llama_dir, {"task": "text-generation"})


@pytest.fixture
def talker(llama: Model) -> Iterator[Session]:
    with opened("hf", llama) as session:
        yield session


def values(name: str, model: Model, session: Session, samples: Any, folder: Path, **config: Any) -> dict[str, float]:
    made = metric(name)
    checked = configured(made, **config)
    surroundings = context(folder, reference_session=session)
    rows = list(made.measure(model, session, samples, checked, surroundings).values())
    return {sub: made.aggregate(rows, sub, checked) for sub in made.sub_types if sub not in ("speedup", "auroc")}


def test_perplexity_is_what_the_model_itself_computes(llama: Model, talker: Session, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    text = "the tone of a phrase"
    ids = talker.tokenize(text)
    with torch.no_grad():
        batch = torch.from_numpy(ids)[None]
        loss = AutoModelForCausalLM.from_pretrained(llama.folder)(input_ids=batch, labels=batch).loss.item()
    got = values("perplexity", llama, talker, [Sample("t", {"text": text})], tmp_path)
    assert got["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)


def test_what_a_model_generates_is_exactly_right_and_nothing_else_is(
    llama: Model, talker: Session, tmp_path: Path
) -> None:
    from drupe.core.runtimes import GenerateOptions

    prompt = "Phrase: hello\nTone:"
    said = str(talker.generate(prompt, GenerateOptions(max_new_tokens=4)).outputs["text"])
    options = {"method": "generate", "max_new_tokens": 4, "stop": [], "ignore_case": False}
    right = values("accuracy", llama, talker, questions([(prompt, said or "?")]), tmp_path, **options)
    wrong = values("accuracy", llama, talker, questions([(prompt, said + "x")]), tmp_path, **options)
    assert (right["accuracy_score"], wrong["accuracy_score"]) == (1.0 if said.strip() else 0.0, 0.0)


def test_choice_prefers_the_label_that_the_model_scores_higher(llama: Model, talker: Session, tmp_path: Path) -> None:
    samples = questions([("Tone:", " joy"), ("Tone:", " sad")])
    got = values("accuracy", llama, talker, samples, tmp_path, method="choice")
    assert got["accuracy_score"] == 0.5  # the same prompt gets the same answer


def test_timings_are_positive_and_the_first_token_comes_first(llama: Model, talker: Session, tmp_path: Path) -> None:
    samples = questions([("Tone:", " joy")])
    options = {"warmup_num": 1, "repeat_test_num": 3, "max_new_tokens": 4}
    latency = values("latency", llama, talker, samples, tmp_path, **options)
    assert 0 < latency["ttft_p50"] <= latency["p50"] <= latency["p99"] < 5000
    throughput = values("throughput", llama, talker, samples, tmp_path, **options)
    assert throughput["avg"] == pytest.approx(4000 / latency["avg"], rel=3)


def test_a_model_does_not_differ_from_itself(llama: Model, talker: Session, tmp_path: Path) -> None:
    samples = [Sample("t", {"input_ids": talker.tokenize("hello there")})]
    got = values("discrepancy", llama, talker, samples, tmp_path, batch_size=2)
    assert got == pytest.approx({"max_error": 0.0, "mean_error": 0.0, "cosine": 1.0, "flips": 0.0}, abs=1e-6)


def test_a_classifier_is_judged_by_its_logits(tiny_bert_dir: Path, tmp_path: Path) -> None:
    model = Model.from_dir("hf", tiny_bert_dir, {"task": "text-classification"})
    with opened("hf", model) as session:
        texts = [session.tokenize(text) for text in ("joy", "a longer text", "no")]
        predictions = []
        for ids in texts:
            batch = {"input_ids": ids[None], "attention_mask": np.ones((1, len(ids)), np.int64)}
            predictions.append(int(session.forward(batch).outputs["logits"][0].argmax()))
        samples = [
            Sample(str(i), {"input_ids": ids}, label)
            for i, (ids, label) in enumerate(zip(texts, predictions, strict=True))
        ]
        # Padded into one batch, the shorter texts must give what they gave alone.
        assert values("accuracy", model, session, samples, tmp_path, batch_size=3)["accuracy_score"] == 1.0
        flipped = [Sample(s.id, s.inputs, 1 - s.target) for s in samples]
        assert values("accuracy", model, session, flipped, tmp_path, batch_size=3)["accuracy_score"] == 0.0


@pytest.fixture
def mlp(tmp_path: Path) -> Model:
    """x (batch, 4) → logits (batch, 3): each logit is one of the first three inputs."""
    from onnx import TensorProto, helper, numpy_helper, save

    folder = tmp_path / "mlp"
    folder.mkdir()
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "w")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), folder / "model.onnx")
    return Model.from_dir("onnx", folder)


def test_an_onnx_classifier_gets_every_metric_that_a_forward_call_serves(mlp: Model, tmp_path: Path) -> None:
    samples = [Sample(str(i), {"x": np.eye(4)[i % 3]}, (i % 3) if i < 9 else (i + 1) % 3) for i in range(12)]
    with opened("onnx", mlp) as session:
        made = metric("accuracy")
        config = configured(made, batch_size=5, metric_config={"average": "macro"})
        rows = list(made.measure(mlp, session, samples, config, context(tmp_path)).values())
        assert made.aggregate(rows, "accuracy_score", configured(made)) == 0.75
        assert made.aggregate(rows, "f1_score", config) == pytest.approx(0.75)
        assert 0.7 < made.aggregate(rows, "auroc", config) < 1.0
        timing = {"warmup_num": 1, "repeat_test_num": 5, "batch_size": 4}
        assert 0 < values("latency", mlp, session, (), tmp_path, **timing)["p50"] < 1000
        assert values("throughput", mlp, session, samples, tmp_path, **timing)["avg"] > 4
        assert values("discrepancy", mlp, session, (), tmp_path)["max_error"] == 0.0
    size = (mlp.folder / "model.onnx").stat().st_size
    assert values("size_on_disk", mlp, session, (), tmp_path)["bytes"] == size
    surroundings = context(tmp_path)
    surroundings.model_sessions = lambda: opened("onnx", mlp)
    memory = metric("peak_memory")
    rows = list(memory.measure(mlp, None, samples, configured(memory), surroundings).values())
    assert memory.aggregate(rows, "peak", configured(memory)) >= memory.aggregate(rows, "open", configured(memory))
