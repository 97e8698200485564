"""QuantizationAwareTraining on small networks: the graph that comes of it, and what it learned."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.quantization.qat.preparing import Recipe, Scheme, finish, prepare
from drupe.plugins.quantization.qat.quantizers import Grid
from drupe.testing import PassContract, make_context
from tests.plugins.quantization.qat.networks import (
    CONSENT,
    CPU,
    GROUPS,
    RESIDUAL,
    accuracy,
    graph_call,
    network,
    residual,
    samples,
    source,
    take,
    torch_call,
    train,
    trained,
)
from tests.support.vision import HELD_OUT, digits

PICTURES = digits()[0][-HELD_OUT:]


@pytest.fixture(scope="module")
def plain() -> Any:
    return trained(network())


@pytest.fixture(scope="module")
def model(plain: Any, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return source(plain, tmp_path_factory.mktemp("plain"))


def plain_call(module: Any) -> Any:
    def call(pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = module(torch.from_numpy(pictures)).numpy()
        return found

    return call


def graph_of(made: Model) -> Any:
    return onnx.load(str(made.folder / "model.onnx"))


def optimized(made: Model, folder: Path) -> Counter[str]:
    """Count the operators that ONNX Runtime really runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(made.folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(str(folder / "optimized.onnx")).graph.node)


@pytest.mark.parametrize("opset", [17, 20])
def test_the_graph_is_integer_and_tells_what_the_trained_module_tells(
    opset: int, plain: Any, model: Model, tmp_path: Path
) -> None:
    made, context = train(model, tmp_path / "q", num_epochs=1, modules_to_fuse=GROUPS)
    graph, _ = take("OnnxConversion", made, tmp_path / "o", {"target_opset": opset})
    ours, theirs = torch_call(made, context)(PICTURES), graph_call(graph)(PICTURES)
    assert (ours.argmax(1) == theirs.argmax(1)).all()
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(ours).max()
    assert accuracy(graph_call(graph)) >= accuracy(plain_call(plain)) - 0.01
    proto = graph_of(graph)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    makers = {node.output[0]: node for node in proto.graph.node}
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert not kinds["BatchNormalization"]
    assert kinds["QuantizeLinear"] == 3
    for layer in (node for node in proto.graph.node if node.op_type in ("Conv", "Gemm")):
        _, weight, bias = (makers[name] for name in layer.input)
        assert tensors[weight.input[0]].data_type == onnx.TensorProto.INT8
        assert list(tensors[weight.input[1]].dims) == [tensors[weight.input[0]].dims[0]]
        assert tensors[bias.input[0]].data_type == onnx.TensorProto.INT32
    run = optimized(graph, tmp_path)
    assert run["QLinearConv"] == 2
    assert not run["Conv"] and not run["Gemm"]


def test_folding_changes_nothing_and_finds_batch_norms_by_itself(tmp_path: Path) -> None:
    module = trained(residual(), epochs=2)
    # A ResNet block: names count in the block that has them, the stem is found by following a call.
    made, context = train(
        source(module, tmp_path / "s", RESIDUAL), tmp_path / "q", num_steps=1, learning_rate=1e-9,
        modules_to_fuse=GROUPS, activation_bits=None, weight_bits=8,
    )  # fmt: skip
    report = context.report["quantization_aware_training"]
    pairs = {("block.conv1", "block.bn1"), ("block.conv2", "block.bn2"), ("stem", "stem_bn")}
    assert {tuple(pair) for pair in report["fused"]} == pairs
    ours, theirs = torch_call(made, context)(PICTURES), plain_call(module)(PICTURES)
    # Eight bits for a weight move a logit by some hundredths; a batch norm left out would move it by whole numbers.
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()


def test_batch_norms_learn_on_and_are_folded_at_the_end(tmp_path: Path) -> None:
    """A network that is hardly trained, and steps that are too large where nothing keeps activations in bounds."""
    model = source(trained(residual(), epochs=1), tmp_path / "s", RESIDUAL)
    told = {}
    for freeze in (False, True):
        config = {"num_epochs": 3, "learning_rate": 1e-2, "freeze_batch_norm": freeze}
        made, context = train(model, tmp_path / f"q{freeze}", **config)
        assert len(context.report["quantization_aware_training"]["fused"]) == 3
        graph, _ = take("OnnxConversion", made, tmp_path / f"o{freeze}", {"target_opset": 20})
        assert "BatchNormalization" not in {node.op_type for node in graph_of(graph).graph.node}
        ours, theirs = torch_call(made, context)(PICTURES), graph_call(graph)(PICTURES)
        assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.99
        told[freeze] = accuracy(graph_call(graph))
    assert told[False] > told[True] + 0.08


def test_norms_switch_channels_off_turn_signs_and_meet_single_samples(tmp_path: Path) -> None:
    """The second batch of an epoch is one picture, of which a norm behind pooling sees one value a channel."""
    parts = [
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(8, 8, 1),
        torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(8, 10),
    ]  # fmt: skip
    module = trained(torch.nn.Sequential(*parts), epochs=1)
    with torch.no_grad():
        module[4].weight[:3] = torch.tensor([0.0, -1.0, 1e-9])
    model = source(module, tmp_path / "s")
    made, context = train(model, tmp_path / "q", samples(51), train_batch_size=50, num_epochs=2)
    assert context.report["quantization_aware_training"]["fused"] == [["3", "4"]]
    found = torch_call(made, context)(PICTURES)
    assert np.isfinite(found).all()
    graph, _ = take("OnnxConversion", made, tmp_path / "o", {"target_opset": 20})
    assert np.abs(found - graph_call(graph)(PICTURES)).max() < 0.02 * np.abs(found).max()


@pytest.mark.parametrize(
    ("layer", "shape", "why"),
    [
        (lambda: weight_norm(torch.nn.Conv1d(6, 7, 1)), (3, 6, 7), "0's weight is parametrized"),
        (lambda: spectral_norm(torch.nn.Conv1d(6, 7, 1)), (3, 6, 7), "0's weight is parametrized"),
        (lambda: torch.nn.Linear(6, 7), (3, 7, 6), "1 normalizes another axis than that of 0's outputs"),
    ],
)
def test_norms_that_can_not_be_folded_stay(layer: Any, shape: tuple[int, ...], why: str) -> None:
    def made() -> Any:
        parts = [layer(), torch.nn.BatchNorm1d(7), torch.nn.Flatten(), torch.nn.Linear(49, 4)]
        return torch.nn.Sequential(*parts)

    module, inputs = made(), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    scheme = Scheme(Grid.of_weights(8, True), None)
    recipe, _ = prepare(module, inputs, scheme)
    assert not recipe.fused and "3" in recipe.weights
    module.train()(inputs)
    assert isinstance(finish(module, recipe), Recipe) and isinstance(module[1], torch.nn.BatchNorm1d)
    with pytest.raises(ConfigError, match=f"modules_to_fuse.0: {why}"):
        prepare(made(), inputs, scheme, groups=[["0", "1"]])


def test_a_sum_of_two_branches_runs_on_integer_convolutions(tmp_path: Path) -> None:
    module = trained(residual(), epochs=2)
    made, context = train(source(module, tmp_path / "s", RESIDUAL), tmp_path / "q", num_epochs=1)
    graph, _ = take("OnnxConversion", made, tmp_path / "o", {"target_opset": 20})
    ours, theirs = torch_call(made, context), graph_call(graph)
    assert (ours(PICTURES).argmax(1) == theirs(PICTURES).argmax(1)).mean() > 0.99
    assert accuracy(theirs) >= accuracy(plain_call(module)) - 0.02
    run = optimized(graph, tmp_path)
    assert run["QLinearConv"] == 3 and not run["Conv"]


def test_training_makes_up_for_what_few_bits_take(model: Model, plain: Any, tmp_path: Path) -> None:
    few = {"weight_bits": 2, "num_epochs": 6}
    learned, context = train(model, tmp_path / "learned", **few)
    rounded, other = train(model, tmp_path / "rounded", **{**few, "learning_rate": 1e-12, "num_epochs": 1})
    ours, theirs = accuracy(torch_call(learned, context)), accuracy(torch_call(rounded, other))
    assert ours >= accuracy(plain_call(plain)) - 0.03
    assert ours > theirs + 0.02


def test_four_bits_are_at_least_as_good_as_static_quantization(model: Model, tmp_path: Path) -> None:
    made, _ = train(model, tmp_path / "q", weight_bits=4)
    ours, _ = take("OnnxConversion", made, tmp_path / "o", {"target_opset": 17})
    exported, _ = take("OnnxConversion", model, tmp_path / "f", {"target_opset": 21})
    config = {"data_config": "train", "precision": "int4", "per_channel": True}
    theirs, _ = take("OnnxStaticQuantization", exported, tmp_path / "s", config, samples(200))
    assert accuracy(graph_call(ours)) >= accuracy(graph_call(theirs))
    weights = [onnx.numpy_helper.to_array(t) for t in graph_of(ours).graph.initializer if t.data_type == 3]
    assert max(int(np.abs(array).max()) for array in weights) == 7


def test_matrix_products_on_sequences_have_whole_number_weights(tmp_path: Path) -> None:
    script = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 10)

    def forward(self, rows):
        return self.second(self.first(rows).relu()).mean(1)

def load(path):
    torch.manual_seed(0)
    return Net()
"""
    told = {"input_names": ["input"], "input_shapes": [[2, 8, 8]], "output_names": ["output"]}
    rows = [type(s)(s.id, {"rows": s.inputs["input"][0]}, s.target, s.content_key) for s in samples(64)]
    made, context = train(source(None, tmp_path / "s", script, io_config=told), tmp_path / "q", rows, num_epochs=1)
    for opset in (17, 20):
        graph, _ = take("OnnxConversion", made, tmp_path / f"o{opset}", {"target_opset": opset})
        ours, theirs = torch_call(made, context)(PICTURES[:2, 0]), graph_call(graph)(PICTURES[:2, 0])
        np.testing.assert_allclose(ours, theirs, atol=0.02)
        kinds = Counter(node.op_type for node in graph_of(graph).graph.node)
        assert not kinds["Transpose"]
        assert sum(t.data_type == 3 and len(t.dims) == 2 for t in graph_of(graph).graph.initializer) == 2


def test_layers_can_stay_in_float(model: Model, tmp_path: Path) -> None:
    made, context = train(model, tmp_path / "q", num_steps=1, modules_to_exclude=["fc"])
    assert context.report["quantization_aware_training"]["left_in_float"] == {"fc": "excluded"}
    graph, _ = take("OnnxConversion", made, tmp_path / "o", {"target_opset": 17})
    assert sum(t.data_type == 3 and len(t.dims) > 1 for t in graph_of(graph).graph.initializer) == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target_opset": 20, "torch_dtype": "float16"}, "hold for float32"),
        ({"target_opset": 12}, "need opset 13"),
    ],
)
def test_the_export_refuses_what_the_scales_do_not_survive(config: dict[str, Any], message: str) -> None:
    conversion = get_registry().create("drupe_passes", "OnnxConversion")
    with pytest.raises(ConfigError, match=message):
        conversion.plan(ModelInfo("pytorch", {"quantization": "qat"}), conversion.Config(**config), CPU)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"quantization": "qat"}, "trains float models"),
        ({"model_file_format": "PyTorch.ExportedProgram"}, "ExportedProgram does not allow"),
        ({"adapter": "adapter"}, "MergeAdapterWeights"),
    ],
)
def test_what_can_not_be_trained_is_told_before_work(attributes: dict[str, Any], message: str) -> None:
    chosen = get_registry().create("drupe_passes", "QuantizationAwareTraining")
    config = chosen.Config(train_data_config="train")
    with pytest.raises(ConfigError, match=message):
        chosen.plan(ModelInfo("pytorch", attributes), config, CPU)


@pytest.mark.slow
@pytest.mark.real_run("QuantizationAwareTraining", "OnnxConversion")
def test_a_vision_model_of_hugging_face(digits_vit_dir: Path, tmp_path: Path) -> None:
    from drupe.plugins.huggingface.loading import load_model

    given = Model.from_dir("hf", digits_vit_dir, {"task": "image-classification"})
    rows = [type(s)(s.id, {"pixel_values": s.inputs["input"]}, s.target, s.content_key) for s in samples()]
    made, _ = train(given, tmp_path / "q", rows, num_epochs=1, learning_rate=3e-4)
    graph, _ = take("OnnxConversion", made, tmp_path / "o", {"target_opset": 20})

    def hugging_face(model: Model) -> Any:
        loaded = load_model(model)

        def call(pictures: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                found: np.ndarray = loaded(pixel_values=torch.from_numpy(pictures)).logits.numpy()
            return found

        return call

    session = ort.InferenceSession(str(graph.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    exported = accuracy(lambda pictures: session.run(["logits"], {"pixel_values": pictures})[0])
    assert exported == pytest.approx(accuracy(hugging_face(made)), abs=0.005)
    assert exported >= accuracy(hugging_face(given)) - 0.02
    # All products of the layers; those of attention itself have no weights.
    run = optimized(graph, tmp_path)
    assert run["MatMulIntegerToFloat"] == 12 and run["QLinearConv"] == 1


class TestContract(PassContract):
    """The contract of every pass; equal work gives equal files among it."""

    name = "QuantizationAwareTraining"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return source(network(4), tmp_path / "source")

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"train_data_config": "train", "num_steps": 2}

    @pytest.fixture
    def data(self) -> dict[str, Any]:
        return {"train": samples(64)}

    def context(self, folder: Path, accelerator: Any, data: dict[str, Any], **fields: Any) -> Any:
        return make_context(folder, accelerator=accelerator, data=data, **{"allow": CONSENT, **fields})
