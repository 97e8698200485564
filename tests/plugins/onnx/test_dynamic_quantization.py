"""OnnxDynamicQuantization and the onnx runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, EvaluationError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.onnx.dynamic_quantization import OnnxDynamicQuantizationConfig
from drupe.testing import PassContract, RuntimeContract, make_context, tiny_onnx_cnn, tiny_onnx_mlp

CPU = Accelerator("cpu", "CPUExecutionProvider")


def quantize(model: Model, folder: Path, **config: Any) -> Model:
    context = make_context(folder, accelerator=CPU)
    quantizer = get_registry().create("drupe_passes", "OnnxDynamicQuantization")
    return quantizer(model, OnnxDynamicQuantizationConfig(**config), context).at(context.output_dir)


def graph(model: Model) -> Path:
    return next(model.folder.glob("*.onnx"))


class TestOnnxDynamicQuantization(PassContract):
    name = "OnnxDynamicQuantization"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_onnx_mlp(tmp_path / "model")


class TestOnnxRuntime(RuntimeContract):
    name = "onnx"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_onnx_cnn(tmp_path / "model")


@pytest.mark.parametrize("precision", ["int8", "QUInt8"])
def test_weights_have_8_bits_and_the_answers_stay_near(tmp_path: Path, precision: str) -> None:
    source = tiny_onnx_mlp(tmp_path / "model", features=32, hidden=64)
    quantized = quantize(source, tmp_path / "job", precision=precision)
    kinds = {tensor.data_type for tensor in onnx.load(str(graph(quantized))).graph.initializer}
    assert (onnx.TensorProto.INT8 if precision == "int8" else onnx.TensorProto.UINT8) in kinds
    x = np.random.default_rng(1).normal(size=(16, 32)).astype(np.float32)
    before, after = (ort.InferenceSession(str(graph(m))).run(None, {"x": x})[0] for m in (source, quantized))
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.99
    assert np.abs(before - after).max() > 0


def test_a_node_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no node 'secnd'; did you mean 'second'"):
        quantize(tiny_onnx_mlp(tmp_path / "model"), tmp_path / "job", nodes_to_exclude=["secnd"])


def test_nothing_to_quantize_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="found nothing to quantize"):
        quantize(tiny_onnx_mlp(tmp_path / "model"), tmp_path / "job", op_types_to_quantize=["LSTM"])


def test_a_quantized_graph_and_another_device_are_refused_before_work() -> None:
    quantizer = get_registry().create("drupe_passes", "OnnxDynamicQuantization")
    config = OnnxDynamicQuantizationConfig()
    with pytest.raises(ConfigError, match="quantized already"):
        quantizer.plan(ModelInfo("onnx", {"quantization": "int8-dynamic"}), config, CPU)
    with pytest.raises(ConfigError, match="for CPUs"):
        quantizer.plan(ModelInfo("onnx"), config, Accelerator("gpu", "CUDAExecutionProvider"))


def test_a_batch_that_does_not_fit_the_graph_is_named(tmp_path: Path) -> None:
    runtime = get_registry().create("drupe_runtimes", "onnx")
    model = tiny_onnx_mlp(tmp_path / "model")
    with runtime.open(model, CPU, runtime.options(CPU, {"threads": 1})) as session:
        with pytest.raises(EvaluationError, match="lacks x"):
            session.forward({})
        with pytest.raises(EvaluationError, match="has y, which the graph lacks"):
            session.forward({"x": np.ones((1, 8)), "y": np.ones(1)})
    with pytest.raises(ConfigError, match="unknown runtime option"):
        runtime.options(CPU, {"thread": 1})


def test_the_provider_is_opened_with_its_own_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the memory, nor with the mapping that holds the options in a workflow."""
    asked: list[Any] = []
    real = ort.InferenceSession

    def noting(*arguments: Any, **named: Any) -> Any:
        asked.extend(named["providers"])
        return real(*arguments, **named)

    monkeypatch.setattr(ort, "InferenceSession", noting)
    options = {"provider_options": {"device_id": "0"}, "memory": "4GB"}
    accelerator = Accelerator("cpu", "CPUExecutionProvider", options)
    runtime = get_registry().create("drupe_runtimes", "onnx")
    runtime.open(tiny_onnx_mlp(tmp_path / "model"), accelerator, {}).close()
    assert asked == [("CPUExecutionProvider", {"device_id": "0"})]
