"""Small convolutional networks trained on scikit-learn's digits, and the steps that tests take with them."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from drupe.core.accelerators import Accelerator
from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.plugins.huggingface.pytorch_model import PytorchConfig, load_pytorch
from drupe.testing import make_context
from tests.support.vision import HELD_OUT, digits

CPU = Accelerator("cpu", "CPUExecutionProvider")
CONSENT = {"pickle", "user-scripts"}
IO = {
    "input_names": ["input"],
    "input_shapes": [[1, 1, 8, 8]],
    "output_names": ["output"],
    "dynamic_axes": {"input": {"0": "batch"}, "output": {"0": "batch"}},
}
GROUPS = [["conv1", "bn1"], ["conv2", "bn2"]]


def network(width: int = 8) -> Any:
    """Two convolutions with batch norms, a ReLU each, and a linear layer."""
    parts = OrderedDict(
        conv1=nn.Conv2d(1, width, 3, padding=1), bn1=nn.BatchNorm2d(width), relu1=nn.ReLU(),
        conv2=nn.Conv2d(width, 2 * width, 3, padding=1), bn2=nn.BatchNorm2d(2 * width), relu2=nn.ReLU(),
        pool=nn.MaxPool2d(2), flat=nn.Flatten(), fc=nn.Linear(32 * width, 10),
    )  # fmt: skip
    return nn.Sequential(parts)


RESIDUAL = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        return (x + self.bn2(self.conv2(y))).relu()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.block, self.fc = Block(), nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.block(self.stem_bn(self.stem(x)).relu()).mean((2, 3)))


def load(path):
    return Residual()
"""
"""A network with a block whose sum and ReLUs are no modules, as a user's script builds it."""


def residual() -> Any:
    """Return the script's network."""
    names: dict[str, Any] = {}
    exec(RESIDUAL, names)
    return names["Residual"]()


def trained(module: Any, seed: int = 0, epochs: int = 4) -> Any:
    """Train on the digits that are not held out."""
    torch.manual_seed(seed)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    module.train()
    pictures, classes = (torch.from_numpy(part[:-HELD_OUT]) for part in digits())
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(pictures)).split(50):
            loss = nn.functional.cross_entropy(module(pictures[chosen]), classes[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module.eval()


def samples(count: int | None = None) -> list[Sample]:
    """Digits to train on."""
    pictures, classes = digits()
    end = len(pictures) - HELD_OUT if count is None else count
    return [Sample(f"{i}", {"input": pictures[i]}, int(classes[i]), f"{i}") for i in range(end)]


def accuracy(call: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return the share of the held-out digits that are told right."""
    pictures, classes = digits()
    return float((call(pictures[-HELD_OUT:]).argmax(1) == classes[-HELD_OUT:]).mean())


def source(module: Any, folder: Path, script: str | None = None, **config: Any) -> Model:
    """Return the Model of a module that was saved whole, or that a script's `load` builds for the module's values."""
    folder.mkdir(parents=True, exist_ok=True)
    fetched = {}
    if script is not None:
        (folder / "load.py").write_text(script)
        fetched["script"] = folder / "load.py"
        config = {"model_script": "load.py", "model_loader": "load", **config}
    if module is not None:
        torch.save(module if script is None else module.state_dict(), folder / "module.pt")
        fetched["model"] = folder / "module.pt"
        config = {"model_path": "module.pt", **config}
        if script is not None:
            config["model_file_format"] = "PyTorch.StateDict"
    context = make_context(folder / "import", accelerator=CPU, allow=CONSENT)
    kind = get_registry().create("drupe_model_kinds", "pytorch")
    read = PytorchConfig.model_validate({"io_config": IO, **config})
    made: Model = kind.load(read, fetched, context)
    return made.at(context.output_dir)


def take(
    name: str, model: Model, folder: Path, config: dict[str, Any], data: Any = None, script: str | None = None
) -> tuple[Model, JobContext]:
    """Run a pass below a folder, user_script.py beside it, and return what it made, staged, and its context."""
    folder.mkdir(parents=True)
    if script is not None:
        (folder / "user_script.py").write_text(script)
        config = {"user_script": "user_script.py", **config}
    given = {"train": samples() if data is None else data}
    context = make_context(folder / "job", accelerator=CPU, allow=CONSENT, data=given, workflow_dir=folder)
    chosen = get_registry().create("drupe_passes", name)
    made: Model = chosen(model, chosen.Config.model_validate(config), context)
    for file in made.files:
        place = folder / "staged" / file
        place.parent.mkdir(parents=True, exist_ok=True)
        found = context.output_dir / file
        shutil.copyfile(found if found.is_file() else model.folder / file, place)
    return made.at(folder / "staged"), context


def train(model: Model, folder: Path, data: Any = None, script: str | None = None, **config: Any) -> Any:
    """Run QuantizationAwareTraining; on samples unless the config says otherwise."""
    ways = ("train_dataloader_func", "training_loop_func", "ptl_module")
    if not any(name in config for name in ways):
        config = {"train_data_config": "train", **config}
    return take("QuantizationAwareTraining", model, folder, config, data, script)


def torch_call(model: Model, context: JobContext) -> Callable[[np.ndarray], np.ndarray]:
    """Return the call of a `pytorch` model as passes load it."""
    module = load_pytorch(model, context)

    def call(pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = module(torch.from_numpy(pictures)).numpy()
        return found

    return call


def graph_call(model: Model) -> Callable[[np.ndarray], np.ndarray]:
    """Return the call of an `onnx` model on plain onnxruntime."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(model.folder / "model.onnx"), providers=["CPUExecutionProvider"])

    def call(pictures: np.ndarray) -> np.ndarray:
        found: np.ndarray = session.run(None, {"input": pictures})[0]
        return found

    return call
