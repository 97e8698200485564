"""The ways of training: the built-in loop, a user's own, Lightning; and what is told of bad input."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, Interrupted, PassError
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.plugins.quantization.qat import lightning
from drupe.plugins.quantization.qat.config import QuantizationAwareTrainingConfig
from drupe.plugins.quantization.qat.quantizers import Grid, Quantizer, WeightQuantizer
from drupe.testing import make_context
from tests.plugins.quantization.qat.networks import (
    CONSENT,
    CPU,
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

SCRIPT = """
import copy
import torch
from torch.ao.quantization import FakeQuantize, MinMaxObserver, MovingAverageMinMaxObserver, QConfig
from torch.ao.quantization import default_fake_quant, default_weight_fake_quant

def data():
    from tests.support.vision import digits
    pictures, classes = digits()
    return torch.from_numpy(pictures[:600]), torch.from_numpy(classes[:600])

def loader(data_dir, batch_size):
    assert data_dir.endswith("digits")
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=batch_size, shuffle=True)

def generated(folder, size):
    pictures, classes = data()
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size], classes[start : start + size]

def mappings(folder, size):
    return [{"input": x, "labels": y} for x, y in generated(folder, size)]

def empty(folder, size):
    return []

def no_labels(folder, size):
    return [data()[0][:8]]

def poisoned(folder, size):
    pictures, classes = data()
    batches = list(zip(pictures.split(50), classes.split(50)))
    batches[3][0][:] = float("nan")
    return batches

def broken(folder, size):
    raise OSError("the disk is gone")

def fit(model, steps=6):
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    pictures, classes = data()
    for step in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pictures[:50]), classes[:50]).backward()
        optimizer.step()

def own(model):
    fit(model)

def own_copy(model, num_epochs):
    model = copy.deepcopy(model)
    fit(model, num_epochs)
    return model

def own_synced(model):
    fit(model, 3)
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    fit(model, 3)
    return model

def own_batches(model, train_dataloader):
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for pictures, classes in train_dataloader:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pictures), classes).backward()
        optimizer.step()

def own_other(model):
    return torch.nn.Linear(2, 2)

def own_number(model):
    return 3

def own_nothing(model):
    return model

def own_infinite(model):
    fit(model, 1)
    with torch.no_grad():
        next(model.parameters()).fill_(float("inf"))

def margin(outputs, labels):
    return torch.nn.functional.multi_margin_loss(outputs, labels)

def per_row(outputs, labels):
    return outputs[:, 0]

def coarse():
    fake = FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=15, reduce_range=False)
    return QConfig(activation=fake, weight=default_weight_fake_quant)

def unsigned():
    return QConfig(activation=default_fake_quant, weight=default_fake_quant)

def no_qconfig():
    return "fbgemm"
"""
FUNCTIONS = {"train_dataloader_func": "loader", "train_data_dir": "digits", "train_batch_size": 100, "num_epochs": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return source(trained(network(4), epochs=2), tmp_path_factory.mktemp("plain"))


def functions(model: Model, folder: Path, **config: Any) -> Any:
    """Train on batches of a function of the script, unless the config names another way."""
    own = {} if "training_loop_func" in config or "ptl_module" in config else FUNCTIONS
    return train(model, folder, script=SCRIPT, **{**own, **config})


def report_of(context: Any) -> Any:
    return context.report["quantization_aware_training"]


@pytest.mark.parametrize("name", ["loader", "generated", "mappings"])
def test_batches_of_the_users_function_train(name: str, model: Model, tmp_path: Path) -> None:
    made, context = functions(model, tmp_path / "q", train_dataloader_func=name, num_epochs=2)
    report = report_of(context)
    assert report["steps"] == 12
    assert report["losses"][1] < report["losses"][0]
    assert accuracy(torch_call(made, context)) > 0.8


def test_the_number_of_steps_ends_the_training(model: Model, tmp_path: Path) -> None:
    _, context = functions(model, tmp_path / "q", num_epochs=None, num_steps=8)
    assert report_of(context)["steps"] == 8


def test_validation_and_checkpoints(model: Model, tmp_path: Path) -> None:
    _, context = functions(
        model,
        tmp_path / "q",
        do_validate=True,
        val_dataloader_func="generated",
        checkpoint_path="kept",
        optimizer="sgd",
    )
    found = report_of(context)["validation"]
    assert 0.8 < found["accuracy"] <= 1 and found["loss"] > 0
    assert [path.name for path in (tmp_path / "q" / "kept").iterdir()] == ["epoch-1.pt"]


def test_a_loss_of_the_users(model: Model, tmp_path: Path) -> None:
    _, context = functions(model, tmp_path / "q", loss_func="margin")
    assert 0 < report_of(context)["losses"][0] < 0.5
    with pytest.raises(ConfigError, match=r"loss_func returned float32 \[100\]; expected a tensor of one value"):
        functions(model, tmp_path / "r", loss_func="per_row")


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("own", {}),
        ("own_copy", {"num_epochs": 4}),
        ("own_synced", {}),
        ("own_batches", {"train_data_config": "train"}),
    ],
)
def test_a_loop_of_the_users(name: str, steps: Any, model: Model, tmp_path: Path) -> None:
    made, context = functions(model, tmp_path / "q", training_loop_func=name, **steps)
    graph, _ = take("OnnxConversion", made, tmp_path / "o", {"target_opset": 17})
    assert accuracy(graph_call(graph)) == accuracy(torch_call(made, context)) > 0.6


def test_grids_of_the_users(model: Model, tmp_path: Path) -> None:
    import onnx

    made, context = functions(model, tmp_path / "q", qconfig_func="coarse")
    graph, _ = take("OnnxConversion", made, tmp_path / "o", {"target_opset": 17})
    proto = onnx.load(str(graph.folder / "model.onnx"))
    weights = [tensor for tensor in proto.graph.initializer if tensor.data_type == 3 and len(tensor.dims) > 1]
    scales = {node.input[0]: node.input[1] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    sizes = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    # The QConfig's weights have one scale each, and its activations sixteen values.
    assert len(weights) == 3
    assert all(sizes[scales[tensor.name]] in ([], [1]) for tensor in weights)
    values = np.unique(first_activation(proto))
    assert len(values) <= 16
    assert accuracy(torch_call(made, context)) > 0.8


def first_activation(proto: Any) -> np.ndarray:
    """Return what the first DequantizeLinear of an activation gives for some digits."""
    import onnx
    import onnxruntime as ort

    quantized = {node.output[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    name = next(node.output[0] for node in proto.graph.node if quantized.intersection(node.input[:1]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    pictures = np.stack([sample.inputs["input"] for sample in samples(20)])
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run([name], {"input": pictures})[0]
    return found


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"train_dataloader_func": "gone"}, ConfigError, "user_script.py defines no gone"),
        ({"train_dataloader_func": "empty"}, ConfigError, "train_dataloader_func gives no batches"),
        ({"train_dataloader_func": "no_labels"}, ConfigError, "is a Tensor; expected a pair of inputs and labels"),
        ({"train_dataloader_func": "broken"}, PassError, "failed: OSError: the disk is gone"),
        (
            {"train_dataloader_func": "poisoned"},
            PassError,
            r"the loss is nan at step 4 \(epoch 1\); lower learning_rate",
        ),
        (
            {"modules_to_fuse": [["conv1", "bn3"]]},
            ConfigError,
            r"modules_to_fuse.0: .* no module bn3 \(did you mean bn",
        ),
        ({"modules_to_fuse": [["conv1", "fc"]]}, ConfigError, r"conv1 \(Conv2d\), fc \(Linear\) can't be fused"),
        ({"modules_to_fuse": [["conv1", "bn2"]]}, ConfigError, "bn2 is not what takes conv1's output"),
        ({"modules_to_exclude": ["conv9"]}, ConfigError, "modules_to_exclude: the model has no module conv9"),
        ({"modules_to_exclude": ["conv1", "conv2", "fc"]}, ConfigError, "no layer to quantize"),
        (
            {"input_shapes": [[1, 3, 8, 8]]},
            ConfigError,
            r"can't be called with the example inputs \(input \[1, 3, 8, 8\]\)",
        ),
        ({"qconfig_func": "unsigned"}, ConfigError, "expected signed ones around zero"),
        ({"qconfig_func": "no_qconfig"}, ConfigError, "returned str; expected a torch.ao.quantization.QConfig"),
        ({"training_loop_func": "own_other"}, PassError, "is not the one that was prepared"),
        ({"training_loop_func": "own_number"}, ConfigError, "is int; expected the trained torch.nn.Module"),
        ({"training_loop_func": "own_nothing"}, PassError, "showed no batch to the model in training mode"),
        ({"training_loop_func": "own_infinite"}, PassError, "holds values that are not finite"),
    ],
)
def test_bad_input_is_one_message(
    config: dict[str, Any], kind: type[Exception], message: str, model: Model, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        functions(model, tmp_path / "q", **config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "nothing to train on"),
        ({"train_dataloader_func": "f"}, "functions of a user_script, but none is named"),
        ({"train_data_config": "d", "train_dataloader_func": "f", "user_script": "s.py"}, "not both"),
        ({"train_data_config": "d", "pl_extra_args": {"devices": 1}}, "is for Lightning, which ptl_module switches on"),
        ({"train_data_config": "d", "do_validate": True}, "do_validate needs val_data_config"),
        ({"train_data_config": "d", "val_data_config": "e"}, "are read with do_validate: true only"),
        ({"ptl_module": "M", "user_script": "s.py", "learning_rate": 0.1}, "ptl_module does that itself"),
        ({"train_data_config": "d", "num_steps": 0}, "num_steps 0 trains nothing"),
        ({"training_loop_func": "f", "loss_func": "g", "user_script": "s.py"}, "is for the built-in loop"),
        ({"train_data_config": "d", "weight_bits": 16}, "less than or equal to 8"),
    ],
)
def test_what_does_not_fit_together_is_told_before_work(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        QuantizationAwareTrainingConfig.model_validate(config)


def test_data_without_samples_or_labels(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train_data_config train has no samples"):
        train(model, tmp_path / "a", [])
    unlabelled = [type(s)(s.id, s.inputs, None, s.content_key) for s in samples(4)]
    with pytest.raises(ConfigError, match="sample 0 has no label to train on"):
        train(model, tmp_path / "b", unlabelled)


def test_the_users_code_does_not_run_without_consent(model: Model, tmp_path: Path) -> None:
    (tmp_path / "user_script.py").write_text(SCRIPT)
    chosen = get_registry().create("drupe_passes", "QuantizationAwareTraining")
    config = chosen.Config(user_script="user_script.py", training_loop_func="own")
    context = make_context(tmp_path / "job", accelerator=CPU, allow={"pickle"}, workflow_dir=tmp_path)
    with pytest.raises(ConfigError, match="--allow user-scripts"):
        chosen(model, config, context)


def test_a_stopped_training_goes_on_and_comes_to_the_same(model: Model, tmp_path: Path) -> None:
    chosen = get_registry().create("drupe_passes", "QuantizationAwareTraining")
    config = chosen.Config(train_data_config="train", num_epochs=3)
    asked: list[int] = []

    def context(name: str, **fields: Any) -> Any:
        return make_context(tmp_path / name, accelerator=CPU, allow=CONSENT, data={"train": samples(64)}, **fields)

    whole = chosen(model, config, context("whole"))
    # Two steps an epoch: it is stopped in the middle of the second.
    stopped = context("stopped", is_cancelled=lambda: asked.append(1) is None and len(asked) > 2)
    with pytest.raises(Interrupted):
        chosen(model, config, stopped)
    done: list[float] = []
    again = context("again", on_progress=lambda event: done.append(event["done"]))
    again.checkpoint_dir = stopped.checkpoint_dir
    resumed = chosen(model, config, again)
    assert done == [3, 4, 5, 6]
    assert resumed.files == whole.files
    assert len(report_of(again)["losses"]) == 3
    # A disk that lost what was written: the start is where it goes on.
    for file in (stopped.checkpoint_dir / "training").iterdir():
        file.write_bytes(b"")
    assert chosen(model, config, again).files == whole.files
    assert done == [3, 4, 5, 6, 1, 2, 3, 4, 5, 6]


def test_a_source_that_changed_is_told(tmp_path: Path) -> None:
    made, context = train(source(residual(), tmp_path / "s", RESIDUAL), tmp_path / "q", num_steps=1)
    script = made.folder / "script" / "load.py"
    script.write_text(RESIDUAL.replace("self.conv2", "self.convolution"))
    with pytest.raises(ConfigError, match="load"):
        torch_call(made, context)


LIGHTNING = (
    SCRIPT
    + """
import pytorch_lightning as pl

class Learner(pl.LightningModule):
    def __init__(self, model, seed):
        super().__init__()
        self.model = model

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("right", (self.model(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)

class Digits(pl.LightningDataModule):
    def __init__(self, batch_size):
        super().__init__()
        self.size = batch_size

    def train_dataloader(self):
        return loader("digits", self.size)

    def val_dataloader(self):
        return loader("digits", self.size)

class Poisoned(Digits):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(poisoned("", 0), batch_size=None)

class Modelless(Learner):
    def __init__(self):
        super().__init__(None, 0)
"""
)


def test_lightning_is_asked_for_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning, "_PACKAGES", ("not_there_at_all",))
    chosen = get_registry().create("drupe_passes", "QuantizationAwareTraining")
    config = chosen.Config(user_script="s.py", ptl_module="Learner", train_data_config="train")
    with pytest.raises(ConfigError, match="needs Lightning, which is not installed here: pip install lightning"):
        chosen.check(config, CPU)


@pytest.mark.skipif(importlib.util.find_spec("pytorch_lightning") is None, reason="pytorch-lightning is not installed")
class TestLightning:
    """A LightningModule and its data module train the model that they are given."""

    def test_it_trains(self, model: Model, tmp_path: Path) -> None:
        made, context = train(
            model, tmp_path / "q", script=LIGHTNING, ptl_module="Learner", ptl_data_module="Digits", num_epochs=2,
            train_batch_size=100, do_validate=True, pl_extra_args={"accelerator": "cpu", "devices": 1},
        )  # fmt: skip
        report = report_of(context)
        assert report["steps"] == 12
        assert report["validation"]["right"] > 0.8
        graph, _ = take("OnnxConversion", made, tmp_path / "o", {"target_opset": 17})
        assert accuracy(graph_call(graph)) == accuracy(torch_call(made, context)) > 0.8

    def test_it_takes_batches_of_a_data_config(self, model: Model, tmp_path: Path) -> None:
        _, context = train(
            model, tmp_path / "q", script=LIGHTNING, ptl_module="Learner", train_data_config="train", num_steps=5
        )
        assert report_of(context)["steps"] == 5

    @pytest.mark.parametrize(
        ("config", "kind", "message"),
        [
            ({"ptl_data_module": "Poisoned"}, PassError, r"the loss is nan at step 4 \(epoch 1\)"),
            ({"ptl_module": "Modelless"}, ConfigError, "takes no model; its __init__ must take the module to train"),
            ({"pl_extra_args": {"speed": 3}}, ConfigError, "Trainer refuses pl_extra_args"),
            ({"pl_extra_args": {"accelerator": "gpu"}}, ConfigError, "PyTorch sees none here"),
        ],
    )
    def test_bad_input_is_one_message(
        self, config: dict[str, Any], kind: type[Exception], message: str, model: Model, tmp_path: Path
    ) -> None:
        if "gpu" in str(config) and torch.cuda.is_available():
            pytest.skip("there is a GPU here")
        told = {"ptl_module": "Learner", "ptl_data_module": "Digits", "num_epochs": 1, **config}
        with pytest.raises(kind, match=message):
            train(model, tmp_path / "q", script=LIGHTNING, **told)


def test_grids_hold_zero_and_frozen_weights_stay() -> None:
    grid = Grid.of_activations(8, symmetric=False)
    quantizer = Quantizer(grid).train()
    values = torch.tensor([-1.0, 0.0, 0.3, 2.0])
    rounded = quantizer(values)
    assert rounded[1] == 0
    assert torch.allclose(rounded, values, atol=3.0 / 255)
    # Values far outside of the range that training showed end at its borders, in evaluation.
    assert float(quantizer.eval()(torch.tensor([50.0]))) == pytest.approx(2.0, abs=3.0 / 255)
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    rows = WeightQuantizer(Grid.of_weights(4, per_channel=True), 0, (5, 7))
    once = rows(weight)
    rows.freeze()
    assert torch.equal(rows(once), once)
    assert all(len(row.unique()) <= 15 for row in once)
    assert torch.allclose(once.abs().amax(1), weight.abs().amax(1))


def test_an_accelerator_of_another_kind_is_no_matter(model: Model) -> None:
    chosen = get_registry().create("drupe_passes", "QuantizationAwareTraining")
    planned = chosen.plan(model.info, chosen.Config(train_data_config="train"), Accelerator("npu"))
    assert planned.attributes["quantization"] == "qat"
