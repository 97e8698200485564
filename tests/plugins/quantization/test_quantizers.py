"""Gptq, Rtn and SelectiveMixedPrecision: what they write is what ModelBuilder takes over, number for number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from drupe.core.data import Sample
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.huggingface.loading import load_model
from drupe.plugins.quantization.checkpoint import QuantizedLayer, float_state, packed, quantized_layers, unpacked
from drupe.plugins.quantization.gptq import GptqConfig, round_with_hessian
from drupe.plugins.quantization.grid import dequantize, fit, quantize
from drupe.plugins.quantization.layers import Scheme
from drupe.plugins.quantization.mixed_precision import SelectiveMixedPrecisionConfig
from drupe.plugins.quantization.rtn import RtnConfig, round_layer
from drupe.testing import PassContract, make_context, tiny_causal_lm
from tests.plugins.onnx.graphs import CPU, graph_file, run_pass
from tests.plugins.real_models import by_genai, by_transformers


def text(count: int = 6, length: int = 24) -> list[Sample]:
    random = np.random.default_rng(7)
    return [
        Sample(f"s{n}", {"input_ids": random.integers(0, 250, length - n)}, content_key=f"k{n}") for n in range(count)
    ]


def decoder(folder: Path, **config: Any) -> Model:
    return tiny_causal_lm(folder, **{"hidden_size": 128, "num_attention_heads": 4, **config})


def quantize_with(name: str, model: Model, folder: Path, **config: Any) -> Model:
    context = make_context(folder, accelerator=CPU, data={"text": text()})
    return run_pass(name, model, folder, context=context, **config)


class TestGptq(PassContract):
    name = "Gptq"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return decoder(tmp_path / "model")

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"data_config": "text", "group_size": 64}

    @pytest.fixture
    def data(self) -> dict[str, Any]:
        return {"text": text()}


class TestRtn(PassContract):
    name = "Rtn"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return decoder(tmp_path / "model")

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"group_size": 32}


class TestSelectiveMixedPrecision(PassContract):
    name = "SelectiveMixedPrecision"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return decoder(tmp_path / "model")


# The grid


@given(
    rows=st.integers(1, 4),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    seed=st.integers(0, 1000),
    offset=st.floats(-3, 3),
)
@settings(max_examples=40, deadline=None)
def test_rounding_is_within_a_step_and_a_search_never_loses(
    rows: int, bits: int, symmetric: bool, seed: int, offset: float
) -> None:
    weights = torch.randn(rows, 32, generator=torch.Generator().manual_seed(seed)) + offset
    errors = []
    for search in (False, True):
        scale, zero = fit(weights, bits, symmetric, search=search)
        q = quantize(weights, scale, zero, bits)
        assert q.min() >= 0 and q.max() < 2**bits
        rounded = dequantize(q, scale, zero)
        errors.append(float((rounded - weights).square().sum()))
        if not search and not symmetric:
            # The zero point is rounded as well, so the range may be off by half a step at either end.
            assert bool(((rounded - weights).abs() <= scale.abs() * 1.0001).all())
    assert errors[1] <= errors[0] * 1.0001


def test_numbers_on_the_grid_come_back_as_they_were() -> None:
    scale = torch.rand(5, 2, 1) + 0.1
    q = torch.randint(0, 16, (5, 2, 32)).float()
    q[..., 0], q[..., 1] = 0, 15
    weights = dequantize(q, scale, torch.full((5, 2, 1), 8.0))
    layer = round_layer(weights.reshape(5, 64), Scheme(4, 32, False), search=False)
    torch.testing.assert_close(layer.weights(), weights.reshape(5, 64), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_packing_is_undone_by_unpacking(bits: int, count: int) -> None:
    values = torch.randint(0, 2**bits, (3, count))
    assert unpacked(packed(values, bits), bits, count).tolist() == values.tolist()


# GPTQ's solver


@pytest.mark.parametrize("by_importance", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_outputs_change_less_than_by_rounding(by_importance: bool, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(128, 128, generator=generator)
    inputs = torch.randn(512, 128, generator=generator) @ mix * torch.linspace(0.1, 3, 128)
    weights = torch.randn(48, 128, generator=generator)
    scheme = Scheme(4, 32, symmetric)
    solved = round_with_hessian(
        "Gptq", "x", weights, inputs.T @ inputs, scheme, damp=0.01, by_importance=by_importance, search=True
    )
    rounded = round_layer(weights, scheme, search=True)

    def loss(layer: QuantizedLayer) -> float:
        return float((inputs @ (layer.weights() - weights).T).square().mean())

    # Taken in their own order, the columns that matter most come last here, when nothing is left to mend them.
    assert loss(solved) < (0.6 if by_importance else 0.8) * loss(rounded)


def test_columns_that_never_see_anything_do_no_harm() -> None:
    inputs = torch.randn(64, 32)
    inputs[:, 5] = 0
    layer = round_with_hessian(
        "Gptq",
        "x",
        torch.randn(4, 32),
        inputs.T @ inputs,
        Scheme(4, 32, False),
        damp=0.01,
        by_importance=True,
        search=True,
    )
    assert bool(torch.isfinite(layer.weights()).all())


# Checkpoints, and what ModelBuilder makes of them


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("Rtn", {"group_size": 32}),
        ("Rtn", {"group_size": 64, "sym": True, "bits": 8}),
        ("Gptq", {"group_size": 64, "data_config": "text"}),
        ("Gptq", {"group_size": 32, "sym": True, "data_config": "text", "desc_act": False}),
    ],
)
def test_model_builder_takes_the_numbers_over(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    quantized = quantize_with(name, decoder(tmp_path / "m"), tmp_path / "a", **config)
    assert quantized.attributes["quantization"] == "olive"
    options = {"nodes_to_exclude": ["/lm_head/MatMul"], "shared_embeddings": False, "accuracy_level": 1}
    precision = "int4" if config.get("bits", 4) == 4 else "int8"
    built = run_pass("ModelBuilder", quantized, tmp_path / "b", precision=precision, **options)
    nodes = [node for node in onnx.load(str(graph_file(built))).graph.node if node.op_type == "MatMulNBits"]
    read = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes]
    assert {(found["bits"], found["block_size"]) for found in read} == {(config.get("bits", 4), config["group_size"])}
    ids = np.arange(30, 50)
    expected = by_transformers(load_model(quantized, dtype="float32"), ids)
    np.testing.assert_allclose(by_genai(built.folder, ids), expected, atol=2e-3)


def test_a_head_has_bits_of_its_own(tmp_path: Path) -> None:
    import onnxruntime_genai as og

    source = decoder(tmp_path / "m", vocab_size=320)
    first = quantize_with("Rtn", source, tmp_path / "a", group_size=32, sym=True)
    second = quantize_with(
        "Rtn",
        first,
        tmp_path / "b",
        bits=8,
        group_size=32,
        sym=True,
        lm_head=True,
        embeds=True,
        overrides={"lm_head": {"bits": 8}},
    )
    layers = quantized_layers(second.folder)
    assert layers["lm_head"].bits == 8
    assert {layer.bits for name, layer in layers.items() if name != "lm_head"} == {4}
    told = json.loads((second.folder / "config.json").read_text())["quantization_config"]
    assert told["bits"] == 4 and told["overrides"] == {"lm_head": {"bits": 8, "group_size": 32, "symmetric": True}}
    kept = quantized_layers(first.folder)
    assert all(torch.equal(layers[name].q, layer.q) for name, layer in kept.items())
    built = run_pass("ModelBuilder", second, tmp_path / "c", precision="int4", shared_embeddings=False)
    og.Model(str(built.folder))


def test_the_chosen_layers_get_more_bits(tmp_path: Path) -> None:
    source = decoder(tmp_path / "m", num_hidden_layers=9)
    chosen = quantize_with("SelectiveMixedPrecision", source, tmp_path / "a", algorithm="k_quant_mixed")
    assert chosen.files == source.files
    mixed = chosen.attributes["mixed_precision"]
    # The first and last eighth, and every third between.
    numbers = sorted({int(name.split(".")[2]) for name in mixed if name.startswith("model.layers")})
    assert numbers == [0, 1, 3, 6, 8] and "model.layers.0.mlp.down_proj" in mixed and mixed["lm_head"] == 8
    quantized = quantize_with("Rtn", chosen, tmp_path / "b", group_size=32)
    layers = quantized_layers(quantized.folder)
    assert layers["model.layers.0.self_attn.v_proj"].bits == 8 and layers["model.layers.0.self_attn.q_proj"].bits == 4
    assert "mixed_precision" not in quantized.attributes and "lm_head" not in layers
    options = {"precision": "int4", "nodes_to_exclude": ["/lm_head/MatMul"], "accuracy_level": 1}
    built = run_pass("ModelBuilder", quantized, tmp_path / "c", shared_embeddings=False, **options)
    # Between layers whose projections differ lie some whose do not.
    ids = np.arange(30, 50)
    np.testing.assert_allclose(by_genai(built.folder, ids), by_transformers(load_model(quantized), ids), atol=2e-3)
    with pytest.raises(
        ConfigError, match=r"fuse_qkv is true, but the projections of model\.layers\.0\.self_attn differ"
    ):
        run_pass("ModelBuilder", quantized, tmp_path / "d", extra_options={"fuse_qkv": True}, **options)
    widths = {
        onnx.helper.get_attribute_value(attribute)
        for node in onnx.load(str(graph_file(built))).graph.node
        for attribute in node.attribute
        if node.op_type == "MatMulNBits" and attribute.name == "bits"
    }
    assert widths == {4, 8}


@pytest.mark.parametrize("coarse", ["model.layers.0.mlp.down_proj", "model.layers.0.self_attn.o_proj"])
def test_layers_are_chosen_by_what_their_rounding_breaks(tmp_path: Path, coarse: str) -> None:
    from safetensors.torch import save_file

    source = decoder(tmp_path / "m")
    state = {name: tensor * 4 if "proj" in name else tensor for name, tensor in float_state(source.folder).items()}
    # One outlier in each group makes the layer's 4-bit grid coarse, so it has most to win.
    state[f"{coarse}.weight"][:, ::32] *= 30
    save_file(state, source.folder / "model.safetensors", {"format": "pt"})
    changed = Model.from_dir("hf", source.folder, source.attributes)
    config = {"algorithm": "kld_gradient", "ratio": 0.1, "group_size": 32, "data_config": "text"}
    chosen = quantize_with("SelectiveMixedPrecision", changed, tmp_path / "a", **config)
    assert set(chosen.attributes["mixed_precision"]) == {"lm_head", coarse}


def test_without_data_the_model_writes_its_own_and_the_same_each_time(tmp_path: Path) -> None:
    source = decoder(tmp_path / "m")
    config = {"group_size": 32, "nsamples": 3, "seqlen": 12}
    results = [quantize_with("Gptq", source, tmp_path / place, **config) for place in ("a", "b")]
    assert results[0].files == results[1].files


# What is refused


def test_groups_that_do_not_fit_are_told_with_one_that_does(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"groups of 128 do not divide the 192 columns of .*; the largest that does is 64"
    ):
        quantize_with("Rtn", tiny_causal_lm(tmp_path / "m", hidden_size=192, num_attention_heads=4), tmp_path / "a")
    with pytest.raises(
        ConfigError,
        match=r"no linear layer 'model\.layers\.0\.mlp\.down'; did you mean 'model\.layers\.0\.mlp\.down_proj'",
    ):
        overrides = {"model.layers.0.mlp.down": {"bits": 8}}
        quantize_with("Rtn", decoder(tmp_path / "n"), tmp_path / "b", group_size=32, overrides=overrides)


def test_data_of_another_kind_are_named(tmp_path: Path) -> None:
    context = make_context(tmp_path / "job", data={"text": [Sample("s0", {"pixels": np.zeros(3)})]})
    with pytest.raises(ConfigError, match="sample s0 of text has no input_ids; it has pixels"):
        run_pass("Gptq", decoder(tmp_path / "m"), tmp_path, context=context, data_config="text", group_size=32)


@pytest.mark.parametrize(
    ("name", "config", "attributes", "message"),
    [
        ("Gptq", GptqConfig(), {"adapter": "adapter"}, "MergeAdapterWeights"),
        ("Gptq", GptqConfig(), {"quantization": "olive"}, "quantized already"),
        ("Rtn", RtnConfig(), {"quantization": "gptq"}, "quantized already"),
        ("SelectiveMixedPrecision", SelectiveMixedPrecisionConfig(), {"quantization": "olive"}, "goes before"),
    ],
)
def test_models_that_can_not_be_quantized_are_refused_before_work(
    name: str, config: Any, attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        get_registry().create("drupe_passes", name).plan(ModelInfo("hf", attributes), config, CPU)


def test_a_choice_of_layers_without_a_quantizer_is_refused_by_model_builder() -> None:
    subject = get_registry().create("drupe_passes", "ModelBuilder")
    with pytest.raises(ConfigError, match="put Gptq or Rtn between"):
        info = ModelInfo("hf", {"mixed_precision": {"lm_head": 8}})
        subject.plan(info, type(subject).Config(), CPU)
    with pytest.raises(ValidationError, match="goes by the layers' places"):
        SelectiveMixedPrecisionConfig(data_config="text")


def test_a_quantized_model_answers_in_the_hf_runtime(tmp_path: Path) -> None:
    quantized = quantize_with("Rtn", decoder(tmp_path / "m"), tmp_path / "a", bits=8, group_size=32)
    runtime = get_registry().create("drupe_runtimes", "hf")
    ids = np.arange(30, 50)
    scores = []
    for model in (decoder(tmp_path / "again"), quantized):
        with runtime.open(model, CPU, runtime.options(CPU, {"threads": 1})) as session:
            scores.append(session.score(ids, ids).outputs["logprobs"][1:])
    np.testing.assert_allclose(scores[0], scores[1], atol=0.05)
