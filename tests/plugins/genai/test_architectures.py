"""What the installed model builder makes of architectures: windows are kept, what it can't build is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.plugins.genai.model_builder import ModelBuilderConfig
from drupe.plugins.huggingface.loading import load_model
from tests.plugins.genai.test_model_builder import CPU, build, builder
from tests.plugins.onnx.graphs import run_pass
from tests.plugins.quantization.decoders import decoder

GEMMA3 = {
    "head_dim": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip


def said(folder: Path, ids: np.ndarray) -> np.ndarray:
    """Logits of a prompt and of two tokens behind it, by plain onnxruntime-genai."""
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=64, batch_size=1)
    generator = og.Generator(model, parameters)
    found = []
    for part in (ids[:-2], ids[-2:-1], ids[-1:]):
        generator.append_tokens(part[None].astype(np.int32))
        found.append(np.asarray(generator.get_output("logits"))[0])
    return np.concatenate(found)


LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("Mistral", {}),
        # Every other layer of these has no rotary embedding, and some slide.
        (
            "SmolLM3",
            {
                "no_rope_layers": [1, 0],
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"],
            },
        ),
        ("Phi3", {"max_position_embeddings": 64, "original_max_position_embeddings": 64}),
        ("Phi3", {"max_position_embeddings": 128, "original_max_position_embeddings": 64, "rope_parameters": LONG}),
        ("Gemma3", GEMMA3),
    ],
)
def test_attention_looks_no_further_back_than_the_models_window(
    kind: str, config: dict[str, Any], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = decoder(tmp_path / "model", kind, sliding_window=6, **config)
    ids = np.random.default_rng(0).integers(0, 250, 20)
    with torch.inference_mode():
        network = AutoModelForCausalLM.from_pretrained(source.folder)
        wanted = network(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    built = build(source, tmp_path / "job", precision="fp32")
    np.testing.assert_allclose(said(built.folder, ids), wanted, atol=1e-3 * abs(wanted).max())


def test_an_architecture_that_it_does_not_know_is_refused_before_work() -> None:
    with pytest.raises(ConfigError, match=r"builds no GPT2LMHeadModel; export .*text-generation-with-past.*Llama"):
        builder().plan(ModelInfo("hf", {"architecture": "GPT2LMHeadModel"}), ModelBuilderConfig(), CPU)


def test_an_architecture_that_it_builds_wrongly_is_refused_before_work() -> None:
    with pytest.raises(ConfigError, match=r"takes OLMo's norms.*other logits; export .*OnnxConversion"):
        builder().plan(ModelInfo("hf", {"architecture": "OlmoForCausalLM"}), ModelBuilderConfig(), CPU)


def test_what_it_trips_over_is_one_message(tmp_path: Path) -> None:
    long = decoder(tmp_path / "model", "Phi3", max_position_embeddings=128, original_max_position_embeddings=64)
    described = Model("hf", long.files, {**long.attributes, "architecture": "Phi3ForCausalLM"}, long.folder)
    with pytest.raises(PassError, match=r"builder failed on this float Phi3ForCausalLM \(KeyError.*OnnxConversion"):
        build(described, tmp_path / "job", precision="fp32")


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_fused_layer_with_zero_points_is_built_as_it_was_quantized(symmetric: bool, tmp_path: Path) -> None:
    import torch

    shape = {"max_position_embeddings": 64, "original_max_position_embeddings": 64, "sliding_window": None}
    source = decoder(tmp_path / "model", "Phi3", **shape)
    rounded = run_pass("Rtn", source, tmp_path / "rtn", group_size=32, sym=symmetric)
    built = build(rounded, tmp_path / "job", precision="int4", shared_embeddings=False, accuracy_level=1,
                  op_types_to_quantize=["MatMul"], nodes_to_exclude=["/lm_head/MatMul"])  # fmt: skip
    ids = np.random.default_rng(0).integers(0, 250, 12)
    with torch.inference_mode():
        wanted = load_model(rounded, dtype="float32")(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    np.testing.assert_allclose(said(built.folder, ids), wanted, atol=2e-3 * abs(wanted).max())
