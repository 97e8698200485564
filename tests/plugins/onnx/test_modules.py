"""OnnxConversion of modules that a user's script builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from pydantic import ValidationError

from drupe.core.accelerators import Accelerator
from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.plugins.huggingface.pytorch_model import PytorchConfig, load_pytorch
from drupe.plugins.onnx.conversion import OnnxConversionConfig
from drupe.testing import make_context

CPU = Accelerator("cpu", "CPUExecutionProvider")
SCRIPT = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.out = torch.nn.Linear(4, 5)

    def forward(self, pixels, scale=None, flipped=False):
        found = self.conv(pixels).relu().mean((2, 3))
        if scale is not None:
            found = found * scale
        logits = self.out(-found if flipped else found)
        return {"logits": logits, "nested": (found, None)}

class Single(torch.nn.Module):
    def forward(self, x):
        return x * 2

def net(path):
    torch.manual_seed(0)
    return Net()

def single(path):
    return Single()

def named(module):
    torch.manual_seed(1)
    return {"pixels": torch.rand(2, 3, 8, 8), "flipped": True, "scale": torch.full((1, 4), 0.5)}

def listed(module):
    torch.manual_seed(1)
    return torch.rand(2, 3, 8, 8), torch.full((1, 4), 0.5)
"""
AXES = {"pixels": {"0": "batch", "2": "height", "3": "width"}, "logits": {"0": "batch"}}


def source(folder: Path, **config: Any) -> tuple[Model, JobContext]:
    (folder / "s.py").write_text(SCRIPT)
    context = make_context(folder / "import", accelerator=CPU, allow={"user-scripts"})
    kind = get_registry().create("drupe_model_kinds", "pytorch")
    read = PytorchConfig.model_validate({"model_script": "s.py", "model_loader": "net", **config})
    return kind.load(read, {"script": folder / "s.py"}, context).at(context.output_dir), context


def export(model: Model, folder: Path, **config: Any) -> Model:
    context = make_context(folder, accelerator=CPU, allow={"user-scripts"})
    conversion = get_registry().create("drupe_passes", "OnnxConversion")
    made: Model = conversion(model, OnnxConversionConfig(**config), context)
    return made.at(context.output_dir)


def session(model: Model) -> ort.InferenceSession:
    return ort.InferenceSession(str(model.folder / "model.onnx"))


@pytest.mark.parametrize("opset", [17, 20])
def test_a_module_called_by_name_gives_the_same_at_any_size(tmp_path: Path, opset: int) -> None:
    import torch

    told = {"input_names": ["pixels", "scale"], "output_names": ["logits"], "dynamic_axes": AXES}
    model, context = source(tmp_path, dummy_inputs_func="named", io_config=told)
    graph = session(export(model, tmp_path / "job", target_opset=opset))
    assert [i.name for i in graph.get_inputs()] == ["pixels", "scale"]
    assert graph.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    pixels = np.random.default_rng(0).random((3, 3, 6, 10), dtype=np.float32)
    scale = np.full((1, 4), 0.25, dtype=np.float32)
    expected = load_pytorch(model, context)(torch.from_numpy(pixels), torch.from_numpy(scale), flipped=True)
    found = graph.run(["logits"], {"pixels": pixels, "scale": scale})[0]
    np.testing.assert_allclose(found, expected["logits"].detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("shapes", [{"0": "batch", "2": ["height", 2, 64]}, ["batch", None, "height", None]])
def test_dynamic_shapes_name_open_axes_as_dynamic_axes_do(tmp_path: Path, shapes: Any) -> None:
    told = {"input_names": ["pixels", "scale"], "dynamic_shapes": {"pixels": shapes, "scale": None}}
    model, _ = source(tmp_path, dummy_inputs_func="named", io_config=told)
    found = {i.name: i.shape for i in session(export(model, tmp_path / "job")).get_inputs()}
    assert found == {"pixels": ["batch", 3, "height", 8], "scale": [1, 4]}


def test_inputs_by_position_take_the_names_that_are_told(tmp_path: Path) -> None:
    told = {"input_names": ["image", "factor"]}
    model, _ = source(tmp_path, dummy_inputs_func="listed", io_config=told)
    graph = session(export(model, tmp_path / "job"))
    assert [i.name for i in graph.get_inputs()] == ["image", "factor"]
    assert [o.name for o in graph.get_outputs()] == ["output_0", "output_1"]
    assert graph.get_inputs()[0].shape == [2, 3, 8, 8]


def test_shapes_alone_make_an_example(tmp_path: Path) -> None:
    told = {"input_names": ["x"], "input_shapes": [[1, 3]], "dynamic_axes": {"x": {"0": "batch"}}}
    model, _ = source(tmp_path, model_loader="single", io_config=told)
    # A size of 1 is fixed by torch.export; the older exporter keeps it open.
    graph = session(export(model, tmp_path / "job", target_opset=17))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(graph.run(None, {"x": x})[0], x * 2)


def test_names_that_the_module_does_not_know_name_the_graph(tmp_path: Path) -> None:
    told = {"input_names": ["image"], "input_shapes": [[2, 3]], "output_names": ["twice"]}
    model, _ = source(tmp_path, model_loader="single", io_config=told)
    graph = session(export(model, tmp_path / "job", target_opset=17))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(graph.run(["twice"], {"image": x})[0], x * 2)


@pytest.mark.parametrize(
    ("told", "function", "message"),
    [
        (
            {"input_names": ["pixels", "size"]},
            "named",
            "the example inputs lack size; they have pixels, flipped, scale",
        ),
        ({"input_names": ["a"]}, "listed", "input_names has 1 names for 2 example inputs"),
        ({"output_names": ["a", "b", "c"]}, "listed", "output_names has 3 names; the module gives 2 tensors"),
        ({}, None, "tells no example inputs"),
    ],
)
def test_what_does_not_agree_is_told(tmp_path: Path, told: Any, function: str | None, message: str) -> None:
    model, _ = source(tmp_path, dummy_inputs_func=function, io_config=told)
    with pytest.raises(ConfigError, match=message):
        export(model, tmp_path / "job")


def test_the_users_code_does_not_run_without_consent(tmp_path: Path) -> None:
    model, _ = source(tmp_path, dummy_inputs_func="named")
    context = make_context(tmp_path / "job", accelerator=CPU)
    conversion = get_registry().create("drupe_passes", "OnnxConversion")
    with pytest.raises(ConfigError, match="--allow user-scripts"):
        conversion(model, OnnxConversionConfig(), context)


def test_equal_work_gives_equal_files(tmp_path: Path) -> None:
    model, _ = source(tmp_path, dummy_inputs_func="named")
    assert export(model, tmp_path / "a").files == export(model, tmp_path / "b").files


def read(folder: Path, file: Path, *, script: bool = False, **config: Any) -> tuple[Model, JobContext]:
    """A module from a file, as the kind reads it."""
    context = make_context(folder / "import", accelerator=CPU, allow={"user-scripts", "pickle"})
    kind = get_registry().create("drupe_model_kinds", "pytorch")
    fetched = {"model": file}
    if script:
        (folder / "s.py").write_text(SCRIPT)
        fetched["script"] = folder / "s.py"
        config = {"model_script": "s.py", "model_loader": "net", **config}
    made = PytorchConfig.model_validate({"model_path": file.name, **config})
    return kind.load(made, fetched, context).at(context.output_dir), context


def trained() -> Any:
    import torch

    net: dict[str, Any] = {}
    exec(SCRIPT, net)
    torch.manual_seed(7)
    return net["Net"]().eval()


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_values_go_into_the_module_that_a_loader_builds(tmp_path: Path, ending: str) -> None:
    import torch
    from safetensors.torch import save_file

    wanted, file = trained(), tmp_path / f"values.{ending}"
    if ending == "pt":
        torch.save({"state_dict": wanted.state_dict()}, file)
    else:
        save_file(wanted.state_dict(), file)
    told = {"input_names": ["pixels", "scale"], "output_names": ["logits"]}
    model, _ = read(
        tmp_path, file, script=True, model_file_format="PyTorch.StateDict", dummy_inputs_func="named", io_config=told
    )
    graph = session(export(model, tmp_path / "job", target_opset=17))
    pixels, scale = torch.rand(2, 3, 8, 8), torch.full((1, 4), 0.5)
    found = graph.run(["logits"], {"pixels": pixels.numpy(), "scale": scale.numpy()})[0]
    with torch.inference_mode():
        np.testing.assert_allclose(found, wanted(pixels, scale, flipped=True)["logits"].numpy(), atol=1e-5)
    torch.save({"other": torch.zeros(2)}, tmp_path / "wrong.pt")
    wrong, context = read(
        tmp_path / "import", tmp_path / "wrong.pt", script=True, model_file_format="PyTorch.StateDict"
    )
    with pytest.raises(ConfigError, match=r"wrong\.pt holds no values for Net"):
        load_pytorch(wrong, context)


@pytest.mark.parametrize("dynamo", [True, False])
def test_an_exported_program_brings_its_own_example(tmp_path: Path, dynamo: bool) -> None:
    import torch

    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(net, (torch.rand(4, 3),), dynamic_shapes=({0: rows},))
    torch.export.save(program, tmp_path / "net.pt2")
    axes = {"input_names": ["x"], "dynamic_axes": {"x": {"0": "rows"}, "output": {"0": "rows"}}}
    model, _ = read(tmp_path, tmp_path / "net.pt2", model_file_format="PyTorch.ExportedProgram", io_config=axes)
    context = make_context(tmp_path / "job", accelerator=CPU, allow={"pickle"})
    conversion = get_registry().create("drupe_passes", "OnnxConversion")
    config = OnnxConversionConfig(use_dynamo_exporter=dynamo, target_opset=18)
    graph = session(conversion(model, config, context).at(context.output_dir))
    x = torch.rand(7, 3)
    with torch.inference_mode():
        np.testing.assert_allclose(graph.run(None, {"x": x.numpy()})[0], net(x).numpy(), atol=1e-6)
    with pytest.raises(ConfigError, match="--allow pickle"):
        load_pytorch(model, make_context(tmp_path / "none"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_path": "a.pt", "model_file_format": "PyTorch.StateDict"}, "needs a model_path with the values, and a"),
        (
            {
                "model_path": "a.pt2",
                "model_file_format": "PyTorch.ExportedProgram",
                "model_loader": "net",
                "model_script": "s.py",
            },
            "leave model_loader out",
        ),
    ],
)
def test_forms_and_loaders_that_do_not_go_together_are_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PytorchConfig.model_validate(values)
