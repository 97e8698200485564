"""MatMulNBitsToQDQ: the standard operators say what MatMulNBits said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model
from drupe.testing import PassContract, tiny_causal_lm
from tests.plugins.onnx.graphs import answers, cosine, kinds, proto_of, run_pass, saved

X = np.random.default_rng(3).normal(size=(3, 96)).astype(np.float32)


def quantized(folder: Path, *, opset: int = 21, **config: Any) -> Model:
    w = np.random.default_rng(2).normal(size=(96, 48)).astype(np.float32)
    text = f"""<ir_version: 10, opset_import: ["" : {opset}]>
    g (float[N, 96] x) => (float[N, 48] y) {{ h = MatMul(x, w)  y = Tanh(h) }}"""
    source = saved(folder / "source", text, {"w": w})
    # Products in float32: with 8-bit activations MatMulNBits rounds where the standard operators don't.
    return run_pass("OnnxBlockWiseRtnQuantization", source, folder / "job", accuracy_level=1, **config)


class TestMatMulNBitsToQDQ(PassContract):
    name = "MatMulNBitsToQDQ"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return quantized(tmp_path / "model", block_size=32)


@pytest.mark.parametrize("config", [{}, {"use_transpose_op": True}, {"use_int4": True}, {"add_zero_point": True}])
@pytest.mark.parametrize(
    "scheme",
    [
        {"bits": 4, "block_size": 32, "is_symmetric": True},
        {"bits": 4, "block_size": 32, "is_symmetric": False},
        {"bits": 8, "block_size": 16, "is_symmetric": False},
        {"bits": 4, "block_size": 64, "is_symmetric": True},
    ],
)
def test_the_numbers_stay(tmp_path: Path, scheme: dict[str, Any], config: dict[str, Any]) -> None:
    source = quantized(tmp_path / "model", **scheme)
    result = run_pass("MatMulNBitsToQDQ", source, tmp_path / "job", **config)
    found = kinds(result)
    assert "MatMulNBits" not in found and found["DequantizeLinear"] == 1
    assert ("Transpose" in found) == bool(config.get("use_transpose_op"))
    # Fused again, onnxruntime takes activations of 8 bits for the products.
    np.testing.assert_allclose(answers(result, {"x": X}, as_written=True)[0], answers(source, {"x": X})[0], atol=1e-4)
    types = {tensor.data_type for tensor in proto_of(result).graph.initializer}
    signed = "" if config.get("use_int4") else "U"
    assert onnx.TensorProto.DataType.Value(f"{signed}INT{scheme['bits']}") in types


def test_zero_points_are_written_where_they_are_needed_or_wanted(tmp_path: Path) -> None:
    source = quantized(tmp_path / "model", block_size=32, is_symmetric=True)

    def inputs(folder: str, **config: bool) -> int:
        result = run_pass("MatMulNBitsToQDQ", source, tmp_path / folder, **config)
        return next(len(node.input) for node in proto_of(result).graph.node if node.op_type == "DequantizeLinear")

    assert inputs("a", use_int4=True) == 2
    assert inputs("b", use_int4=True, add_zero_point=True) == 3
    assert inputs("c") == 3


def test_nodes_can_stay_and_must_be_there(tmp_path: Path) -> None:
    source = quantized(tmp_path / "model", block_size=32)
    name = next(node.name for node in proto_of(source).graph.node if node.op_type == "MatMulNBits")
    with pytest.raises(PassError, match="found no MatMulNBits node"):
        run_pass("MatMulNBitsToQDQ", source, tmp_path / "a", nodes_to_exclude=[name])
    with pytest.raises(ConfigError, match=f"did you mean '{name}'"):
        run_pass("MatMulNBitsToQDQ", source, tmp_path / "b", nodes_to_exclude=[name[:-1]])


def test_an_older_operator_set_is_told_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="OnnxOpVersionConversion with target_opset 21"):
        run_pass("MatMulNBitsToQDQ", quantized(tmp_path / "model", opset=17, block_size=32), tmp_path / "job")


def test_a_decoder_for_genai_still_runs_there(tmp_path: Path) -> None:
    import onnxruntime_genai as og

    source = tiny_causal_lm(tmp_path / "model", hidden_size=128, intermediate_size=256)
    built = run_pass("ModelBuilder", source, tmp_path / "a", precision="int4", algo_config="rtn", accuracy_level=1)
    result = run_pass("MatMulNBitsToQDQ", built, tmp_path / "b", use_int4=True)
    assert result.kind == "genai" and "MatMulNBits" not in kinds(result)
    logits = []
    for model in (built, result):
        loaded = og.Model(str(model.folder))
        parameters = og.GeneratorParams(loaded)
        parameters.set_search_options(max_length=16)
        generator = og.Generator(loaded, parameters)
        generator.append_tokens(np.arange(40, 50, dtype=np.int32))
        logits.append(np.asarray(generator.get_output("logits")))
    assert cosine(*logits) > 0.995
