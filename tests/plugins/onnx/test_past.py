"""Decoders with past keys and values: plain onnxruntime, step by step, says what transformers' generate says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.core.runtimes import GenerateOptions
from drupe.plugins.metrics.batches import batches, made_up_batch
from drupe.plugins.metrics.timing import TimedMetricConfig
from drupe.plugins.onnx.past import past_names
from drupe.testing import make_context, tiny_causal_lm
from tests.plugins.onnx.graphs import run_pass

CPU = Accelerator("cpu", "CPUExecutionProvider")
EXPORTERS: list[dict[str, Any]] = [{}, {"use_dynamo_exporter": False, "target_opset": 17}]
OLDER = EXPORTERS[1]


def with_past(model: Model, **attributes: Any) -> Model:
    attributes = attributes or {"task": "text-generation-with-past"}
    return Model(model.kind, model.files, {**model.attributes, **attributes}, model.path)


def greedy(model: Model, prompt: np.ndarray, count: int) -> list[int]:
    """Generate with nothing but onnxruntime. prompt: (1, n)."""
    session = ort.InferenceSession(
        str(model.folder / model.attributes["onnx_file"]), providers=["CPUExecutionProvider"]
    )
    inputs = {item.name: item for item in session.get_inputs()}
    outputs = [item.name for item in session.get_outputs()]
    past = {
        name: np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)
        for name, item in inputs.items()
        if name.startswith("past_key_values.")
    }
    assert past
    ids, seen, found = prompt, 0, []
    for _ in range(count):
        seen += ids.shape[1]
        step = {"input_ids": ids, "attention_mask": np.ones((1, seen), np.int64)}
        if "position_ids" in inputs:
            step["position_ids"] = np.arange(seen - ids.shape[1], seen)[None]
        if "use_cache_branch" in inputs:
            step["use_cache_branch"] = np.array([seen > ids.shape[1] or ids.shape[1] == 1])
        given = dict(zip(outputs, session.run(None, {**step, **past}), strict=True))
        found.append(int(given["logits"][0, -1].argmax()))
        past = {name: given[name.replace("past_key_values", "present")] for name in past}
        ids = np.array([[found[-1]]])
    return found


def generated(model: Model, prompt: np.ndarray, count: int) -> list[int]:
    """What transformers' own generate says, without an end."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model.folder)
    ids = torch.from_numpy(prompt)
    out = loaded.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=count, max_new_tokens=count,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return [int(token) for token in out[0, prompt.shape[1] :]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_causal_lm(tmp_path_factory.mktemp("source"), initializer_range=0.3)


@pytest.fixture(scope="module", params=EXPORTERS, ids=["torch.export", "tracing"])
def graph(request: pytest.FixtureRequest, source: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return run_pass("OnnxConversion", with_past(source), tmp_path_factory.mktemp("graph"), **request.param)


def test_a_llama_steps_as_generate_does(source: Model, graph: Model) -> None:
    prompt = np.random.default_rng(0).integers(0, 250, (1, 9))
    expected = generated(source, prompt, 24)
    assert len(set(expected)) > 3
    assert greedy(graph, prompt, 24) == expected
    session = ort.InferenceSession(str(graph.folder / "model.onnx"))
    shapes = {item.name: list(item.shape) for item in (*session.get_inputs(), *session.get_outputs())}
    whole = "past_sequence_length + sequence_length"
    assert shapes["attention_mask"] == ["batch_size", whole]
    assert shapes["past_key_values.1.key"] == ["batch_size", 2, "past_sequence_length", 16]
    assert shapes["present.1.value"] == ["batch_size", 2, whole, 16]
    assert shapes["logits"] == ["batch_size", "sequence_length", 264]


def test_rows_of_different_lengths_are_padded_on_the_left(graph: Model) -> None:
    session = ort.InferenceSession(str(graph.folder / "model.onnx"))
    random = np.random.default_rng(1)
    short, long = random.integers(0, 250, 4), random.integers(0, 250, 7)
    mask = np.ones((2, 7), np.int64)
    mask[0, :3] = 0
    batch = {"input_ids": np.stack([np.concatenate([np.zeros(3, np.int64), short]), long]), "attention_mask": mask}
    batch["position_ids"] = np.maximum(mask.cumsum(1) - 1, 0)
    past = {i.name: np.zeros((2, 2, 0, 16), np.float32) for i in session.get_inputs() if i.name.startswith("past")}
    both = session.run(["logits"], {**batch, **past})[0]
    past = {name: value[:1] for name, value in past.items()}
    step = {"input_ids": short[None], "attention_mask": np.ones((1, 4), np.int64), "position_ids": np.arange(4)[None]}
    alone = session.run(["logits"], {**step, **past})[0]
    np.testing.assert_allclose(both[0, -1], alone[0, -1], atol=1e-4)


def test_the_runtime_generates_and_scores_as_the_source_does(source: Model, graph: Model) -> None:
    sessions = {}
    for kind, model in (("hf", source), ("onnx", graph)):
        runtime = get_registry().create("drupe_runtimes", kind)
        assert "generate" in runtime.capabilities(model)
        sessions[kind] = runtime.open(model, CPU, runtime.options(CPU, {"threads": 1}))
    options = GenerateOptions(max_new_tokens=12)
    ours, theirs = (sessions[kind].generate("What now?", options).outputs for kind in ("onnx", "hf"))
    assert ours["text"] == theirs["text"]
    assert ours["token_ids"].tolist() == theirs["token_ids"].tolist()
    assert len(ours["token_seconds"]) == len(ours["token_ids"])
    ids = np.random.default_rng(2).integers(0, 250, 20)
    scores = [sessions[kind].score(ids, ids).outputs["logprobs"] for kind in ("onnx", "hf")]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


def test_names_and_fewer_inputs_are_as_io_config_says(source: Model, tmp_path: Path) -> None:
    told = {
        "input_names": ["input_ids", "attention_mask"],
        "kv_cache": {"ort_past_key_name": "past_<id>_key", "ort_past_value_name": "past_<id>_value"},
    }
    graph = run_pass("OnnxConversion", with_past(source, io_config=told), tmp_path / "job", **OLDER)
    session = ort.InferenceSession(str(graph.folder / "model.onnx"))
    assert [item.name for item in session.get_inputs()] == [
        "input_ids", "attention_mask", "past_0_key", "past_0_value", "past_1_key", "past_1_value",
    ]  # fmt: skip
    assert graph.attributes["task"] == "text-generation-with-past"


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"kv_cache": {"ort_past_key": "x"}}, "unknown 'ort_past_key'"),
        ({"kv_cache": {"ort_past_key_name": "keys"}}, "no <id>"),
        ({"kv_cache": {"world_size": 2}}, "world_size is 2"),
        ({"kv_cache": {"batch_size": 0}}, "expected a number"),
        ({"input_names": ["input_ids", "past_key_values.0.key"]}, "none of them is a value"),
    ],
)
def test_settings_that_cannot_be_met_are_told_before_work(told: dict[str, Any], message: str) -> None:
    subject = get_registry().create("drupe_passes", "OnnxConversion")
    info = ModelInfo("hf", {"task": "text-generation", "io_config": told})
    with pytest.raises(ConfigError, match=message):
        subject.plan(info, type(subject).Config(), CPU)


def test_what_asks_for_past_keys_and_values() -> None:
    assert past_names("text-generation", None) is None
    assert past_names("text-generation-with-past", {"kv_cache": False}) is None
    assert past_names("text-generation-with-past", None) is not None
    assert past_names("text-generation", {"kv_cache": True}) is not None


def test_a_number_of_layers_that_the_model_lacks_is_told(source: Model, tmp_path: Path) -> None:
    told = with_past(source, io_config={"kv_cache": {"num_hidden_layers": 3}})
    with pytest.raises(ConfigError, match="3 layers; the model has 2"):
        run_pass("OnnxConversion", told, tmp_path / "job")


def test_made_up_batches_have_lengths_that_fit_together(graph: Model, tmp_path: Path) -> None:
    """Latency without data: the mask is as long as past and new tokens together."""
    runtime = get_registry().create("drupe_runtimes", "onnx")
    config = TimedMetricConfig.model_validate({"shape_kwargs": {"past_sequence_length": 5, "sequence_length": 3}})
    with runtime.open(graph, CPU, runtime.options(CPU, {"threads": 1})) as session:
        batch = made_up_batch(session, config, make_context(tmp_path / "job"), 0)
        assert batch.inputs["attention_mask"].shape == (1, 8)
        assert session.forward(batch.inputs).outputs["logits"].shape == (1, 3, 264)


def test_the_next_token_of_made_up_texts_can_be_measured(graph: Model, tmp_path: Path) -> None:
    """What TransformersTokenDummyDataContainer makes has the names and lengths of the graph's inputs."""
    container = get_registry().create("drupe_data_containers", "TransformersTokenDummyDataContainer")
    options = {"load_dataset_config": {"seq_len": 1, "past_seq_len": 6, "max_samples": 3}}
    context = make_context(tmp_path / "job")
    samples = list(container.load(type(container).Config.model_validate(options), graph, context))
    runtime = get_registry().create("drupe_runtimes", "onnx")
    config = TimedMetricConfig.model_validate({"batch_size": 3})
    with runtime.open(graph, CPU, runtime.options(CPU, {"threads": 1})) as session:
        (batch,) = batches(session, samples, config, context)
        assert batch.inputs["past_key_values.0.key"].shape == (3, 2, 6, 16)
        outputs = session.forward(batch.inputs).outputs
    assert outputs["logits"].shape == (3, 1, 264)
    assert outputs["present.1.value"].shape == (3, 2, 7, 16)


def test_fusions_and_int4_after_it_still_step(source: Model, tmp_path: Path) -> None:
    prompt = np.random.default_rng(3).integers(0, 250, (1, 6))
    graph = run_pass("OnnxConversion", with_past(source), tmp_path / "a", target_opset=17)
    fused = run_pass("OrtTransformersOptimization", graph, tmp_path / "b")
    assert greedy(fused, prompt, 16) == generated(source, prompt, 16)
    small = run_pass("OnnxBlockWiseRtnQuantization", fused, tmp_path / "c", block_size=32)
    dynamic = run_pass("OnnxDynamicQuantization", graph, tmp_path / "d")
    assert len(greedy(small, prompt, 8)) == len(greedy(dynamic, prompt, 8)) == 8


@pytest.mark.slow
@pytest.mark.full
def test_smollm2_steps_as_generate_does(smollm2_dir: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    source = Model.from_dir("hf", smollm2_dir, {"task": "text-generation-with-past"})
    graph = run_pass("OnnxConversion", source, tmp_path / "job", **OLDER)
    ids = Tokenizer.from_file(str(smollm2_dir / "tokenizer.json")).encode("The three laws of robotics are").ids
    prompt = np.array([ids])
    assert greedy(graph, prompt, 20) == generated(source, prompt, 20)
