"""OnnxConversion: graphs that plain onnxruntime loads, and that say what the source says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.onnx.conversion import OnnxConversionConfig
from drupe.testing import PassContract, make_context, tiny_causal_lm, tiny_encoder

CPU = Accelerator("cpu", "CPUExecutionProvider")


def conversion() -> Any:
    return get_registry().create("drupe_passes", "OnnxConversion")


def export(model: Model, folder: Path, **config: Any) -> Model:
    context = make_context(folder, accelerator=CPU)
    return conversion()(model, OnnxConversionConfig(**config), context).at(context.output_dir)


def outputs_of(kind: str, model: Model, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    runtime = get_registry().create("drupe_runtimes", kind)
    with runtime.open(model, CPU, runtime.options(CPU, {"threads": 1})) as session:
        return dict(session.forward(batch).outputs)


def text_batch(rows: int, length: int, *, types: bool) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    mask = np.ones((rows, length), dtype=np.int64)
    mask[0, length // 2 :] = 0
    batch = {"input_ids": random.integers(5, 90, (rows, length)), "attention_mask": mask}
    if types:
        batch["token_type_ids"] = np.zeros((rows, length), dtype=np.int64)
    return batch


class TestOnnxConversion(PassContract):
    name = "OnnxConversion"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_encoder(tmp_path / "model")


@pytest.mark.parametrize("config", [{}, {"use_dynamo_exporter": False, "target_opset": 17}])
@pytest.mark.parametrize("shape", [(1, 5), (3, 12)])
def test_an_encoder_gives_the_same_at_any_shape(tmp_path: Path, config: dict[str, Any], shape: tuple[int, int]) -> None:
    source = tiny_encoder(tmp_path / "model")
    graph = export(source, tmp_path / "job", **config)
    batch = text_batch(*shape, types=True)
    session = ort.InferenceSession(str(graph.folder / "model.onnx"))
    plain = session.run(["logits"], batch)[0]
    np.testing.assert_allclose(plain, outputs_of("hf", source, batch)["logits"], atol=1e-5)
    assert list(session.get_inputs()[0].shape) == ["batch", "sequence"]
    names = [node.name for node in onnx.load(str(graph.folder / "model.onnx")).graph.node]
    assert "/bert/encoder/layer.1/attention/self/query/MatMul" in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("config", [{}, {"use_dynamo_exporter": False, "target_opset": 17}])
def test_a_decoder_scores_as_its_source_does_at_any_shape(tmp_path: Path, config: dict[str, Any]) -> None:
    source = tiny_causal_lm(tmp_path / "model")
    graph = export(source, tmp_path / "job", **config)
    for shape in ((2, 9), (1, 1), (3, 20)):
        batch = text_batch(*shape, types=False)
        batch["attention_mask"][:] = 1
        for name, value in outputs_of("hf", source, batch).items():
            np.testing.assert_allclose(outputs_of("onnx", graph, batch)[name], value, atol=1e-4)


@pytest.mark.parametrize(
    ("told", "size"),
    [
        ({"size": {"height": 48, "width": 32}}, (48, 32)),
        ({"size": {"shortest_edge": 64}, "crop_size": {"height": 32, "width": 32}}, (32, 32)),
        ({"size": 40, "do_center_crop": False}, (40, 40)),
    ],
)
def test_convolutions_are_exported_at_the_size_that_the_processor_gives(
    tmp_path: Path, told: dict[str, Any], size: tuple[int, int]
) -> None:
    """Their own config has no size."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(told))
    attributes = {"task": "image-classification", "architecture": "ResNetForImageClassification"}
    source = Model.from_dir("hf", tmp_path / "model", attributes)
    graph = export(source, tmp_path / "job", use_dynamo_exporter=False, target_opset=17)
    session = ort.InferenceSession(str(graph.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    assert tuple(session.get_inputs()[0].shape[1:]) == (3, *size)


def test_nothing_of_this_machine_is_in_the_graph(tmp_path: Path) -> None:
    graph = export(tiny_encoder(tmp_path / "model"), tmp_path / "job")
    data = (graph.folder / "model.onnx").read_bytes()
    for trace in (b"site-packages", str(tmp_path).encode(), b"stack_trace"):
        assert trace not in data


def test_weights_can_lie_beside_the_graph(tmp_path: Path) -> None:
    graph = export(tiny_encoder(tmp_path / "model"), tmp_path / "job", save_as_external_data=True)
    assert (graph.folder / "model.onnx.data").exists()
    ort.InferenceSession(str(graph.folder / "model.onnx"))
    assert (graph.folder / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("attributes", "config", "message"),
    [
        ({"quantization": "gptq"}, {}, "quantized"),
        ({}, {"target_opset": 17, "use_dynamo_exporter": True}, "use_dynamo_exporter: false"),
    ],
)
def test_what_can_be_known_is_refused_before_work(
    attributes: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        conversion().plan(ModelInfo("hf", attributes), OnnxConversionConfig(**config), CPU)
