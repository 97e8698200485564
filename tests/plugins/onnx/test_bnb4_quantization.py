"""OnnxBnb4Quantization: graphs that plain onnxruntime runs, on the grids that bitsandbytes has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.onnx.bnb4_quantization import OnnxBnb4QuantizationConfig
from drupe.testing import PassContract, tiny_onnx_mlp
from tests.plugins.onnx.graphs import CPU, answers, cosine, graph_file, kinds, proto_of, run_pass

NAME = "OnnxBnb4Quantization"


def layers(folder: Path, *, width: int = 256, shared: bool = False) -> Model:
    """Products of layers named as exporters name them; shared: both multiply by one weight."""
    random = np.random.default_rng(0)
    second = "w1" if shared else "w2"
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="/model/layers.0/mlp/up_proj/MatMul"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", second], ["y"], name="/model/layers.0/mlp/down_proj/MatMul"),
    ]
    weights = {"w1": (width, width), **({} if shared else {"w2": (width, 32)})}
    tensors = [numpy_helper.from_array(random.normal(0, 0.5, s).astype(np.float32), n) for n, s in weights.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width if shared else 32])
    graph = helper.make_graph(nodes, "mlp", [x], [y], tensors)
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return Model.from_dir("onnx", folder, {"onnx_file": "model.onnx"})


def rows(width: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(16, width)).astype(np.float32)}


class TestOnnxBnb4Quantization(PassContract):
    name = NAME

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return layers(tmp_path / "model")


@pytest.mark.parametrize(("quant_type", "least"), [("nf4", 0.99), ("fp4", 0.98)])
@pytest.mark.parametrize(("width", "block"), [(256, 64), (256, 32), (96, 64)])
def test_small_weights_and_near_answers(tmp_path: Path, quant_type: str, least: float, width: int, block: int) -> None:
    source = layers(tmp_path / "model", width=width)
    small = run_pass(NAME, source, tmp_path / "job", quant_type=quant_type, block_size=block)
    assert kinds(small) == {"MatMulBnb4": 2, "Relu": 1}
    assert least < cosine(answers(source, rows(width))[0], answers(small, rows(width))[0]) < 1
    assert graph_file(small).stat().st_size < 0.25 * graph_file(source).stat().st_size
    assert small.attributes["quantization"] == quant_type


def test_the_weights_are_those_of_bitsandbytes(tmp_path: Path) -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    source = layers(tmp_path / "model")
    small = run_pass(NAME, source, tmp_path / "job", quantized_modules=["up_proj"])
    weights = numpy_helper.to_array(next(t for t in proto_of(source).graph.initializer if t.name == "w1"))
    packed, state = quantize_4bit(torch.from_numpy(weights.T.copy()), blocksize=64, quant_type="nf4")
    theirs = dequantize_4bit(packed, state).numpy().T
    hidden = np.maximum(rows(256)["x"] @ theirs, 0)
    down = numpy_helper.to_array(next(t for t in proto_of(source).graph.initializer if t.name == "w2"))
    np.testing.assert_allclose(answers(small, rows(256))[0], hidden @ down, rtol=1e-3, atol=1e-2)


def test_layers_can_be_chosen_or_left(tmp_path: Path) -> None:
    source = layers(tmp_path / "model")
    chosen = run_pass(NAME, source, tmp_path / "a", quantized_modules=["mlp.down_proj"])
    assert {n.op_type for n in proto_of(chosen).graph.node if "down_proj" in n.name} == {"MatMulBnb4"}
    left = run_pass(NAME, source, tmp_path / "b", nodes_to_exclude=["/model/layers.0/mlp/down_proj/MatMul"])
    assert {n.op_type for n in proto_of(left).graph.node if "down_proj" in n.name} == {"MatMul"}
    with pytest.raises(ConfigError, match=r"no MatMul belongs to 'q_proj'; the graph's are named /model/layers.0/mlp"):
        run_pass(NAME, source, tmp_path / "c", quantized_modules=["q_proj"])
    with pytest.raises(ConfigError, match="did you mean"):
        run_pass(NAME, source, tmp_path / "d", nodes_to_exclude=["/model/layers.0/mlp/down_proj/Matmul"])


def test_a_weight_that_two_products_share_is_quantized_once(tmp_path: Path) -> None:
    source = layers(tmp_path / "model", shared=True)
    small = run_pass(NAME, source, tmp_path / "job")
    assert len(proto_of(small).graph.initializer) == 2
    assert cosine(answers(source, rows(256))[0], answers(small, rows(256))[0]) > 0.98


def test_nothing_to_quantize_and_a_quantized_graph_are_errors(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="found nothing to quantize"):
        run_pass(NAME, tiny_onnx_mlp(tmp_path / "model"), tmp_path / "job")
    subject = get_registry().create("drupe_passes", NAME)
    with pytest.raises(ConfigError, match="quantized already"):
        subject.plan(ModelInfo("onnx", {"quantization": "int8-dynamic"}), OnnxBnb4QuantizationConfig(), CPU)
