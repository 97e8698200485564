"""AutoAWQQuantizer: scaling alone changes nothing, and with it outputs change less than by rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from drupe.core.data import Sample
from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.plugins.huggingface.loading import load_model
from drupe.plugins.quantization.awq import AutoAWQQuantizerConfig
from drupe.plugins.quantization.checkpoint import float_state, quantized_layers
from drupe.testing import PassContract, make_context, tiny_causal_lm
from tests.plugins.onnx.graphs import CPU, cosine, run_pass

NAME = "AutoAWQQuantizer"
IDS = np.random.default_rng(3).integers(0, 250, 40)


def text(count: int = 8, length: int = 24) -> list[Sample]:
    random = np.random.default_rng(7)
    return [Sample(f"s{n}", {"input_ids": random.integers(0, 250, length)}, content_key=f"k{n}") for n in range(count)]


def decoder(folder: Path, **config: Any) -> Model:
    """A decoder whose norms give some channels a large size, as real ones do."""
    from safetensors.torch import load_file, save_file

    made = tiny_causal_lm(folder, **{"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4, **config})
    state = load_file(folder / "model.safetensors")
    for name, tensor in state.items():
        if name.endswith("layernorm.weight"):
            tensor[::16] *= 12
        elif "proj" in name:
            tensor *= 4
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return Model.from_dir("hf", folder, made.attributes)


def run(model: Model, folder: Path, name: str = NAME, **config: Any) -> Model:
    data = {"data_config": "text"} if name == NAME else {}
    context = make_context(folder, accelerator=CPU, data={"text": text()})
    return run_pass(name, model, folder, context=context, **{"group_size": 32, **data, **config})


def logits(model: Model) -> np.ndarray:
    network = load_model(model, dtype="float32")
    with torch.inference_mode():
        found: np.ndarray = network(torch.as_tensor(IDS)[None]).logits.numpy()
    return found


class TestAutoAWQQuantizer(PassContract):
    name = NAME

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_causal_lm(tmp_path / "model")

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"data_config": "text", "q_group_size": 32, "w_bit": 4, "zero_point": True}

    @pytest.fixture
    def data(self) -> dict[str, Any]:
        return {"text": text()}


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("heads", [2, 4])
def test_answers_change_less_than_by_rounding(tmp_path: Path, sym: bool, heads: int) -> None:
    source = decoder(tmp_path / "m", num_key_value_heads=heads)
    wanted = logits(source)
    scaled = run(source, tmp_path / "awq", sym=sym)
    rounded = run(source, tmp_path / "rtn", "Rtn", sym=sym)
    errors = [float(np.square(logits(model) - wanted).mean()) for model in (scaled, rounded)]
    assert errors[0] < 0.8 * errors[1]
    layers = quantized_layers(scaled.folder)
    assert len(layers) == 14 and all((layer.zero is None) == sym for layer in layers.values())


def test_scaling_alone_changes_nothing_and_every_layer_that_can_be_is_scaled(tmp_path: Path) -> None:
    source = decoder(tmp_path / "m")
    context = make_context(tmp_path / "job", accelerator=CPU, data={"text": text()})
    exact = run_pass(NAME, source, tmp_path, context=context, data_config="text", bits=8, group_size=16)
    assert context.report["scaled"] == {"layers": 14, "left_as_they_were": []}
    norms = [float_state(model.folder)["model.layers.0.input_layernorm.weight"] for model in (source, exact)]
    assert not torch.allclose(norms[0], norms[1], rtol=0.1)
    assert cosine(logits(exact), logits(source)) > 0.999


def test_a_norm_that_can_not_be_scaled_is_left_and_told(tmp_path: Path) -> None:
    from transformers import GemmaConfig, GemmaForCausalLM

    plain = tiny_causal_lm(tmp_path / "plain")
    config = GemmaConfig(
        vocab_size=264, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32,
    )  # fmt: skip
    torch.manual_seed(0)
    GemmaForCausalLM(config).save_pretrained(plain.folder)
    source = Model.from_dir("hf", plain.folder, {"task": "text-generation", "architecture": "GemmaForCausalLM"})
    context = make_context(tmp_path / "job", accelerator=CPU, data={"text": text()})
    result = run_pass(NAME, source, tmp_path, context=context, data_config="text", bits=8, group_size=32)
    # Its norms multiply by 1 + weight.
    assert "model.layers.0.mlp.gate_proj" in context.report["scaled"]["left_as_they_were"]
    assert cosine(logits(result), logits(source)) > 0.999


def test_model_builder_takes_the_numbers_over(tmp_path: Path) -> None:
    quantized = run(decoder(tmp_path / "m"), tmp_path / "a", modules_to_not_convert=["o_proj"])
    assert not any("o_proj" in name for name in quantized_layers(quantized.folder))
    options = {"nodes_to_exclude": ["/lm_head/MatMul"], "shared_embeddings": False, "accuracy_level": 1}
    whole = run(decoder(tmp_path / "n"), tmp_path / "b")
    built = run_pass("ModelBuilder", whole, tmp_path / "c", precision="int4", **options)
    runtime = get_registry().create("drupe_runtimes", "genai")
    with runtime.open(built, CPU, {"threads": 1}) as session:
        scores = session.score(IDS, IDS).outputs["logprobs"][1:]
    expected = torch.log_softmax(torch.from_numpy(logits(whole)[0]), -1).numpy()
    np.testing.assert_allclose(scores, expected[np.arange(len(IDS) - 1), IDS[1:]], atol=5e-3)


def test_olives_names_are_read_and_clashes_told(tmp_path: Path) -> None:
    config = AutoAWQQuantizerConfig.model_validate({"w_bit": 8, "q_group_size": 64, "zero_point": False})
    assert (config.bits, config.group_size, config.sym) == (8, 64, True)
    with pytest.raises(ValidationError, match="w_bit and bits are the same option"):
        AutoAWQQuantizerConfig.model_validate({"w_bit": 8, "bits": 4})
    with pytest.raises(ConfigError, match="no layer has 'router' in its name"):
        run(tiny_causal_lm(tmp_path / "m"), tmp_path / "a", modules_to_not_convert=["router"])
