"""OnnxConversion knows the inputs of models that are neither decoders nor encoders of text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.model import Model
from drupe.plugins.huggingface.hf_model import HfConfig, HfKind
from drupe.plugins.huggingface.loading import load_model
from drupe.plugins.huggingface.plugin import drupe_model_kinds
from drupe.plugins.onnx.examples import example_inputs
from drupe.testing import make_context
from tests.plugins.onnx.graphs import answers, proto_of, run_pass

TRACED = {"use_dynamo_exporter": False, "target_opset": 17}
T5 = {"vocab_size": 100, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "pad_token_id": 0}
BART = {
    "vocab_size": 100, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64,
    "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip
SOUND = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "conv_dim": [8, 8],
    "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "vocab_size": 20,
}  # fmt: skip


def imported(folder: Path, name: str, config: dict[str, Any], **told: Any) -> Model:
    """A model of random weights as a user's workflow reads it: no task is told."""
    import torch
    import transformers

    kind = getattr(transformers, name)
    torch.manual_seed(0)
    kind(kind.config_class(**config)).save_pretrained(folder / "model")
    context = make_context(folder / "import")
    read = HfConfig.model_validate({"model_path": str(folder / "model"), **told})
    return HfKind(drupe_model_kinds()[0]).load(read, {"model": folder / "model"}, context).at(context.output_dir)


def texts(rows: int, length: int, **more: Any) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(3, 100, (rows, length))
    mask = np.ones_like(ids)
    ids[:, -1] = 2
    ids[1, -4:], mask[1, -4:], ids[1, -5] = 0, 0, 2
    return {"input_ids": ids, "attention_mask": mask, **more}


def test_dynamic_shapes_name_axes_of_hugging_face_models_too() -> None:
    shapes = {"input_ids": {"0": "batch", "1": ["length", 1, 64]}, "attention_mask": None}
    told = {"input_names": ["input_ids"], "input_shapes": [[1, 8]], "dynamic_shapes": shapes}
    inputs, axes = example_inputs(Model("hf", {}, {"io_config": told}), None, ["input_ids"])
    assert axes == {"input_ids": {0: "batch", 1: "length"}} and inputs["input_ids"].shape == (2, 8)


DECODED = np.random.default_rng(1).integers(3, 100, (3, 4))
CASES: list[tuple[str, dict[str, Any], dict[str, np.ndarray]]] = [
    ("T5ForConditionalGeneration", T5, texts(3, 11, decoder_input_ids=DECODED)),
    ("MarianMTModel", BART, texts(3, 11, decoder_input_ids=DECODED)),
    ("BartForSequenceClassification", BART, texts(3, 11)),
    ("Wav2Vec2ForCTC", SOUND, {"input_values": np.random.default_rng(2).normal(size=(3, 500)).astype(np.float32)}),
]


def check(source: Model, graph: Model, batch: dict[str, np.ndarray]) -> None:
    import torch

    with torch.inference_mode():
        wanted = load_model(source)(**{name: torch.from_numpy(value) for name, value in batch.items()}).logits.numpy()
    outputs = [output.name for output in proto_of(graph).graph.output]
    assert {value.name for value in proto_of(graph).graph.input} == set(batch)
    np.testing.assert_allclose(answers(graph, batch)[outputs.index("logits")], wanted, atol=1e-4)


@pytest.mark.parametrize(("name", "config", "batch"), CASES, ids=[case[0] for case in CASES])
def test_the_graph_says_what_the_model_says_at_other_lengths(
    name: str, config: dict[str, Any], batch: dict[str, np.ndarray], tmp_path: Path
) -> None:
    source = imported(tmp_path, name, config)
    check(source, run_pass("OnnxConversion", source, tmp_path / "graph", **TRACED), batch)


def test_a_tidied_encoder_and_decoder_still_load_and_say_the_same(tmp_path: Path) -> None:
    source = imported(tmp_path, "BartForConditionalGeneration", BART)
    graph = run_pass("OnnxConversion", source, tmp_path / "graph", **TRACED)
    check(source, run_pass("OnnxPeepholeOptimizer", graph, tmp_path / "tidy"), CASES[0][2])


@pytest.mark.slow
def test_where_torch_export_fails_the_older_exporter_does_the_work_and_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """T5's fused attention, which was asked for by name: in its plain form torch.export would write it."""
    name, config, batch = CASES[0]
    source = imported(tmp_path, name, config, load_kwargs={"attn_implementation": "sdpa"})
    check(source, run_pass("OnnxConversion", source, tmp_path / "graph"), batch)
    assert "the older exporter traces one call" in caplog.text
