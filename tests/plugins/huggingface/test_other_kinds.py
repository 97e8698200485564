"""The kinds onnx, genai and pytorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.core.specs import ModelKindSpec
from drupe.plugins.huggingface.onnx_model import GenaiConfig, GenaiKind, OnnxConfig, OnnxKind
from drupe.plugins.huggingface.plugin import drupe_model_kinds
from drupe.plugins.huggingface.pytorch_model import (
    PytorchConfig,
    PytorchKind,
    dummy_inputs,
    io_config,
    load_pytorch,
)
from tests.support.jobs import job_context

SPECS: dict[str, ModelKindSpec] = {spec.name: spec for spec in drupe_model_kinds()}


def write_graph(path: Path, *, external: bool = False) -> None:
    """Write y = x + w, with the weight beside the graph where asked."""
    import onnx

    weight = onnx.numpy_helper.from_array(np.arange(600, dtype=np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 600])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 600])],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)


def load_onnx(folder: Path, source: Path, **config: Any) -> Model:
    kind = OnnxKind(SPECS["onnx"])
    return kind.load(OnnxConfig(model_path=str(source), **config), {"model": source}, job_context(folder / "job"))


def test_a_graph_brings_the_weights_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    write_graph(tmp_path / "m" / "net.onnx", external=True)
    (tmp_path / "m" / "other.txt").write_text("no part of it")
    model = load_onnx(tmp_path, tmp_path / "m" / "net.onnx")
    assert set(model.files) == {"net.onnx", "weights.bin"}
    assert model.attributes["onnx_file"] == "net.onnx"
    import onnxruntime

    session = onnxruntime.InferenceSession(model.folder / "net.onnx")
    assert session.run(None, {"x": np.zeros((1, 600), np.float32)})[0][0, 5] == 5


def test_weights_that_are_not_there_or_outside_are_told(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    write_graph(tmp_path / "m" / "net.onnx", external=True)
    (tmp_path / "m" / "weights.bin").unlink()
    with pytest.raises(ConfigError, match=r"weights in weights\.bin, which is not there"):
        load_onnx(tmp_path, tmp_path / "m" / "net.onnx")
    import onnx

    proto = onnx.load(tmp_path / "m" / "net.onnx", load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = "../secret"
    (tmp_path / "m" / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ConfigError, match="outside its folder"):
        load_onnx(tmp_path, tmp_path / "m" / "net.onnx")


def test_a_folder_with_one_graph_or_a_named_one(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    write_graph(tmp_path / "m" / "a.onnx")
    assert load_onnx(tmp_path / "1", tmp_path / "m").attributes["onnx_file"] == "a.onnx"
    write_graph(tmp_path / "m" / "b.onnx")
    with pytest.raises(ConfigError, match=r"several .onnx files \(a.onnx, b.onnx\)"):
        load_onnx(tmp_path / "2", tmp_path / "m")
    assert load_onnx(tmp_path / "3", tmp_path / "m", onnx_file_name="b.onnx").attributes["onnx_file"] == "b.onnx"
    with pytest.raises(ConfigError, match=r"has no c\.onnx"):
        load_onnx(tmp_path / "4", tmp_path / "m", onnx_file_name="c.onnx")


def test_genai_folders(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    kind = GenaiKind(SPECS["genai"])

    def load() -> Model:
        config = GenaiConfig(model_path="m")
        return kind.load(config, {"model": tmp_path / "m"}, job_context(tmp_path / "job"))

    with pytest.raises(ConfigError, match=r"no genai_config\.json"):
        load()
    (tmp_path / "m" / "genai_config.json").write_text(json.dumps({"model": {"type": "llama"}}))
    assert load().attributes["model_type"] == "llama"


SCRIPT = """
import torch
import beside

def build(path):
    module = torch.nn.Linear(3, 2)
    if path:
        module.load_state_dict(torch.load(path, weights_only=True))
    return module

def inputs(module):
    return {"input": torch.ones(1, module.in_features)}

def io(path):
    return {"input_names": ["input"], "input_shapes": [[1, 3]], "output_names": ["output"]}

def wrong(path):
    return "no module"
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "build.py").write_text(SCRIPT)
    (tmp_path / "code" / "beside.py").write_text("")
    return tmp_path / "code" / "build.py"


def load_torch(folder: Path, script: Path, fetched: dict[str, Path], **config: Any) -> tuple[Model, Any]:
    context = job_context(folder / "job", allow=frozenset({"user-scripts"}))
    given = {"model_script": str(script), "script_dir": str(script.parent), **config}
    kind = PytorchKind(SPECS["pytorch"])
    places = {"script": script, "script_dir": script.parent, **fetched}
    return kind.load(PytorchConfig.model_validate(given), places, context), context


def test_a_script_builds_the_module_from_its_weights(script: Path, tmp_path: Path) -> None:
    import torch

    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "w.pt")
    options = {"model_path": "w.pt", "model_loader": "build", "io_config": "io", "dummy_inputs_func": "inputs"}
    model, context = load_torch(tmp_path, script, {"model": tmp_path / "w.pt"}, **options)
    assert set(model.files) == {"script/build.py", "script/beside.py", "weights/w.pt"}
    module = load_pytorch(model, context)
    wanted = torch.load(tmp_path / "w.pt", weights_only=True)
    assert torch.equal(module.weight, wanted["weight"])
    assert io_config(model, context)["input_names"] == ["input"]
    assert dummy_inputs(model, module, context)["input"].shape == (1, 3)
    with pytest.raises(ConfigError, match="--allow user-scripts"):
        load_pytorch(model, job_context(tmp_path / "other"))


def test_example_inputs_follow_from_io_config(script: Path, tmp_path: Path) -> None:
    told = {"input_names": ["ids"], "input_shapes": [["batch", 7]], "input_types": ["int64"]}
    model, context = load_torch(tmp_path, script, {}, model_loader="build", io_config=told)
    made = dummy_inputs(model, load_pytorch(model, context), context)
    # The module calls its input otherwise, so what io_config names goes by position.
    (ids,) = made
    assert ids.shape == (1, 7)
    assert str(ids.dtype) == "torch.int64"


def test_a_loader_that_gives_no_module_is_told(script: Path, tmp_path: Path) -> None:
    model, context = load_torch(tmp_path, script, {}, model_loader="wrong")
    with pytest.raises(ConfigError, match=r"wrong of script/build\.py gave str; expected a torch\.nn\.Module"):
        load_pytorch(model, context)


def test_what_asks_for_which_consent() -> None:
    kind = PytorchKind(SPECS["pytorch"])
    assert kind.consents(PytorchConfig(model_loader="f", model_script="s.py")) == ["user-scripts"]
    assert kind.consents(PytorchConfig(model_path="m.pt")) == ["pickle"]
    assert kind.consents(PytorchConfig(model_path="m.pt", model_file_format="PyTorch.TorchScript")) == []
    with pytest.raises(ValidationError, match="functions of a model_script, but none is named"):
        PytorchConfig(model_loader="f")


def test_a_name_that_only_the_loader_understands_is_not_fetched() -> None:
    kind = PytorchKind(SPECS["pytorch"])
    named = PytorchConfig(model_path="owner/model", model_loader="f", model_script="s.py")
    assert set(kind.references(named)) == {"script"}
    assert set(kind.references(named.model_copy(update={"model_path": "weights/m.pt"}))) == {"model", "script"}
