"""AutoRound through the library: its numbers are taken over whole, and lose less than rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drupe.core.data import Sample
from drupe.core.model import Model
from drupe.plugins.huggingface.loading import load_model
from drupe.plugins.quantization.checkpoint import quantized_layers
from drupe.testing import PassContract, make_context, tiny_causal_lm
from tests.plugins.onnx.graphs import CPU, run_pass

pytest.importorskip("auto_round")
pytestmark = pytest.mark.slow


def text(count: int = 8, length: int = 32) -> list[Sample]:
    random = np.random.default_rng(7)
    return [Sample(f"s{n}", {"input_ids": random.integers(0, 250, length)}, content_key=f"k{n}") for n in range(count)]


def decoder(folder: Path) -> Model:
    return tiny_causal_lm(folder, hidden_size=128, num_attention_heads=4, num_hidden_layers=1)


class TestAutoRound(PassContract):
    name = "AutoRound"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return decoder(tmp_path / "model")

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"data_config": "text", "group_size": 32, "iters": 1, "seqlen": 16, "batch_size": 2, "nsamples": 4}

    @pytest.fixture
    def data(self) -> dict[str, Any]:
        return {"text": text()}


@pytest.mark.parametrize("sym", [True, False])
def test_numbers_are_taken_over_and_the_head_is_rounded(tmp_path: Path, sym: bool) -> None:
    import onnxruntime_genai as og

    source = decoder(tmp_path / "m")
    context = make_context(tmp_path / "job", accelerator=CPU, data={"text": text()})
    config = {"group_size": 32, "iters": 20, "seqlen": 32, "sym": sym, "data_config": "text", "lm_head": True}
    overrides = {"model.layers.0.mlp.up_proj": {"bits": 8}}
    result = run_pass("AutoRound", source, tmp_path, context=context, overrides=overrides, **config)
    layers = quantized_layers(result.folder)
    assert layers["model.layers.0.mlp.up_proj"].bits == 8
    assert layers["model.layers.0.mlp.down_proj"].bits == 4 and layers["lm_head"].bits == 4
    assert all((layer.zero is None) == (sym or layer.bits == 8) for layer in layers.values())
    ids = torch.arange(30, 60)[None]
    with torch.inference_mode():
        before, after = (load_model(model, dtype="float32")(input_ids=ids).logits for model in (source, result))
    assert torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0) > 0.97
    built = run_pass("ModelBuilder", result, tmp_path / "b", precision="int4", shared_embeddings=False)
    og.Model(str(built.folder))
