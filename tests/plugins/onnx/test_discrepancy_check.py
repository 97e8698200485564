"""OnnxDiscrepancyCheck: near graphs go on unchanged, far ones stop the run or are recorded, by what was found."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from pydantic import ValidationError

from drupe.core.cli.validate import validate
from drupe.core.data import Sample
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model
from drupe.plugins.onnx.discrepancy_check import OnnxDiscrepancyCheckConfig
from drupe.testing import PassContract, make_context, tiny_causal_lm, tiny_encoder, tiny_onnx_mlp
from tests.plugins.onnx.graphs import CPU, proto_of, run_pass, saved
from tests.support.workflows import write_workflow

ROWS = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)


def samples() -> list[Sample]:
    return [Sample(f"s{index}", {"x": row}) for index, row in enumerate(ROWS)]


def check(model: Model, reference: Path, folder: Path, data: Any = None, **config: Any) -> tuple[Model, dict[str, Any]]:
    context = make_context(folder, accelerator=CPU, data={"d": samples() if data is None else data})
    result = run_pass(
        "OnnxDiscrepancyCheck", model, folder, context=context, reference_model_path=str(reference), **config
    )
    return result, context.report["discrepancy"]


def shifted(model: Model, folder: Path, by: float) -> Model:
    """The same net with one bias changed: every first logit is off by as much."""
    proto = proto_of(model)
    for tensor in proto.graph.initializer:
        if tensor.name == "b2":
            bias = numpy_helper.to_array(tensor).copy()
            bias[0] += by
            tensor.CopyFrom(numpy_helper.from_array(bias, "b2"))
    folder.mkdir()
    onnx.save(proto, folder / "model.onnx")
    return Model.from_dir("onnx", folder, {"onnx_file": "model.onnx"})


class TestOnnxDiscrepancyCheck(PassContract):
    name = "OnnxDiscrepancyCheck"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_onnx_mlp(tmp_path / "model")

    @pytest.fixture
    def config_values(self, tmp_path: Path) -> dict[str, Any]:
        tiny_onnx_mlp(tmp_path / "reference")
        return {"reference_model_path": str(tmp_path / "reference" / "model.onnx"), "max_mae": 0.0}


def test_what_is_equal_goes_on_as_it_came(tmp_path: Path) -> None:
    source = tiny_onnx_mlp(tmp_path / "m")
    result, found = check(source, source.folder, tmp_path / "job", data_config="d", max_mae=0.0, min_cosine=0.9999)
    assert result.digest == source.digest and found["failures"] == [] and found["inputs"] == 6
    assert found["outputs"]["logits"]["max_error"] == 0.0 and found["outputs"]["logits"]["elements"] == 18


def test_one_number_is_compared_too(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3] x) => (float sum) { some = Mul (x, factor)  sum = ReduceSum <keepdims = 0> (some) }"""
    ours, theirs = (
        saved(tmp_path / str(factor), text, {"factor": np.array(factor, np.float32)}) for factor in (1.0, 3.0)
    )
    with pytest.raises(PassError, match=r"max_mae: .* \(output sum, worst for input \d\)"):
        check(ours, theirs.folder, tmp_path / "job", max_mae=0.1)


def test_errors_are_counted(tmp_path: Path) -> None:
    source = tiny_onnx_mlp(tmp_path / "m")
    _, found = check(shifted(source, tmp_path / "off", 0.05), source.folder, tmp_path / "job", data_config="d")
    told = found["outputs"]["logits"]
    assert told["max_error"] == pytest.approx(0.05, abs=1e-4) and told["mean_error"] == pytest.approx(
        0.05 / 3, abs=1e-4
    )
    assert (told["elements_above_0_1"], told["elements_above_0_01"]) == (0, 6)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"max_mae": 0.1}, r"max_mae: 20, allowed is 0.1 \(output logits, worst for input \d\)"),
        ({"max_mean_error": 1.0}, "max_mean_error: 6.6"),
        ({"min_cosine": 0.9}, "min_cosine: 0.*, at least 0.9 is asked"),
        ({"max_flips": 0.0}, "max_flips: "),
        ({"max_elements_above_0_1": 5}, "max_elements_above_0_1: 6, allowed is 5"),
        ({"max_elements_above_0_01": 0}, "max_elements_above_0_01: 6, allowed is 0"),
    ],
)
def test_each_limit_stops_the_run(tmp_path: Path, limit: dict[str, float], message: str) -> None:
    source = tiny_onnx_mlp(tmp_path / "m")
    far = shifted(source, tmp_path / "off", 20.0)
    with pytest.raises(PassError, match=message):
        check(far, source.folder, tmp_path / "job", data_config="d", **limit)


def test_a_failure_may_be_recorded_instead(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tiny_onnx_mlp(tmp_path / "m")
    far = shifted(source, tmp_path / "off", 20.0)
    with caplog.at_level(logging.WARNING):
        result, found = check(far, source.folder, tmp_path / "job", data_config="d", max_mae=0.1, on_failure="record")
    assert result.digest == far.digest and len(found["failures"]) == 1 and "too far from" in caplog.text


def test_no_number_is_beyond_every_limit(tmp_path: Path) -> None:
    source = tiny_onnx_mlp(tmp_path / "m")
    broken = shifted(source, tmp_path / "off", float("nan"))
    with pytest.raises(PassError, match=r"max_mae: inf.*min_cosine: nan"):
        check(broken, source.folder, tmp_path / "job", data_config="d", max_mae=1e30, min_cosine=-1)


def test_made_up_inputs_serve_without_data(tmp_path: Path) -> None:
    source = tiny_onnx_mlp(tmp_path / "m")
    _, found = check(source, source.folder / "model.onnx", tmp_path / "job", made_up_num=3, batch_size=5, max_mae=0.0)
    assert found["inputs"] == 3 and found["outputs"]["logits"]["elements"] == 45


def test_a_graph_is_compared_with_the_model_that_it_was_made_of(tmp_path: Path) -> None:
    source = tiny_encoder(tmp_path / "m")
    graph = run_pass("OnnxConversion", source, tmp_path / "export", use_dynamo_exporter=False)
    _, found = check(graph, source.folder, tmp_path / "a", max_mae=1e-4, max_flips=0.0, timing_iterations=2)
    assert found["outputs"]["logits"]["elements"] == 8 and set(found["seconds"]) == {"graph", "reference", "speedup"}
    with pytest.raises(
        ConfigError, match=r"odds is in both; the graph gives logits, the reference logits; name them as"
    ):
        check(graph, source.folder, tmp_path / "b", outputs={"logits": "odds"})


def test_a_folder_for_genai_is_held_to_logits_and_to_what_it_generates(tmp_path: Path) -> None:
    source = tiny_causal_lm(tmp_path / "m", hidden_size=128, tie_word_embeddings=False)
    built = run_pass("ModelBuilder", source, tmp_path / "build", precision="fp32")
    more = {"generate_prompt": "Once", "generate_max_new_tokens": 6}
    result, found = check(built, source.folder, tmp_path / "a", max_mae=1e-3, min_longest_common_tokens=6, **more)
    assert result.digest == built.digest and found["generation"]["common_tokens"] == 6
    other = tiny_causal_lm(tmp_path / "other", hidden_size=128, tie_word_embeddings=False, seed=1)
    with pytest.raises(PassError, match=r"min_longest_common_tokens: .*, at least 6 is asked; the graph goes on with"):
        check(built, other.folder, tmp_path / "b", min_longest_common_tokens=6, **more)


def test_of_a_composite_the_last_outputs_are_compared(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3] {given}) => (float[N, 3] {made}) {{ {made} = {kind} ({given}) }}"""
    for name, given, made, kind in (("a", "x", "m", "Neg"), ("b", "m", "y", "Relu")):
        saved(tmp_path / "m" / name, text.format(given=given, made=made, kind=kind))
    components = [{"name": name, "file": f"{name}/model.onnx"} for name in ("a", "b")]
    whole = Model.from_dir("composite", tmp_path / "m", {"components": components})
    both = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3] x) => (float[N, 3] y) { m = Neg (x)  y = Relu (m) }"""
    result, found = check(whole, saved(tmp_path / "one", both).folder, tmp_path / "job", max_mae=0.0)
    assert list(found["outputs"]) == ["y"] and result.digest == whole.digest


def test_bad_references_are_named(tmp_path: Path) -> None:
    source = tiny_onnx_mlp(tmp_path / "m")
    with pytest.raises(ConfigError, match=r"reference_model_path .*gone is not there; expected a Hugging Face folder"):
        check(source, tmp_path / "gone", tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty is neither; expected a Hugging Face folder"):
        check(source, tmp_path / "empty", tmp_path / "b")
    with pytest.raises(ConfigError, match="the reference can't generate; leave min_longest_common_tokens out"):
        check(source, source.folder, tmp_path / "c", min_longest_common_tokens=1)
    with pytest.raises(ValidationError, match="reference_model_path"):
        OnnxDiscrepancyCheckConfig()


@pytest.mark.parametrize(
    ("values", "unused"),
    [
        ({"data_config": "d", "made_up_num": 2}, ["made_up_num"]),
        ({"made_up_num": 2, "shape_kwargs": {"n": 3}}, []),
        ({"generate_prompt": "Once", "warmup_iterations": 1}, ["generate_prompt", "warmup_iterations"]),
        ({"generate_prompt": "Once", "min_longest_common_tokens": 1}, []),
    ],
)
def test_what_has_no_effect_is_told(values: dict[str, Any], unused: list[str]) -> None:
    notices: list[str] = []
    values = {"reference_model_path": "m", **values}
    OnnxDiscrepancyCheckConfig.model_validate(values, context={"notices": notices})
    assert [notice.split()[0] for notice in notices] == unused


def test_keys_of_olive_files_without_effect_are_told_before_work(tmp_path: Path) -> None:
    source = tiny_onnx_mlp(tmp_path / "m")
    document = {
        "input_model": {"type": "ONNXModel", "model_path": str(source.folder / "model.onnx")},
        "passes": {
            "check": {"type": "OnnxDiscrepancyCheck", "reference_model_path": str(source.folder),
                      "warmup_iterations": 1, "report_output_dir": "x"},
            "tune": {"type": "OrtSessionParamsTuning", "disable_force_evaluate_ep_param": True},
        },
        "output_dir": str(tmp_path / "out"),
    }  # fmt: skip
    told = CliRunner().invoke(validate, [str(write_workflow(tmp_path, document))])
    assert told.exit_code == 0, told.output
    for key in ("check.report_output_dir", "check: warmup_iterations has no effect", "tune.disable_force_evaluate"):
        assert f"passes.{key}" in told.output


def test_pickled_weights_need_consent(tmp_path: Path) -> None:
    source = tiny_encoder(tmp_path / "m")
    pickled = tmp_path / "pickled"
    shutil.copytree(source.folder, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="--allow pickle"):
        check(tiny_onnx_mlp(tmp_path / "x"), pickled, tmp_path / "job")


@pytest.mark.slow
@pytest.mark.real_run("OnnxDiscrepancyCheck")
def test_an_export_passes_and_its_8_bits_do_not(minilm_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = Model.from_dir("hf", minilm_dir, {"task": "feature-extraction", "dtype": "float32"})
    source = run_pass("OnnxConversion", model, tmp_path / "export", use_dynamo_exporter=False)
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
    texts = ["The ship left the harbour before dawn.", "He forgot to water the plants."]
    data = [Sample(text, {"input_ids": np.array(tokenizer(text)["input_ids"])}) for text in texts]
    result, found = check(source, minilm_dir, tmp_path / "a", data, data_config="d", max_mae=1e-4, min_cosine=0.99999)
    assert result.digest == source.digest and set(found["outputs"]) == {"last_hidden_state", "pooler_output"}
    ort.InferenceSession(str(result.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    quantized = run_pass("OnnxDynamicQuantization", source, tmp_path / "q", per_channel=True)
    with pytest.raises(PassError, match=r"output last_hidden_state"):
        check(quantized, minilm_dir, tmp_path / "b", data, data_config="d", max_mae=1e-4)
    _, found = check(quantized, minilm_dir, tmp_path / "c", data, data_config="d", min_cosine=0.97)
    assert found["outputs"]["last_hidden_state"]["cosine"] < 0.9999
