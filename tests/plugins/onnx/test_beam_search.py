"""A model in parts, and InsertBeamSearch: one graph on plain onnxruntime generates what transformers does."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from pydantic import ValidationError

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, DrupeError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.huggingface.hf_model import HfConfig
from drupe.testing import make_context
from tests.plugins.onnx.graphs import CPU, run_pass, saved
from tests.support.vision import WORDS, digits, strokes, words
from tests.support.whisper import (
    COMPONENTS,
    LETTERS,
    SCRIPT,
    SECONDS,
    START,
    generated,
    only,
    search,
    tiny_whisper,
)

GPU = Accelerator("gpu", "CUDAExecutionProvider")


def source(folder: Path, weights: Path, script: Path = SCRIPT, **config: Any) -> Model:
    context = make_context(folder, accelerator=CPU, allow={"user-scripts"})
    kind = get_registry().create("drupe_model_kinds", "hf")
    read = HfConfig.model_validate(
        {"model_path": str(weights), "model_script": script.name, "components": COMPONENTS, **config}
    )
    made: Model = kind.load(read, {"model": weights, "script": script}, context)
    return made.at(context.output_dir)


def step(name: str, model: Model, folder: Path, **config: Any) -> Model:
    context = make_context(folder / name, accelerator=CPU, allow={"user-scripts"})
    return run_pass(name, model, folder, context=context, **config)


def sequences(model: Model, batch: dict[str, np.ndarray]) -> np.ndarray:
    """The first sequence of each row, by plain onnxruntime."""
    session = ort.InferenceSession(str(model.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    assert {item.name for item in session.get_inputs()} == set(batch)
    found: np.ndarray = session.run(["sequences"], batch)[0]
    return found[:, 0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("whisper") / "model")


@pytest.fixture(scope="module")
def parts(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("parts")
    return step("OnnxConversion", source(folder / "import", weights), folder, target_opset=17)


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 80, 100 * SECONDS)).astype(np.float32)


def test_parts_are_graphs_in_folders_of_their_names(parts: Model) -> None:
    assert parts.kind == "composite"
    assert [part["file"] for part in parts.attributes["components"]] == [
        "encoder_decoder_init/model.onnx",
        "decoder/model.onnx",
    ]
    first, later = (ort.InferenceSession(str(parts.folder / part["file"])) for part in parts.attributes["components"])
    assert [item.name for item in first.get_inputs()] == ["encoder_input_ids", "decoder_input_ids"]
    # The axes that the script calls by a number are of that length.
    assert first.get_outputs()[2].shape == ["batch", 2, "length", 16]
    assert later.get_inputs()[1].shape == ["batch", 2, "past", 16]
    # What the processor and the search need goes along.
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= set(parts.files)


def test_the_graph_generates_what_transformers_does(
    parts: Model, weights: Path, features: np.ndarray, tmp_path: Path
) -> None:
    made = step("InsertBeamSearch", parts, tmp_path)
    for beams in (1, 3):
        found = sequences(made, {"input_features": features, **search(beams)})
        assert len(np.unique(found)) > 3
        np.testing.assert_array_equal(found, generated(weights, features, beams))


def test_the_optional_inputs_and_repetition(parts: Model, weights: Path, features: np.ndarray, tmp_path: Path) -> None:
    import torch

    made = step(
        "InsertBeamSearch", parts, tmp_path, use_vocab_mask=True, use_forced_decoder_ids=True, no_repeat_ngram_size=2
    )
    prompt = np.array([[START, 260, 40]] * len(features), np.int32)
    given = search(2, vocab_mask=only(LETTERS), decoder_input_ids=prompt)
    found = sequences(made, {"input_features": features, **given})
    kept = [token for token in range(264) if token not in LETTERS]
    expected = generated(
        weights, features, 2, decoder_input_ids=torch.from_numpy(prompt).long(), suppress_tokens=kept,
        no_repeat_ngram_size=2,
    )  # fmt: skip
    np.testing.assert_array_equal(found, expected)
    assert np.isin(found[:, 3:], list(LETTERS)).all()
    pairs = [list(itertools.pairwise(row)) for row in found.tolist()]
    assert all(len(set(row)) == len(row) for row in pairs)


def test_every_input_that_can_be_asked_for_is_there_and_the_timestamps_are_known(parts: Model, tmp_path: Path) -> None:
    asked = ("vocab_mask", "prefix_vocab_mask", "logits_processor", "temperature")
    made = step("InsertBeamSearch", parts, tmp_path, **{f"use_{name}": True for name in asked})
    graph = onnx.load(made.folder / "model.onnx").graph
    assert [value.name for value in graph.input][7:] == list(asked)
    told = {attribute.name: attribute.i for attribute in graph.node[0].attribute}
    assert (told["translate_token_id"], told["beginning_timestamp_token_id"]) == (258, 262)
    session = ort.InferenceSession(str(made.folder / "model.onnx"))
    batch = {
        "input_features": np.zeros((1, 80, 100 * SECONDS), np.float32),
        **search(2, vocab_mask=only(range(264)), prefix_vocab_mask=only(LETTERS)[None]),
        "logits_processor": np.array([0], np.int32),
        "temperature": np.array([0.7], np.float32),
    }
    assert session.run(None, batch)[0][0, 0, 1] in LETTERS


def test_weights_of_both_graphs_are_kept_once(parts: Model, tmp_path: Path) -> None:
    before = sum((parts.folder / part["file"]).stat().st_size for part in parts.attributes["components"])
    made = step("InsertBeamSearch", parts, tmp_path)
    after = (made.folder / "model.onnx").stat().st_size
    decoder = (parts.folder / "decoder" / "model.onnx").stat().st_size
    assert after < before - decoder / 3


def test_fused_and_quantized_parts_still_generate(parts: Model, features: np.ndarray, tmp_path: Path) -> None:
    fused = step(
        "OrtTransformersOptimization", parts, tmp_path, optimization_options={"use_multi_head_attention": True}
    )
    plain = sequences(step("InsertBeamSearch", parts, tmp_path / "plain"), {"input_features": features, **search(2)})
    made = step("InsertBeamSearch", fused, tmp_path / "fused")
    np.testing.assert_array_equal(sequences(made, {"input_features": features, **search(2)}), plain)
    small = step("OnnxDynamicQuantization", fused, tmp_path, op_types_to_quantize=["MatMul", "Gather"])
    assert small.kind == "composite" and small.attributes["quantization"] == "int8-dynamic"
    made = step("InsertBeamSearch", small, tmp_path / "small")
    found = sequences(made, {"input_features": features, **search(2)})
    assert found.shape == plain.shape and (found == plain).mean() > 0.4


def test_half_precision_is_for_gpus(parts: Model, tmp_path: Path) -> None:
    half = step("OnnxFloatToFloat16", parts, tmp_path)
    with pytest.raises(ConfigError, match="no beam search of half precision for CPUs"):
        step("InsertBeamSearch", half, tmp_path)
    subject = get_registry().create("drupe_passes", "InsertBeamSearch")
    context = make_context(tmp_path / "gpu", accelerator=GPU)
    made = subject(half, type(subject).Config(), context)
    graph = onnx.load(context.output_dir / "model.onnx").graph
    assert made.kind == "onnx" and [node.op_type for node in graph.node] == ["Cast"] * 3 + ["WhisperBeamSearch"]
    with pytest.raises(ConfigError, match="fp16 is False, but the graphs are float16"):
        subject(half, type(subject).Config(fp16=False), make_context(tmp_path / "other", accelerator=GPU))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_gpu": True}, "use_gpu is for GPUs; the target's device is cpu"),
        ({"fp16": True}, "half precision for CPUs"),
    ],
)
def test_what_the_target_can_not_do_is_told_before_work(config: dict[str, Any], message: str) -> None:
    subject = get_registry().create("drupe_passes", "InsertBeamSearch")
    with pytest.raises(ConfigError, match=message):
        subject.plan(ModelInfo("composite", {}), type(subject).Config.model_validate(config), CPU)


def test_a_tokenizer_without_the_tokens_has_no_timestamps(parts: Model, tmp_path: Path) -> None:
    shutil.copytree(parts.folder, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    bare = Model.from_dir("composite", tmp_path / "bare", parts.attributes)
    step("InsertBeamSearch", bare, tmp_path / "without")
    with pytest.raises(ConfigError, match=r"tokenizer lacks <\|translate\|>"):
        step("InsertBeamSearch", bare, tmp_path, use_logits_processor=True)


def test_graphs_that_are_no_encoder_and_decoder_are_told(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    plain (float[n, 4] x) => (float[n, 4] y) { y = Relu (x) }"""
    for name in ("a", "b"):
        saved(tmp_path / "model" / name, text)
    files = [{"name": name, "file": f"{name}/model.onnx"} for name in ("a", "b")]
    model = Model.from_dir("composite", tmp_path / "model", {"components": files})
    with pytest.raises(ConfigError, match="the decoder gives no present_key_self_0; it gives y"):
        step("InsertBeamSearch", model, tmp_path)


# The script


def test_components_need_their_script_and_names() -> None:
    def errors(**config: Any) -> str:
        with pytest.raises(ValidationError) as caught:
            HfConfig.model_validate({"model_path": "x", **config})
        return str(caught.value)

    assert "first_io of encoder_decoder_init are functions of a model_script; none is named" in errors(
        components=COMPONENTS
    )
    twice = [COMPONENTS[0], COMPONENTS[0]]
    assert "the name 'encoder_decoder_init' occurs twice" in errors(components=twice, model_script="s.py")
    bare = [{"name": "whole", "component_func": "first_part"}]
    assert "whole tells no example inputs: give dummy_inputs_func" in errors(components=bare, model_script="s.py")
    misspelt = [{"name": "whole", "io_config": {"input_names": ["x"], "input_shapes": [[1]], "dynamic_axis": {}}}]
    assert "unknown key 'dynamic_axis'" in errors(components=misspelt, model_script="s.py")


def test_a_script_runs_with_consent_only_and_what_it_gives_is_checked(weights: Path, tmp_path: Path) -> None:
    script = tmp_path / "odd.py"
    script.write_text(SCRIPT.read_text() + "\n\ndef odd(path):\n    return 7\n")
    entry = {**COMPONENTS[0], "component_func": "odd"}
    model = source(tmp_path / "import", weights, script, components=[entry])
    subject = get_registry().create("drupe_passes", "OnnxConversion")
    config = type(subject).Config(target_opset=17)
    with pytest.raises(DrupeError, match="--allow user-scripts"):
        subject(model, config, make_context(tmp_path / "no", accelerator=CPU))
    allowed = make_context(tmp_path / "yes", accelerator=CPU, allow={"user-scripts"})
    with pytest.raises(ConfigError, match="odd, which builds the component encoder_decoder_init, gave int"):
        subject(model, config, allowed)


# Text


def test_text_to_text_generates_what_transformers_does(tmp_path: Path) -> None:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    shape = T5Config(
        vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_decoder_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = T5ForConditionalGeneration(shape).eval()
        torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(tmp_path / "model")
    loaded = source(tmp_path / "import", tmp_path / "model", SCRIPT.with_name("text_parts.py"))
    assert loaded.attributes["task"] == "text2text-generation"
    parts = step("OnnxConversion", loaded, tmp_path, target_opset=17)
    with pytest.raises(ConfigError, match="use_temperature: only for Whisper"):
        step("InsertBeamSearch", parts, tmp_path / "odd", use_temperature=True)
    made = step("InsertBeamSearch", parts, tmp_path, no_repeat_ngram_size=2)
    ids = np.random.default_rng(0).integers(2, 64, (3, 9)).astype(np.int32)
    # A shorter row: what fills it up is not looked at.
    ids[1, 6:] = 0
    mask = (ids != 0).astype(np.int32)
    found = sequences(made, {"input_ids": ids, "attention_mask": mask, **search(3, 12)})
    expected = model.generate(
        torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long(), num_beams=3, max_length=12,
        early_stopping=True, do_sample=False, no_repeat_ngram_size=2,
    ).numpy()  # fmt: skip
    assert len(np.unique(expected)) > 5
    np.testing.assert_array_equal(found, np.pad(expected, ((0, 0), (0, 12 - expected.shape[1]))))


@pytest.mark.slow
@pytest.mark.real_run("OnnxConversion", "InsertBeamSearch")
def test_a_trained_reader_spells_digits_as_transformers_does(digits_reader_dir: Path, tmp_path: Path) -> None:
    import torch
    from transformers import T5ForConditionalGeneration

    pictures, classes = digits()
    ids, mask = strokes(pictures[-60:])
    loaded = source(tmp_path / "import", digits_reader_dir, SCRIPT.with_name("text_parts.py"))
    parts = step("OnnxConversion", loaded, tmp_path, target_opset=17)
    made = step("InsertBeamSearch", parts, tmp_path)
    model = T5ForConditionalGeneration.from_pretrained(digits_reader_dir).eval()
    for beams in (1, 4):
        found = sequences(made, {"input_ids": ids, "attention_mask": mask, **search(beams, 8)})
        expected = model.generate(
            torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long(), num_beams=beams, max_length=8,
            early_stopping=beams > 1, do_sample=False,
        ).numpy()  # fmt: skip
        # ONNX Runtime leaves the end token out and pads.
        expected[expected == model.config.eos_token_id] = 0
        np.testing.assert_array_equal(found, np.pad(expected, ((0, 0), (0, 8 - expected.shape[1]))))
        right = [said == WORDS[digit] for said, digit in zip(words(found[:, 1:]), classes[-60:], strict=True)]
        assert np.mean(right) > 0.6


def test_an_adapter_is_merged_before(weights: Path) -> None:
    subject = get_registry().create("drupe_passes", "OnnxConversion")
    info = ModelInfo("hf", {"components": COMPONENTS, "adapter": "adapter"})
    with pytest.raises(ConfigError, match="put MergeAdapterWeights before it"):
        subject.plan(info, type(subject).Config(), CPU)
