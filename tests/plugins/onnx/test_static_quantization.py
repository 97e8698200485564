"""OnnxStaticQuantization and OnnxQuantization: calibrated by data, near to their source, clear where data don't fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from drupe.core.accelerators import Accelerator
from drupe.core.data import Sample
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.onnx.quantization import OnnxQuantizationConfig
from drupe.plugins.onnx.static_quantization import OnnxStaticQuantizationConfig
from drupe.testing import PassContract, make_context, tiny_causal_lm, tiny_encoder, tiny_onnx_cnn, tiny_onnx_mlp
from tests.plugins.onnx.graphs import CPU, answers, cosine, kinds, proto_of, run_pass
from tests.plugins.quantization.decoders import decoder

RANDOM = np.random.default_rng(5)
ROWS = RANDOM.normal(size=(16, 32)).astype(np.float32)


def samples() -> list[Sample]:
    return [Sample(f"s{index}", {"x": row}, content_key=f"k{index}") for index, row in enumerate(ROWS)]


def mlp(folder: Path) -> Model:
    return tiny_onnx_mlp(folder, features=32, hidden=64)


def quantize(name: str, model: Model, folder: Path, data: Any = None, **config: Any) -> Model:
    context = make_context(folder, accelerator=CPU, data={"calibration": samples() if data is None else data})
    return run_pass(name, model, folder, context=context, **{"data_config": "calibration", **config})


class TestOnnxStaticQuantization(PassContract):
    name = "OnnxStaticQuantization"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return mlp(tmp_path / "model")

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"data_config": "calibration"}

    @pytest.fixture
    def data(self) -> dict[str, Any]:
        return {"calibration": samples()}


class TestOnnxQuantization(TestOnnxStaticQuantization):
    name = "OnnxQuantization"


@pytest.mark.parametrize("quant_format", ["QDQ", "QOperator"])
@pytest.mark.parametrize("method", ["MinMax", "Entropy", "Percentile"])
def test_answers_stay_near(tmp_path: Path, quant_format: str, method: str) -> None:
    source = mlp(tmp_path / "model")
    result = quantize(
        "OnnxStaticQuantization", source, tmp_path / "job", calibrate_method=method, quant_format=quant_format
    )
    marks = "QuantizeLinear" if quant_format == "QDQ" else "QGemm"
    assert kinds(result)[marks] >= 1
    assert cosine(answers(result, {"x": ROWS})[0], answers(source, {"x": ROWS})[0]) > 0.98
    assert result.attributes["quantization"] == "int8-static"


@pytest.mark.parametrize(("precision", "activation", "least"), [("uint8", "uint16", 0.9995), ("QInt8", "QUInt8", 0.99)])
def test_types_are_what_was_asked(tmp_path: Path, precision: str, activation: str, least: float) -> None:
    source = mlp(tmp_path / "model")
    result = quantize(
        "OnnxStaticQuantization",
        source,
        tmp_path / "job",
        precision=precision,
        activation_type=activation,
        per_channel=True,
    )
    types = {tensor.name: tensor.data_type for tensor in proto_of(result).graph.initializer}
    kind = onnx.TensorProto.UINT8 if precision == "uint8" else onnx.TensorProto.INT8
    assert types["w1_quantized"] == kind
    wide = onnx.TensorProto.UINT16 if activation == "uint16" else onnx.TensorProto.UINT8
    assert types["x_zero_point"] == wide
    assert cosine(answers(result, {"x": ROWS})[0], answers(source, {"x": ROWS})[0]) > least


def test_images_go_through_convolutions(tmp_path: Path) -> None:
    source = tiny_onnx_cnn(tmp_path / "model")
    images = RANDOM.normal(size=(8, 3, 8, 8)).astype(np.float32)
    data = [Sample(f"i{index}", {"image": image}) for index, image in enumerate(images)]
    result = quantize("OnnxStaticQuantization", source, tmp_path / "job", data, op_types_to_exclude=["Gemm"])
    assert result.attributes["quantization"] == "int8-static"
    found = {node.name for node in proto_of(result).graph.node}
    assert "conv" in found or "conv_quant" in found
    weights = {tensor.name for tensor in proto_of(result).graph.initializer}
    assert "kernel_quantized" in weights and "w_quantized" not in weights
    assert cosine(answers(result, {"image": images})[0], answers(source, {"image": images})[0]) > 0.98


def test_a_sample_that_is_a_whole_batch_calibrates_as_it_is(tmp_path: Path) -> None:
    source = mlp(tmp_path / "model")
    one_by_one = quantize("OnnxStaticQuantization", source, tmp_path / "a")
    whole = [Sample("all", {"x": ROWS}, extras={"whole_batch": True})]
    at_once = quantize("OnnxStaticQuantization", source, tmp_path / "b", whole)
    assert at_once.digest == one_by_one.digest


def test_token_data_are_completed_and_padded(tmp_path: Path) -> None:
    source = run_pass("OnnxConversion", tiny_encoder(tmp_path / "m"), tmp_path / "a", use_dynamo_exporter=False)
    data = [Sample(f"t{n}", {"input_ids": RANDOM.integers(5, 90, n)}) for n in (4, 9, 6)]
    for method in ("MinMax", "Entropy"):
        result = quantize(
            "OnnxStaticQuantization",
            source,
            tmp_path / method,
            data,
            calibrate_method=method,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
        ids = np.stack([np.arange(5, 13), np.arange(15, 23)])
        batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        assert cosine(answers(result, batch)[0], answers(source, batch)[0]) > 0.9


def test_a_decoder_with_keys_and_values_is_calibrated_without_a_past(tmp_path: Path) -> None:
    import onnxruntime_genai as og

    built = run_pass("ModelBuilder", tiny_causal_lm(tmp_path / "m", hidden_size=128), tmp_path / "a", precision="fp32")
    data = [Sample(f"t{n}", {"input_ids": RANDOM.integers(5, 90, n)}) for n in (4, 9)]
    result = quantize(
        "OnnxStaticQuantization",
        built,
        tmp_path / "job",
        data,
        op_types_to_quantize=["MatMul"],
        activation_type="uint16",
    )
    assert result.kind == "genai"
    og.Model(str(result.folder))


def test_a_decoder_with_a_window_and_lengths_in_place_of_a_mask_is_calibrated(tmp_path: Path) -> None:
    """The chain of workflows for NPUs: no mask, and Phi-3's window, longer than the text."""
    sizes = {"max_position_embeddings": 128, "original_max_position_embeddings": 128, "sliding_window": 64}
    built = run_pass("ModelBuilder", decoder(tmp_path / "m", "Phi3", **sizes), tmp_path / "a", precision="fp32")
    surgeries = [{"surgeon": "RemoveRopeMultiCache"}, {"surgeon": "AttentionMaskToSequenceLengths"}]
    operated = run_pass("GraphSurgeries", built, tmp_path / "b", surgeries=surgeries)
    data = [Sample(f"t{n}", {"input_ids": RANDOM.integers(5, 90, n)}) for n in (4, 9)]
    types = {"activation_type": "uint16", "precision": "uint8", "op_types_to_exclude": ["GroupQueryAttention"]}
    result = quantize("OnnxStaticQuantization", operated, tmp_path / "job", data, **types)
    ids = RANDOM.integers(5, 90, (1, 8))
    lengths = {"past_seq_len": np.array([[7]], np.int32), "total_seq_len": np.array([8], np.int32)}
    nothing = np.zeros((1, 2, 0, 16), np.float32)
    past = {f"past_key_values.{n}.{part}": nothing for n in range(2) for part in ("key", "value")}
    batch = {"input_ids": ids, **lengths, **past}
    assert cosine(answers(result, batch)[0], answers(operated, batch)[0]) > 0.95


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"y": ROWS[0]}, "sample s of the calibration data has no input 'x'; it has none, the graph takes x"),
        ({"x": ROWS[0][:30]}, r"gives x the shape \[1, 30\]; the graph takes \['batch', 32\]"),
        ({"x": ROWS}, r"gives x the shape \[1, 16, 32\]"),
    ],
)
def test_data_that_do_not_fit_are_named(tmp_path: Path, sample: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quantize("OnnxStaticQuantization", mlp(tmp_path / "m"), tmp_path / "job", [Sample("s", sample)])


def test_data_are_asked_for_before_work() -> None:
    with pytest.raises(ValidationError, match="needs calibration data; name a data config as data_config"):
        OnnxStaticQuantizationConfig()
    with pytest.raises(ValidationError, match="or choose dynamic"):
        OnnxQuantizationConfig()
    with pytest.raises(ValidationError, match="int8 or uint8, not int16"):
        OnnxQuantizationConfig(quant_mode="dynamic", precision="int16")
    with pytest.raises(ValidationError, match="did you mean 'CalibMovingAverage'"):
        OnnxStaticQuantizationConfig(data_config="d", extra_options={"CalibMovingAvrage": True})
    with pytest.raises(ValidationError, match="which is not given; add user_script"):
        OnnxStaticQuantizationConfig(dataloader_func="load")


def test_a_users_reader_calibrates_after_consent(tmp_path: Path) -> None:
    script = tmp_path / "user_script.py"
    script.write_text(
        "import numpy as np\n"
        "class Reader:\n"
        "    def __init__(self, batch_size):\n"
        "        self.left = [{'x': np.ones((batch_size, 32), np.float32) * n} for n in range(3)]\n"
        "    def get_next(self):\n"
        "        return self.left.pop() if self.left else None\n"
        "def reader(data_dir, batch_size):\n"
        "    return Reader(batch_size)\n"
        "def batches(batch_size):\n"
        "    return [(np.ones((batch_size, 32), np.float32), 0)]\n"
    )
    source = mlp(tmp_path / "m")
    for number, function in enumerate(("reader", "batches")):
        config = {"user_script": "user_script.py", "dataloader_func": function, "batch_size": 2}
        context = make_context(
            tmp_path / f"job{number}", accelerator=CPU, allow=frozenset({"user-scripts"}), workflow_dir=tmp_path
        )
        run_pass("OnnxStaticQuantization", source, tmp_path, context=context, **config)
        assert context.report["calibration"]["batches"] == (3 if function == "reader" else 1)
    refused = make_context(tmp_path / "refused", accelerator=CPU, workflow_dir=tmp_path)
    with pytest.raises(ConfigError, match="--allow user-scripts"):
        run_pass("OnnxStaticQuantization", source, tmp_path, context=refused, **config)


def test_nothing_to_quantize_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="found nothing to quantize; the graph has Gemm, Relu"):
        quantize("OnnxStaticQuantization", mlp(tmp_path / "m"), tmp_path / "job", op_types_to_exclude=["Gemm", "Relu"])


def test_the_dynamic_way_is_the_dynamic_pass(tmp_path: Path) -> None:
    source = mlp(tmp_path / "m")
    ours = run_pass("OnnxQuantization", source, tmp_path / "a", quant_mode="dynamic", per_channel=True)
    plain = run_pass("OnnxDynamicQuantization", source, tmp_path / "b")
    assert ours.files == plain.files
    assert ours.attributes["quantization"] == "int8-dynamic"


def test_what_is_quantized_and_what_has_no_kernels_is_refused_before_work() -> None:
    registry = get_registry()
    static = registry.create("drupe_passes", "OnnxStaticQuantization")
    either = registry.create("drupe_passes", "OnnxQuantization")
    with pytest.raises(ConfigError, match="quantized already"):
        static.plan(
            ModelInfo("onnx", {"quantization": "int8-dynamic"}), OnnxStaticQuantizationConfig(data_config="d"), CPU
        )
    with pytest.raises(ConfigError, match="dynamic quantization is for CPUs"):
        either.plan(
            ModelInfo("onnx"), OnnxQuantizationConfig(quant_mode="dynamic"), Accelerator("npu", "QNNExecutionProvider")
        )


def test_a_fault_of_the_quantizer_is_one_message(tmp_path: Path) -> None:
    """In QOperator format it fails on fused attention, and what it says names no cause."""
    encoder = tiny_encoder(tmp_path / "encoder")
    plain = run_pass("OnnxConversion", encoder, tmp_path / "a", use_dynamo_exporter=False, target_opset=17)
    fused = run_pass("OrtTransformersOptimization", plain, tmp_path / "b")
    rows = {name: np.ones((8,), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    data = [Sample(f"s{index}", rows, content_key=f"k{index}") for index in range(2)]
    with pytest.raises(PassError, match=r"failed on this graph \(AttributeError: .*try quant_format: QDQ, or"):
        quantize("OnnxStaticQuantization", fused, tmp_path / "job", data, quant_format="QOperator")
