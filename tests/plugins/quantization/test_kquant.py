"""KQuant: never further from the weights than rounding to nearest, and taken over by ModelBuilder as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from drupe.core.model import Model
from drupe.plugins.huggingface.loading import load_model
from drupe.plugins.quantization.checkpoint import float_state, quantized_layers
from drupe.plugins.quantization.grid import dequantize, fit, quantize
from drupe.plugins.quantization.kquant import KQuantConfig, fit_by_least_squares
from drupe.testing import PassContract, make_context, tiny_causal_lm
from tests.plugins.onnx.graphs import answers, graph_file, run_pass, saved
from tests.plugins.quantization.decoders import decoder
from tests.plugins.quantization.workflows import assert_idle, examined
from tests.plugins.real_models import by_genai, by_transformers


class TestKQuant(PassContract):
    name = "KQuant"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_causal_lm(tmp_path / "model")


def errors(weights: torch.Tensor, bits: int, grid: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The squared error of each group."""
    return (dequantize(quantize(weights, *grid, bits), *grid) - weights).square().sum(-1)


@given(
    rows=st.integers(1, 4),
    group=st.sampled_from([16, 32, 64]),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    seed=st.integers(0, 1000),
    offset=st.floats(-3, 3),
    tail=st.floats(0.3, 3),
)
@settings(max_examples=60, deadline=None)
def test_no_group_is_further_off_than_by_rounding(
    rows: int, group: int, bits: int, symmetric: bool, seed: int, offset: float, tail: float
) -> None:
    weights = torch.randn(rows, 2, group, generator=torch.Generator().manual_seed(seed))
    weights = weights.sign() * weights.abs() ** tail + offset
    weights[0, 0] = 0
    scale, zero = fit_by_least_squares(weights, bits, symmetric)
    for search in (True, False):
        rounded = errors(weights, bits, fit(weights, bits, symmetric, search=search))
        assert bool((errors(weights, bits, (scale, zero)) <= rounded).all())
    assert bool((zero == zero.round()).all()) and float(zero.min()) >= 0 and float(zero.max()) < 2**bits
    assert bool((dequantize(quantize(torch.zeros_like(weights), scale, zero, bits), scale, zero) == 0).all())
    if symmetric:
        assert bool((zero == 2 ** (bits - 1)).all())


@pytest.mark.parametrize(("symmetric", "share"), [(False, 0.98), (True, 0.99)])
def test_what_it_gains_over_rounding_with_a_search(
    symmetric: bool, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = torch.randn(64, 4, 32, generator=torch.Generator().manual_seed(0))
    found = errors(weights, 4, fit_by_least_squares(weights, 4, symmetric)).sum()
    assert found < share * errors(weights, 4, fit(weights, 4, symmetric)).sum()
    # Parts of a large layer are fitted apart, which changes nothing.
    monkeypatch.setattr("drupe.plugins.quantization.kquant._AT_ONCE", 4 * 32 * 5)
    assert errors(weights, 4, fit_by_least_squares(weights, 4, symmetric)).sum() == found


GRAPH = """<ir_version: 8, opset_import: ["" : 17]>
one (float[n, 256] x) => (float[n, 48] y)
{
  ["m"] y = MatMul (x, w)
}"""


@pytest.mark.parametrize("block", [32, 64])
def test_it_is_nearer_to_the_weights_than_the_k_quants_of_graphs(tmp_path: Path, block: int) -> None:
    weights = torch.randn(48, 256, generator=torch.Generator().manual_seed(3))
    graph = saved(tmp_path / "m", GRAPH, {"w": weights.numpy().T.copy()}, check=False)
    made = run_pass("OnnxKQuantQuantization", graph, tmp_path / "job", block_size=block, accuracy_level=1)
    theirs = answers(made, {"x": np.eye(256, dtype=np.float32)})[0].T
    groups = weights.reshape(48, -1, block)
    ours = float(errors(groups, 4, fit_by_least_squares(groups, 4, False)).sum())
    # Theirs is the least error before the zero point is rounded.
    assert 0.5 < ours / float(np.square(theirs - weights.numpy()).sum()) < 0.97


@pytest.mark.parametrize(
    "config", [{}, {"group_size": 64, "sym": True, "bits": 8}, {"sym": True, "overrides": {"lm_head": {"bits": 8}}}]
)
def test_model_builder_takes_the_numbers_over(tmp_path: Path, config: dict[str, Any]) -> None:
    source = tiny_causal_lm(tmp_path / "m", hidden_size=128, num_attention_heads=4)
    quantized = run_pass("KQuant", source, tmp_path / "a", lm_head="overrides" in config, **config)
    assert quantized.attributes["quantization"] == "olive"
    heads = {} if "overrides" in config else {"nodes_to_exclude": ["/lm_head/MatMul"]}
    precision = "int4" if config.get("bits", 4) == 4 else "int8"
    options = {"shared_embeddings": False, "accuracy_level": 1, **heads}
    built = run_pass("ModelBuilder", quantized, tmp_path / "b", precision=precision, **options)
    nodes = [node for node in onnx.load(str(graph_file(built))).graph.node if node.op_type == "MatMulNBits"]
    sizes = {a.i for node in nodes for a in node.attribute if a.name == "block_size"}
    assert sizes == {config.get("group_size", 32)}
    ids = np.arange(30, 50)
    expected = by_transformers(load_model(quantized, dtype="float32"), ids)
    np.testing.assert_allclose(by_genai(built.folder, ids), expected, atol=2e-3)


def test_the_checkpoint_and_its_embedding_are_nearer_to_the_source_than_rtns(tmp_path: Path) -> None:
    source = tiny_causal_lm(tmp_path / "m")
    before = float_state(source.folder)
    off = {}
    for name in ("Rtn", "KQuant"):
        made = run_pass(name, source, tmp_path / name, group_size=32, embeds=True)
        after = float_state(made.folder)
        off[name] = {key: float((after[key] - tensor).square().sum()) for key, tensor in before.items()}
        assert len(quantized_layers(made.folder)) == 14
    changed = [key for key in before if off["Rtn"][key]]
    assert len(changed) == 15 and all(off["KQuant"][key] < off["Rtn"][key] for key in changed)


def test_layers_that_another_quantizer_left_are_quantized(tmp_path: Path) -> None:
    first = run_pass("Rtn", tiny_causal_lm(tmp_path / "m", vocab_size=320), tmp_path / "a", group_size=32)
    second = run_pass("KQuant", first, tmp_path / "b", lm_head=True)
    before, after = quantized_layers(first.folder), quantized_layers(second.folder)
    assert after.keys() - before.keys() == {"lm_head"}
    assert all(torch.equal(after[name].q, layer.q) for name, layer in before.items())


def test_there_is_no_parameter_that_does_nothing() -> None:
    with pytest.raises(ValidationError, match="scale_search"):
        KQuantConfig.model_validate({"scale_search": False})
    with pytest.raises(ValidationError, match="bits"):
        KQuantConfig.model_validate({"bits": 3})


@pytest.mark.parametrize(
    ("moe", "kind", "message"),
    [(True, "missing", "quantized experts: nothing provides this"), (False, "notice", "experts that are no linear")],
)
def test_experts_of_other_files_are_told(tmp_path: Path, moe: bool, kind: str, message: str) -> None:
    found = examined(tmp_path, "KQuant", {"moe": moe})
    told = {"missing": [fault for fault in found.faults if fault.kind == "missing"], "notice": list(found.notices)}
    assert [str(entry.path) for entry in told[kind]] == ["passes.p.moe"]
    assert message in str(told[kind][0])


@pytest.mark.parametrize(
    ("name", "config", "idle"),
    [
        ("KQuant", {"overrides": {"model.embed_tokens": {"bits": 8}}}, ["model.embed_tokens"]),
        ("Gptq", {"overrides": {"model.embed_tokens": {"bits": 8}}}, ["model.embed_tokens"]),
        ("Rtn", {"overrides": {"lm_head": {"bits": 8}}}, ["lm_head"]),
        (
            "Rtn",
            {"lm_head": True, "embeds": True, "overrides": {"lm_head": {"bits": 8}, "model.embed_tokens": {"bits": 8}}},
            [],
        ),
    ],
)
def test_overrides_of_what_stays_in_float_are_told(
    tmp_path: Path, name: str, config: dict[str, Any], idle: list[str]
) -> None:
    assert_idle(tmp_path, name, config, [f"overrides.{layer}" for layer in idle])


def test_overrides_say_what_is_known() -> None:
    named = KQuantConfig.model_validate({"overrides": {"a": {"bits": "int8"}, "b": {"group_size": 16}}})
    assert named.overrides == {"a": {"bits": 8}, "b": {"group_size": 16}}
    with pytest.raises(ValidationError, match="lm_head has 'bit'; expected bits, group_size, symmetric"):
        KQuantConfig.model_validate({"overrides": {"lm_head": {"bit": 8}}})
    with pytest.raises(ValidationError, match="lm_head: bits is 3; expected 4 or 8"):
        KQuantConfig.model_validate({"overrides": {"lm_head": {"bits": 3}}})
    with pytest.raises(ValidationError, match="a: group_size is 'x'; expected one of -1, 16, 32, 64, 128, 256"):
        KQuantConfig.model_validate({"overrides": {"a": {"group_size": "x"}}})
    with pytest.raises(ValidationError, match="a: symmetric is 'no'; expected true or false"):
        KQuantConfig.model_validate({"overrides": {"a": {"symmetric": "no"}}})


def test_the_embedding_has_a_grid_of_its_own(tmp_path: Path) -> None:
    source = tiny_causal_lm(tmp_path / "m")
    own = {"model.embed_tokens": {"bits": 8, "group_size": 16}}
    report: dict[str, Any] = {}
    off = {}
    for told in ({}, own):
        context = make_context(tmp_path / f"job{len(told)}")
        made = run_pass("Rtn", source, tmp_path, context=context, group_size=32, embeds=True, overrides=told)
        report[str(len(told))] = context.report["embedding_bits"]
        name = "model.embed_tokens.weight"
        table = float_state(made.folder)[name]
        off[len(told)] = float((table - float_state(source.folder)[name]).square().sum())
    assert report == {"0": 4, "1": 8} and off[1] < off[0] / 50


def test_an_embedding_around_zero_has_no_zero_point(tmp_path: Path) -> None:
    source = tiny_causal_lm(tmp_path / "m")
    own = {"model.embed_tokens": {"symmetric": True}}
    told = run_pass("Rtn", source, tmp_path / "a", group_size=32, embeds=True, overrides=own)
    all_so = run_pass("Rtn", source, tmp_path / "b", group_size=32, embeds=True, sym=True)
    name = "model.embed_tokens.weight"
    assert torch.equal(float_state(told.folder)[name], float_state(all_so.folder)[name])


def test_an_embedding_of_another_name_has_a_grid_of_its_own(tmp_path: Path) -> None:
    source = decoder(tmp_path / "m", "OPT", ffn_dim=96, word_embed_proj_dim=64, max_position_embeddings=64)
    own = {"model.decoder.embed_tokens": {"bits": 8}}
    context = make_context(tmp_path / "job")
    run_pass("Rtn", source, tmp_path, context=context, group_size=32, embeds=True, overrides=own)
    assert context.report["embedding_bits"] == 8


def test_a_head_chosen_before_that_stays_in_float_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chosen = run_pass(
        "SelectiveMixedPrecision", tiny_causal_lm(tmp_path / "m"), tmp_path / "a", algorithm="k_quant_last"
    )
    run_pass("Rtn", chosen, tmp_path / "b", group_size=32)
    assert "an earlier pass chose 8 bits for the head, which stays in float: lm_head is not true" in caplog.text
