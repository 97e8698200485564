"""Modules of the user's own are measured as they are, after consent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, EvaluationError
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.plugins.huggingface.pytorch_model import PytorchConfig
from drupe.testing import make_context

SCRIPT = """
import torch
from layers_beside import FACTOR

class Net(torch.nn.Module):
    def forward(self, pixels, scale):
        return pixels * scale * FACTOR, pixels.sum()

def load(path):
    return Net()
"""
TOLD = {
    "input_names": ["x", "scale"],
    "input_shapes": [[1, 2], [1]],
    "dynamic_axes": {"x": {"0": "batch"}},
    "output_names": ["scaled", "total"],
}


def imported(folder: Path, **told: object) -> Model:
    (folder / "s.py").write_text(SCRIPT)
    (folder / "layers_beside.py").write_text("FACTOR = 3")
    context = make_context(folder / "import", allow={"user-scripts"})
    config = PytorchConfig.model_validate({"model_script": "s.py", "model_loader": "load", **told})
    kind = get_registry().create("drupe_model_kinds", "pytorch")
    return kind.load(config, {"script": folder / "s.py"}, context).at(context.output_dir)


def test_a_module_answers_under_the_names_of_its_graph(tmp_path: Path) -> None:
    model = imported(tmp_path, io_config=TOLD)
    runtime = get_registry().create("drupe_runtimes", "torch")
    assert runtime.consents(model) == ["user-scripts"]
    session = runtime.open(model, Accelerator(), {"threads": 1})
    assert session.framework == "PyTorch"
    assert session.input_shapes() == {"x": (("batch", 2), "float32"), "scale": ((1,), "float32")}
    found = session.forward({"x": np.array([[1.0, 2.0]]), "scale": np.array([2.0])}).outputs
    assert found["scaled"].tolist() == [[6.0, 12.0]] and found["total"] == 3.0
    with pytest.raises(EvaluationError, match="takes no input 'y'; it takes: x, scale"):
        session.forward({"y": np.zeros(2)})
    with pytest.raises(EvaluationError, match="takes its inputs by place, and 'x' is not there"):
        session.forward({"scale": np.array([2.0])})


def test_without_an_io_config_the_module_s_own_names_hold(tmp_path: Path) -> None:
    session = get_registry().create("drupe_runtimes", "torch").open(imported(tmp_path), Accelerator(), {})
    found = session.forward({"pixels": np.ones((1, 2)), "scale": np.array([1.0])}).outputs
    assert list(found) == ["output", "output_1"]
    with pytest.raises(NotImplementedError):
        session.input_shapes()


def test_dynamic_shapes_name_axes_as_well(tmp_path: Path) -> None:
    shapes = {"pixels": ["batch", None], "scale": None}
    told = {"input_names": ["pixels", "scale"], "input_shapes": [[1, 2], [1]], "dynamic_shapes": shapes}
    session = (
        get_registry().create("drupe_runtimes", "torch").open(imported(tmp_path, io_config=told), Accelerator(), {})
    )
    assert session.input_shapes()["pixels"] == (("batch", 2), "float32")


@pytest.mark.parametrize("form", ["PyTorch.TorchScript", "PyTorch.ExportedProgram"])
def test_modules_that_were_saved_without_their_class_are_measured(tmp_path: Path, form: str) -> None:
    net = torch.nn.Linear(2, 1)
    path = tmp_path / "net.pt"
    if form.endswith("TorchScript"):
        torch.jit.save(torch.jit.script(net), path)
    else:
        torch.export.save(torch.export.export(net, (torch.ones(1, 2),)), path)
    (tmp_path / "s.py").write_text("def told(path):\n    return {'input_names': ['x'], 'output_names': ['y']}\n")
    values = {"model_path": "net.pt", "model_file_format": form, "model_script": "s.py", "io_config": "told"}
    kind, runtime = (
        get_registry().create(*one) for one in (("drupe_model_kinds", "pytorch"), ("drupe_runtimes", "torch"))
    )
    context = make_context(tmp_path / "import", allow={"user-scripts", "pickle"})
    config = PytorchConfig.model_validate(values)
    model = kind.load(config, {"model": path, "script": tmp_path / "s.py"}, context).at(context.output_dir)
    assert runtime.consents(model) == kind.consents(config)
    assert "user-scripts" in runtime.consents(model)
    x = np.array([[1.0, 2.0]], np.float32)
    found = runtime.open(model, Accelerator(), {}).forward({"x": x}).outputs["y"]
    np.testing.assert_allclose(found, net(torch.from_numpy(x)).detach().numpy(), rtol=1e-5)


def test_an_option_that_it_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="no option 'dtype'; it has: threads"):
        get_registry().create("drupe_runtimes", "torch").options(Accelerator(), {"dtype": "float16"})
