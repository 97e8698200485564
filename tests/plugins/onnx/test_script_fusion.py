"""OnnxScriptFusion: onnxscript's patterns fire, are told, and the fused graph says what its source says."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest

from drupe.core.errors import PassError
from drupe.core.model import Model
from drupe.testing import PassContract, make_context, tiny_causal_lm, tiny_encoder, tiny_onnx_mlp
from tests.plugins.onnx.graphs import CPU, answers, kinds, run_pass, saved
from tests.plugins.real_models import Sentences


class TestOnnxScriptFusion(PassContract):
    name = "OnnxScriptFusion"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_onnx_mlp(tmp_path / "model")


def padded(ids: np.ndarray) -> dict[str, np.ndarray]:
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("encoder")
    return run_pass("OnnxConversion", tiny_encoder(folder / "m"), folder / "export")


def test_an_encoder_is_fused_and_says_the_same(encoder: Model, tmp_path: Path) -> None:
    context = make_context(tmp_path / "job", accelerator=CPU)
    result = run_pass("OnnxScriptFusion", encoder, tmp_path, context=context)
    assert context.report["fusions"]["attention"] == 2
    assert context.report["operators"] == {"Attention": 2, "SkipLayerNormalization": 4, "BiasGelu": 2}
    assert kinds(result)["Attention"] == 2 and "Softmax" not in kinds(result)
    ids = np.random.default_rng(0).integers(5, 90, (2, 9))
    batch = {**padded(ids), "token_type_ids": np.zeros_like(ids)}
    for ours, theirs in zip(answers(result, batch), answers(encoder, batch), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_decoder_with_keys_and_values_of_its_own_head_count(tmp_path: Path) -> None:
    source = run_pass("OnnxConversion", tiny_causal_lm(tmp_path / "m", num_hidden_layers=1), tmp_path / "export")
    context = make_context(tmp_path / "job", accelerator=CPU)
    result = run_pass("OnnxScriptFusion", source, tmp_path, context=context, save_as_external_data=True)
    assert context.report["fusions"]["skip_rms_normalization"] == 2
    assert (result.folder / "model.onnx.data").is_file()
    batch = padded(np.random.default_rng(0).integers(5, 90, (2, 9)))
    ours, theirs = answers(result, batch)[0], answers(source, batch)[0]
    kept = batch["attention_mask"].astype(bool)
    np.testing.assert_allclose(ours[kept], theirs[kept], atol=1e-5)


def test_a_graph_in_which_nothing_fits_goes_on_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tiny_onnx_mlp(tmp_path / "m")
    with caplog.at_level(logging.WARNING):
        result = run_pass("OnnxScriptFusion", source, tmp_path / "job")
    assert "none of onnxscript's patterns fits model.onnx" in caplog.text
    rows = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    np.testing.assert_allclose(answers(result, {"x": rows})[0], answers(source, {"x": rows})[0], atol=1e-6)


def test_a_fusion_that_changes_what_is_said_is_an_error(
    encoder: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxscript.rewriter import ort_fusions

    fuse = ort_fusions.optimize_for_ort

    def wrong(tree: onnx.ModelProto) -> tuple[object, dict[str, int]]:
        """The patterns, and a fault as one of them may have: a norm with another epsilon."""
        fused, counts = fuse(tree)
        for node in fused.graph:
            if node.op_type == "SkipLayerNormalization":
                node.attributes.add(ort_fusions._core.ir.AttrFloat32("epsilon", 0.5))
        return fused, counts

    monkeypatch.setattr(ort_fusions, "optimize_for_ort", wrong)
    with pytest.raises(PassError, match=r"differs from its source by .* after .*attention × 2.*raise tolerance"):
        run_pass("OnnxScriptFusion", encoder, tmp_path / "job")
    run_pass("OnnxScriptFusion", encoder, tmp_path / "near", tolerance=100.0)


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    g (float[N, 3] x) => (float[N, 3] y) { y = own.Twist (x) }"""
    with pytest.raises(PassError, match="node 'Twist_0' has the operator own:Twist"):
        run_pass("OnnxScriptFusion", saved(tmp_path / "m", text, check=False), tmp_path / "job")


@pytest.mark.slow
@pytest.mark.real_run("OnnxScriptFusion")
def test_sentences_stay_where_they_were(minilm: Model, sentences: Sentences, tmp_path: Path) -> None:
    source = run_pass("OnnxConversion", minilm, tmp_path / "export")
    context = make_context(tmp_path / "job", accelerator=CPU)
    result = run_pass("OnnxScriptFusion", source, tmp_path, context=context)
    assert context.report["fusions"]["attention"] == 6 and context.report["operators"]["BiasGelu"] == 6
    found = sentences.again(answers(result, sentences.batch)[0])
    assert found.cosines(sentences).min() > 0.99999 and found.found() == len(sentences.embeddings)
