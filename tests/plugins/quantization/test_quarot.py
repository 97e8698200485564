"""QuaRot: a rotated decoder says what its source says, and its weights have no outliers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.plugins.quantization.checkpoint import float_state
from drupe.plugins.quantization.hadamard import hadamard, rotation
from drupe.testing import PassContract, tiny_causal_lm
from tests.plugins.onnx.graphs import run_pass
from tests.plugins.quantization.decoders import decoder, logits


class TestQuaRot(PassContract):
    name = "QuaRot"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_causal_lm(tmp_path / "model")


@pytest.mark.parametrize("size", [1, 2, 12, 20, 28, 36, 64, 96, 576, 896])
def test_hadamards_rows_are_orthogonal_and_of_ones(size: int) -> None:
    matrix = hadamard(size)
    assert bool((matrix.abs() == 1).all())
    assert torch.equal(matrix @ matrix.T, size * torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["hadamard", "random"])
def test_rotations_are_orthogonal_and_of_their_seed(mode: str) -> None:
    one, again, other = (rotation(24, mode, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    torch.testing.assert_close(one @ one.T, torch.eye(24, dtype=torch.float64))
    assert torch.equal(one, again) and not torch.equal(one, other)
    with pytest.raises(ValueError, match="no Hadamard matrix of size 6"):
        hadamard(6)


@pytest.mark.parametrize(
    ("kind", "mode", "config"),
    [
        ("Llama", "hadamard", {"tie_word_embeddings": True}),
        ("Llama", "random", {"attention_bias": True, "mlp_bias": True}),
        ("Qwen2", "hadamard", {}),
        ("Qwen3", "hadamard", {"head_dim": 32}),
        ("Phi3", "hadamard", {}),
        ("Gemma", "random", {"head_dim": 16}),
    ],
)
def test_the_logits_stay_and_the_weights_turn(tmp_path: Path, kind: str, mode: str, config: dict[str, Any]) -> None:
    source = decoder(tmp_path / "m", kind, **config)
    turned = run_pass("QuaRot", source, tmp_path / "job", rotate_mode=mode)
    np.testing.assert_allclose(logits(turned), logits(source), atol=2e-4 * float(np.abs(logits(source)).max()))
    before, after = (float_state(model.folder) for model in (source, turned))
    name = "model.layers.0.self_attn.o_proj.weight"
    assert not torch.allclose(before[name], after[name], atol=1e-2)
    assert "lm_head.weight" in after


def test_outliers_are_spread(tmp_path: Path) -> None:
    source = decoder(tmp_path / "m")
    from safetensors.torch import load_file, save_file

    state = load_file(source.folder / "model.safetensors")
    for name, tensor in state.items():
        if "layernorm" in name:
            tensor[::16] *= 20
    save_file(state, source.folder / "model.safetensors", {"format": "pt"})
    # The gains go into the layers, where a few columns are then large.
    source = Model.from_dir("hf", source.folder, source.attributes)
    turned = run_pass("QuaRot", source, tmp_path / "a", seed=1)
    flat = {n: t for n, t in float_state(turned.folder).items() if "q_proj" in n or "up_proj" in n}
    assert all(float(t.abs().max() / t.square().mean().sqrt()) < 6 for t in flat.values())
    again = run_pass("QuaRot", source, tmp_path / "b", seed=2)
    assert not torch.equal(float_state(again.folder)["lm_head.weight"], float_state(turned.folder)["lm_head.weight"])


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("Llama", {"hidden_size": 56, "num_attention_heads": 4, "head_dim": 6}, "no Hadamard matrix of size 6"),
        ("Gemma2", {"head_dim": 16}, "has pre_feedforward_layernorm; blocks that can be rotated"),
        ("Phi", {}, r"has no post_attention_layernorm; blocks|is no RMS norm"),
    ],
)
def test_what_can_not_be_rotated_is_told(tmp_path: Path, kind: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_pass("QuaRot", decoder(tmp_path / "m", kind, **config), tmp_path / "job")
