"""Passes that rewrite a graph: each keeps the contract of passes, and its result says what its input says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.onnx.io_types import OnnxIODataTypeConverterConfig
from drupe.plugins.onnx.shapes import DynamicToFixedShapeConfig
from drupe.plugins.onnx.transformers_optimization import OrtTransformersOptimizationConfig
from drupe.testing import PassContract, make_context, tiny_causal_lm, tiny_encoder, tiny_onnx_cnn, tiny_onnx_mlp
from tests.plugins.onnx.graphs import CPU, answers, cosine, graph_file, kinds, proto_of, run_pass, saved

X = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)


class OnMlp(PassContract):
    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_onnx_mlp(tmp_path / "model")


class TestOrtTransformersOptimization(OnMlp):
    name = "OrtTransformersOptimization"

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"only_onnxruntime": True}


class TestOnnxPeepholeOptimizer(OnMlp):
    name = "OnnxPeepholeOptimizer"


class TestOnnxFloatToFloat16(OnMlp):
    name = "OnnxFloatToFloat16"


class TestOrtMixedPrecision(OnMlp):
    name = "OrtMixedPrecision"


class TestOnnxIODataTypeConverter(OnMlp):
    name = "OnnxIODataTypeConverter"

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"source_dtype": "float32", "target_dtype": "float64"}


class TestDynamicToFixedShape(OnMlp):
    name = "DynamicToFixedShape"

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"dim_param": ["batch"], "dim_value": [2]}


class TestOnnxOpVersionConversion(OnMlp):
    name = "OnnxOpVersionConversion"


class TestQuantizationPreprocess(OnMlp):
    name = "QuantizationPreprocess"


class TestAddOliveMetadata(OnMlp):
    name = "AddOliveMetadata"

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"graph_name": "mine", "custom_metadata": {"owner": "us", "rounds": 3}}


@pytest.mark.parametrize(
    ("name", "config", "tolerance"),
    [
        ("OnnxPeepholeOptimizer", {}, 1e-6),
        ("OnnxPeepholeOptimizer", {"onnxslim": True}, 1e-6),
        ("OnnxFloatToFloat16", {"keep_io_types": True}, 1e-2),
        ("OnnxOpVersionConversion", {"target_opset": 21}, 1e-6),
        ("QuantizationPreprocess", {}, 1e-6),
        ("OrtTransformersOptimization", {"only_onnxruntime": True, "opt_level": 99}, 1e-6),
    ],
)
def test_the_graph_says_what_it_said(tmp_path: Path, name: str, config: dict[str, Any], tolerance: float) -> None:
    if config.get("onnxslim"):
        pytest.importorskip("onnxslim")
    source = tiny_onnx_mlp(tmp_path / "model")
    result = run_pass(name, source, tmp_path / "job", **config)
    np.testing.assert_allclose(answers(result, {"x": X})[0], answers(source, {"x": X})[0], atol=tolerance)


# Half precision


def test_half_precision_halves_the_weights(tmp_path: Path) -> None:
    source = tiny_onnx_mlp(tmp_path / "model", features=64, hidden=64)
    result = run_pass("OnnxFloatToFloat16", source, tmp_path / "job")
    assert graph_file(result).stat().st_size < 0.6 * graph_file(source).stat().st_size
    assert {tensor.data_type for tensor in proto_of(result).graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert result.attributes["precision"] == "fp16"


def test_operators_and_nodes_can_stay_float32(tmp_path: Path) -> None:
    source = tiny_onnx_mlp(tmp_path / "model")
    result = run_pass("OnnxFloatToFloat16", source, tmp_path / "a", keep_io_types=["x"], node_block_list=["second"])
    types = {tensor.name: tensor.data_type for tensor in proto_of(result).graph.initializer}
    assert types["w1"] == onnx.TensorProto.FLOAT16 and types["w2"] == onnx.TensorProto.FLOAT
    only = run_pass("OnnxFloatToFloat16", source, tmp_path / "b", op_include_list=["Relu"])
    assert all(tensor.data_type == onnx.TensorProto.FLOAT for tensor in proto_of(only).graph.initializer)
    with pytest.raises(ConfigError, match="did you mean 'second'"):
        run_pass("OnnxFloatToFloat16", source, tmp_path / "c", node_block_list=["secnd"])


def test_a_graph_without_floats_has_nothing_to_convert(tmp_path: Path) -> None:
    source = saved(
        tmp_path / "m", '<ir_version: 8, opset_import: ["" : 17]> g (int64[N] x) => (int64[N] y) { y = Neg(x) }'
    )
    with pytest.raises(PassError, match="neither weights nor inputs of float32"):
        run_pass("OnnxFloatToFloat16", source, tmp_path / "job")


@pytest.mark.parametrize("exact", [True, False])
def test_the_head_stays_float32_where_its_weights_would_lose(tmp_path: Path, exact: bool) -> None:
    source = tiny_onnx_mlp(tmp_path / "model")
    proto = proto_of(source)
    if exact:
        for tensor in proto.graph.initializer:
            halved = onnx.numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(halved, tensor.name))
        onnx.save(proto, graph_file(source))
    result = run_pass("OrtMixedPrecision", source, tmp_path / "job")
    types = {tensor.name: tensor.data_type for tensor in proto_of(result).graph.initializer}
    assert types["w2"] == (onnx.TensorProto.FLOAT16 if exact else onnx.TensorProto.FLOAT)
    assert types["w1"] == onnx.TensorProto.FLOAT16


# Types, shapes, versions, metadata


def test_types_are_cast_at_the_border(tmp_path: Path) -> None:
    source = tiny_onnx_mlp(tmp_path / "model")
    result = run_pass(
        "OnnxIODataTypeConverter", source, tmp_path / "job", name_pattern="x|logits", source_dtype=1, target_dtype=11
    )
    [logits] = answers(result, {"x": X.astype(np.float64)})
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, answers(source, {"x": X})[0], atol=1e-6)


def test_what_matches_nothing_is_told_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the graph has x \(float32\), logits \(float32\)"):
        run_pass("OnnxIODataTypeConverter", tiny_onnx_mlp(tmp_path / "m"), tmp_path / "job", name_pattern="labels")
    with pytest.raises(ValidationError, match="no regular expression"):
        OnnxIODataTypeConverterConfig(name_pattern="(")
    with pytest.raises(ValidationError, match="unknown type 'half'"):
        OnnxIODataTypeConverterConfig.model_validate({"source_dtype": "half"})


def test_axes_are_fixed_by_name_and_by_shape(tmp_path: Path) -> None:
    source = tiny_onnx_cnn(tmp_path / "model")
    by_name = run_pass("DynamicToFixedShape", source, tmp_path / "a", dim_param=["batch"], dim_value=[3])
    by_shape = run_pass("DynamicToFixedShape", source, tmp_path / "b", input_name=["image"], input_shape=[[3, 3, 8, 8]])
    for result in (by_name, by_shape):
        graph = proto_of(result).graph
        for value in (*graph.input, *graph.output):
            assert value.type.tensor_type.shape.dim[0].dim_value == 3
    assert by_name.attributes["fixed_axes"] == {"batch": 3}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dim_param": ["batches"], "dim_value": [1]}, "no input has an axis 'batches'; the inputs' axes are batch"),
        ({"input_name": ["images"], "input_shape": [[1, 3, 8, 8]]}, "no input is called 'images'; inputs are image"),
        ({"input_name": ["image"], "input_shape": [[1, 3, 9, 8]]}, r"has shape \['batch', 3, 8, 8\]"),
    ],
)
def test_axes_and_inputs_that_are_not_there(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_pass("DynamicToFixedShape", tiny_onnx_cnn(tmp_path / "model"), tmp_path / "job", **config)


@pytest.mark.parametrize(
    "config", [{}, {"dim_param": ["a"], "dim_value": [1, 2]}, {"dim_param": ["a"], "dim_value": [0]}]
)
def test_names_and_lengths_come_in_pairs(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DynamicToFixedShapeConfig(**config)


def test_an_older_operator_set_reads_axes_otherwise(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 4] x) => (float[N, 1] y) { y = ReduceMean<axes = [1], keepdims = 1>(x) }"""
    source = saved(tmp_path / "model", text)
    result = run_pass("OnnxOpVersionConversion", source, tmp_path / "job", target_opset=20)
    node = next(node for node in proto_of(result).graph.node if node.op_type == "ReduceMean")
    assert len(node.input) == 2 and not any(attribute.name == "axes" for attribute in node.attribute)
    x = X[:, :4]
    np.testing.assert_allclose(answers(result, {"x": x})[0], x.mean(1, keepdims=True), atol=1e-6)
    assert result.attributes["opset"] == 20


def test_metadata_can_be_read_by_onnxruntime(tmp_path: Path) -> None:
    import onnxruntime as ort

    source = tiny_onnx_mlp(tmp_path / "model")
    known = Model(source.kind, source.files, {**source.attributes, "task": "text-classification"}, path=source.path)
    result = run_pass(
        "AddOliveMetadata",
        known,
        tmp_path / "job",
        graph_name="mine",
        description="for tests",
        custom_metadata={"n": 3},
    )
    found = ort.InferenceSession(str(graph_file(result))).get_modelmeta()
    assert found.graph_name == "mine"
    assert found.custom_metadata_map == {"n": "3", "description": "for tests", "drupe.task": "text-classification"}


# Clean-ups


def test_chains_of_casts_and_reshapes_become_one(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float16[N, 6] x) => (float16[M, 3] y)
    <int64[2] s = {-1, 2}, int64[2] t = {-1, 3}> {
      a = Cast<to = 1>(x)  b = Cast<to = 10>(a)  c = Neg(b)  d = Reshape(c, s)  y = Reshape(d, t) }"""
    source = saved(tmp_path / "model", text)
    result = run_pass("OnnxPeepholeOptimizer", source, tmp_path / "job")
    assert kinds(result) == {"Neg": 1, "Reshape": 1}
    x = np.arange(12, dtype=np.float16).reshape(2, 6)
    np.testing.assert_array_equal(answers(result, {"x": x})[0], answers(source, {"x": x})[0])


def test_a_cast_that_loses_something_stays(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N] x) => (float[N] y) { a = Cast<to = 10>(x)  b = Cast<to = 1>(a)  y = Neg(b) }"""
    assert kinds(run_pass("OnnxPeepholeOptimizer", saved(tmp_path / "m", text), tmp_path / "job")) == {
        "Cast": 2,
        "Neg": 1,
    }


# Weights beside the graph, folders with several graphs


def test_weights_beside_the_graph_move_with_it(tmp_path: Path) -> None:
    source = tiny_onnx_mlp(tmp_path / "model", features=32, hidden=64)
    moved = run_pass(
        "AddOliveMetadata", source, tmp_path / "a", save_as_external_data=True, external_data_name="weights.bin"
    )
    assert set(moved.files) == {"model.onnx", "weights.bin"}
    again = run_pass("OnnxPeepholeOptimizer", moved, tmp_path / "b")
    assert set(again.files) == {"model.onnx", "model.onnx.data"}
    x = np.ones((2, 32), dtype=np.float32)
    np.testing.assert_allclose(answers(again, {"x": x})[0], answers(source, {"x": x})[0], atol=1e-6)


def test_a_folder_for_genai_is_rewritten_where_it_names_its_graph(tmp_path: Path) -> None:
    import onnxruntime_genai as og

    source = tiny_causal_lm(tmp_path / "model", hidden_size=128, intermediate_size=256)
    built = run_pass("ModelBuilder", source, tmp_path / "a", precision="fp32")
    result = run_pass("AddOliveMetadata", built, tmp_path / "b", custom_metadata={"a": "b"})
    assert result.kind == "genai" and set(result.files) == set(built.files)
    assert proto_of(result).metadata_props[0].key == "a"
    og.Model(str(result.folder))


# Fusions


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("encoder")
    source = tiny_encoder(folder / "model")
    return run_pass("OnnxConversion", source, folder / "job", use_dynamo_exporter=False, target_opset=17)


def tokens() -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(5, 90, (2, 9))
    mask = np.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def test_an_encoder_is_fused_whole_and_says_the_same(encoder: Model, tmp_path: Path) -> None:
    result = run_pass("OrtTransformersOptimization", encoder, tmp_path / "job")
    assert kinds(result)["Attention"] == 2
    assert kinds(result)["SkipLayerNormalization"] == 4
    np.testing.assert_allclose(answers(result, tokens())[0], answers(encoder, tokens())[0], atol=1e-5)


def test_single_fusions_can_be_left_out_and_inputs_be_int32(encoder: Model, tmp_path: Path) -> None:
    result = run_pass(
        "OrtTransformersOptimization",
        encoder,
        tmp_path / "job",
        optimization_options={"enable_attention": False},
        input_int32=True,
        float16=True,
    )
    assert "Attention" not in kinds(result)
    batch = {name: value.astype(np.int32) for name, value in tokens().items()}
    assert cosine(answers(result, batch)[0], answers(encoder, tokens())[0]) > 0.999


def test_fusions_that_do_not_exist_are_named_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match="did you mean 'enable_attention'"):
        OrtTransformersOptimizationConfig(optimization_options={"enable_atention": True})
    with pytest.raises(ValidationError, match="only with float16"):
        OrtTransformersOptimizationConfig(force_fp32_ops=["Add"])
    subject = get_registry().create("drupe_passes", "OrtTransformersOptimization")
    with pytest.raises(ConfigError, match="no fusions for model_type 'brt'"):
        subject.plan(ModelInfo("onnx"), OrtTransformersOptimizationConfig(model_type="brt"), CPU)


def test_a_family_that_is_not_known_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give model_type"):
        run_pass("OrtTransformersOptimization", tiny_onnx_mlp(tmp_path / "model"), tmp_path / "job")


def test_a_graph_that_does_not_load_is_told_at_once(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "unknown.domain" : 1]>
    g (float[N] x) => (float[N] y) { a = Neg(x)  y = unknown.domain.Strange(a) }"""
    source = saved(tmp_path / "model", text)
    with pytest.raises(PassError, match=r"node 'Strange_1' has the operator unknown\.domain:Strange"):
        run_pass("OnnxPeepholeOptimizer", source, tmp_path / "job", tidy=False)


def test_contexts_of_other_devices_are_not_tried_on_this_cpu(tmp_path: Path) -> None:
    from drupe.core.accelerators import Accelerator

    text = """<ir_version: 8, opset_import: ["" : 17, "unknown.domain" : 1]>
    g (float[N] x) => (float[N] y) { a = Neg(x)  y = unknown.domain.Strange(a) }"""
    context = make_context(tmp_path / "job", accelerator=Accelerator("npu", "QNNExecutionProvider"))
    result = run_pass("AddOliveMetadata", saved(tmp_path / "m", text), tmp_path / "job", context=context)
    assert kinds(result) == {"Neg": 1, "Strange": 1}


def test_a_failing_shape_inference_leaves_nothing_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The symbolic inference does not know the operator, so it gives up.
    text = """<ir_version: 8, opset_import: ["" : 17, "unknown.domain" : 1]>
    g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w> { a = MatMul(x, w)  y = unknown.domain.Strange(a) }"""
    source = saved(tmp_path / "m", text, {"w": np.ones((4, 4), dtype=np.float32)})
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    from drupe.core.accelerators import Accelerator

    for number, name in enumerate(("QuantizationPreprocess", "OnnxFloatToFloat16")):
        context = make_context(tmp_path / f"job{number}", accelerator=Accelerator("npu", "QNNExecutionProvider"))
        run_pass(name, source, tmp_path, context=context)
    assert "symbolic shape inference fails" in caplog.text
    assert list(empty.iterdir()) == []
