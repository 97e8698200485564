"""A workflow file in the form of 2024: training by a script, export, session options, and accuracy measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drupe.core.model import Model
from tests.plugins.quantization.qat.networks import accuracy, graph_call, network, trained
from tests.support.vision import HELD_OUT, digits
from tests.support.workflows import drupe

SCRIPT = f"""
import numpy
import torch

def data(folder, part):
    found = numpy.load(folder + "/digits.npz")
    return torch.utils.data.TensorDataset(*(torch.from_numpy(found[name][part]) for name in ("pictures", "classes")))

def create_train_dataloader(folder, size):
    return torch.utils.data.DataLoader(data(folder, slice(None, -{HELD_OUT})), batch_size=size, shuffle=True)

def create_dataloader(data_dir, batch_size, *args, **kwargs):
    return torch.utils.data.DataLoader(data(data_dir, slice(-{HELD_OUT}, None)), batch_size=batch_size)

def post_process(output):
    return output.argmax(axis=-1)

def create_qat_config():
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver, QConfig, default_weight_fake_quant

    fake = FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, reduce_range=False)
    return QConfig(activation=fake, weight=default_weight_fake_quant)
"""


def workflow() -> dict[str, Any]:
    """A public workflow's keys, every block under config as that form has them."""
    loading = {"user_script": "user_script.py", "dataloader_func": "create_dataloader", "batch_size": 1}
    measured = {"post_processing_func": "post_process", **loading, "data_dir": "data"}
    io = {
        "input_names": ["input"],
        "input_shapes": [[1, 1, 8, 8]],
        "output_names": ["output"],
        "dynamic_axes": {"input": {"0": "batch_size"}, "output": {"0": "batch_size"}},
    }
    training = {
        "user_script": "user_script.py", "train_data_dir": "data", "val_data_dir": "data", "num_epochs": 1,
        "train_dataloader_func": "create_train_dataloader", "train_batch_size": 100,
        "modules_to_fuse": [["conv1", "bn1"], ["conv2", "bn2"]], "qconfig_func": "create_qat_config",
    }  # fmt: skip
    right = {"name": "accuracy_score", "priority": 1, "metric_config": {"task": "multiclass", "num_classes": 10}}
    metric = {"name": "accuracy", "type": "accuracy", "sub_types": [right], "user_config": measured}
    return {
        "input_model": {"type": "PyTorchModel", "config": {"model_path": "models/trained.pt", "io_config": io}},
        "evaluators": {"common_evaluator": {"metrics": [metric]}},
        "passes": {
            "quantization_aware_training": {"type": "QuantizationAwareTraining", "config": training},
            "conversion": {"type": "OnnxConversion", "config": {"target_opset": 17}},
            "perf_tuning": {"type": "OrtPerfTuning", "config": {**loading, "data_dir": "data"}},
        },
        "engine": {"evaluator": "common_evaluator", "cache_dir": "cache", "output_dir": "models/qat"},
    }


@pytest.mark.slow
def test_a_workflow_of_2024_gives_an_int8_graph_of_the_models_accuracy(tmp_path: Path) -> None:
    plain = trained(network())
    for name in ("models", "data"):
        (tmp_path / name).mkdir()
    torch.save(plain, tmp_path / "models" / "trained.pt")
    pictures, classes = digits()
    np.savez(tmp_path / "data" / "digits.npz", pictures=pictures, classes=classes)
    (tmp_path / "user_script.py").write_text(SCRIPT)
    (tmp_path / "workflow.json").write_text(json.dumps(workflow()))
    refused = drupe("run", "workflow.json", folder=tmp_path)
    assert refused.returncode == 2
    assert "--allow user-scripts" in refused.stdout + refused.stderr
    allowed = ("--allow", "user-scripts", "--allow", "pickle")
    done = drupe("run", "workflow.json", "--quiet", *allowed, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "models" / "qat"
    ours = accuracy(graph_call(Model.from_dir("onnx", next(out.rglob("model.onnx")).parent)))
    with torch.inference_mode():
        theirs = accuracy(lambda values: plain(torch.from_numpy(values)).numpy())
    assert ours >= theirs - 0.01
    told = json.loads((out / "drupe.json").read_text())
    assert str(ours)[:8] in json.dumps(told)
