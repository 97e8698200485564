"""Weights in blocks: RTN, k-quant and HQQ give graphs that plain onnxruntime runs, near their source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.onnx.block_quantization import OnnxBlockWiseRtnQuantizationConfig
from drupe.testing import PassContract, tiny_onnx_mlp
from tests.plugins.onnx.graphs import CPU, answers, cosine, graph_file, kinds, run_pass

PASSES = ("OnnxBlockWiseRtnQuantization", "OnnxKQuantQuantization", "OnnxHqqQuantization")


def two_layers(folder: Path, width: int = 256, version: int = 17) -> Model:
    shapes = {"w1": (width, 256), "w2": (256, 32)}
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    weights = [numpy_helper.from_array(random.normal(0, 0.5, s).astype(np.float32), n) for n, s in shapes.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", shapes["w1"][0]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", shapes["w2"][1]])
    graph = helper.make_graph(nodes, "mlp", [x], [y], weights)
    folder.mkdir(parents=True)
    opset = helper.make_opsetid("", version)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), folder / "model.onnx")
    return Model.from_dir("onnx", folder, {"onnx_file": "model.onnx"})


class BlockContract(PassContract):
    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return two_layers(tmp_path / "model")


class TestRtn(BlockContract):
    name = "OnnxBlockWiseRtnQuantization"


class TestKQuant(BlockContract):
    name = "OnnxKQuantQuantization"


class TestHqq(BlockContract):
    name = "OnnxHqqQuantization"


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize(("bits", "least", "share"), [(4, 0.98, 0.25), (8, 0.9995, 0.4)])
def test_small_weights_and_near_answers(tmp_path: Path, name: str, bits: int, least: float, share: float) -> None:
    source = two_layers(tmp_path / "model")
    if (name, bits) == ("OnnxHqqQuantization", 8):
        with pytest.raises(ConfigError, match="with 4 bits only"):
            run_pass(name, source, tmp_path / "job", bits=bits)
        return
    small = run_pass(name, source, tmp_path / "job", bits=bits, block_size=32)
    assert kinds(small) == {"MatMulNBits": 2, "Relu": 1}
    x = {"x": np.random.default_rng(1).normal(size=(16, 256)).astype(np.float32)}
    assert least < cosine(answers(source, x)[0], answers(small, x)[0]) < 1
    assert graph_file(small).stat().st_size < share * graph_file(source).stat().st_size


@pytest.mark.parametrize("name", PASSES)
def test_an_excluded_node_stays(tmp_path: Path, name: str) -> None:
    source = two_layers(tmp_path / "model")
    small = run_pass(name, source, tmp_path / "a", block_size=32, nodes_to_exclude=["second"])
    assert kinds(small) == {"MatMulNBits": 1, "Relu": 1, "MatMul": 1}
    with pytest.raises(ConfigError, match="did you mean 'second'"):
        run_pass(name, source, tmp_path / "b", nodes_to_exclude=["secnd"])


@pytest.mark.parametrize("name", PASSES)
def test_nothing_to_quantize_and_a_quantized_graph_are_errors(tmp_path: Path, name: str) -> None:
    with pytest.raises(PassError, match="found nothing to quantize"):
        run_pass(name, tiny_onnx_mlp(tmp_path / "model"), tmp_path / "job")
    subject: Any = get_registry().create("drupe_passes", name)
    with pytest.raises(ConfigError, match="quantized already"):
        subject.plan(ModelInfo("onnx", {"quantization": "int8-dynamic"}), subject.Config(), CPU)


def test_what_is_not_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="4 bits only"):
        OnnxBlockWiseRtnQuantizationConfig(quant_format="QDQ", bits=8)
    with pytest.raises(ConfigError, match="need operator set 21, the graph has 17"):
        run_pass(PASSES[0], two_layers(tmp_path / "a"), tmp_path / "job", quant_format="QDQ")
    with pytest.raises(ConfigError, match=r"the 96 inputs of node 'first' make 3 blocks"):
        run_pass(PASSES[1], two_layers(tmp_path / "b", width=96), tmp_path / "other", block_size=32)


def test_qdq_keeps_standard_operators(tmp_path: Path) -> None:
    source = two_layers(tmp_path / "model", version=21)
    small = run_pass(PASSES[0], source, tmp_path / "job", quant_format="QDQ", block_size=32, is_symmetric=False)
    assert {"MatMul", "DequantizeLinear"} <= set(kinds(small))
    assert "MatMulNBits" not in kinds(small)
    x = {"x": np.random.default_rng(1).normal(size=(16, 256)).astype(np.float32)}
    assert 0.98 < cosine(answers(source, x)[0], answers(small, x)[0]) < 1
