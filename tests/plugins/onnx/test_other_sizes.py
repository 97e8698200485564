"""A traced graph that holds for the example's sizes only is no result; T5 goes by torch.export with plain attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.errors import PassError
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.plugins.huggingface.loading import load_model
from drupe.plugins.huggingface.pytorch_model import PytorchConfig
from drupe.testing import make_context
from tests.plugins.onnx.graphs import CPU, answers, run_pass
from tests.plugins.onnx.test_capture_split_info import PIXELS, TEXTS, hugging_face, t5, vit

SCRIPT = """
import torch

class Recurrent(torch.nn.Module):
    def forward(self, x):
        state, found = torch.zeros_like(x[:, 0]), []
        for step in range(x.shape[1]):
            state = torch.tanh(state + x[:, step])
            found.append(state)
        return torch.stack(found, 1)

class Gated(torch.nn.Module):
    def forward(self, x):
        return x * torch.full((1,), float(x.shape[1]))

class Plain(torch.nn.Module):
    def forward(self, x):
        return x.cumsum(1) / x.shape[1]

class Drawing(torch.nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)

def drawing(path):
    return Drawing()

def recurrent(path):
    return Recurrent()

def gated(path):
    return Gated()

def plain(path):
    return Plain()
"""


def traced(folder: Path, loader: str, shape: tuple[int, ...] = (2, 6, 4), **config: Any) -> Model:
    (folder / "s.py").write_text(SCRIPT)
    context = make_context(folder / "import", accelerator=CPU, allow={"user-scripts"})
    told = {"input_names": ["x"], "input_shapes": [list(shape)], "dynamic_axes": {"x": {"0": "batch", "1": "sequence"}}}
    read = PytorchConfig.model_validate({"model_script": "s.py", "model_loader": loader, "io_config": told})
    kind = get_registry().create("drupe_model_kinds", "pytorch")
    model = kind.load(read, {"script": folder / "s.py"}, context).at(context.output_dir)
    context = make_context(folder / "out", accelerator=CPU, allow={"user-scripts"})
    options = {"use_dynamo_exporter": False, "target_opset": 17, **config}
    return run_pass("OnnxConversion", model, folder / "out", context=context, **options)


@pytest.mark.parametrize("loader", ["recurrent", "gated"])
def test_a_loop_that_was_written_out_is_told(loader: str, tmp_path: Path) -> None:
    with pytest.raises(PassError, match=r"holds for the example's sizes only.*x \[3, 10, 4\].*dynamic: false"):
        traced(tmp_path, loader)


def test_a_graph_of_fixed_sizes_may_have_its_loops_written_out(tmp_path: Path) -> None:
    made = traced(tmp_path, "recurrent", dynamic=False)
    batch = {"x": np.random.default_rng(0).random((2, 6, 4), np.float32)}
    assert answers(made, batch)[0].shape == (2, 6, 4)


def test_what_holds_for_all_sizes_is_exported(tmp_path: Path) -> None:
    made = traced(tmp_path, "plain")
    x = np.random.default_rng(0).random((1, 9, 4), np.float32)
    np.testing.assert_allclose(answers(made, {"x": x})[0], x.cumsum(1) / 9, rtol=1e-5)


def test_a_module_that_draws_numbers_is_exported(tmp_path: Path) -> None:
    made = traced(tmp_path, "drawing")
    x = np.zeros((1, 9, 4), np.float32)
    assert answers(made, {"x": x})[0].shape == x.shape


def test_a_long_example_is_checked_with_a_shorter_input(tmp_path: Path) -> None:
    with pytest.raises(PassError, match=r"holds for the example's sizes only.*x \[2, 151, 4\]"):
        traced(tmp_path, "recurrent", shape=(8, 300, 4))


@pytest.mark.slow
@pytest.mark.full
def test_attention_with_biases_is_exported_in_its_plain_form(tmp_path: Path) -> None:
    source = hugging_face(tmp_path / "model", t5(1))
    context = make_context(tmp_path / "out", accelerator=CPU)
    made = run_pass("OnnxConversion", source, tmp_path / "out", context=context, use_dynamo_exporter=True)
    assert "plain form" in context.report["attention"]
    assert answers(made, TEXTS)[0].shape == (2, 4, 50)


def test_weights_stored_as_bfloat16_run_on_a_cpu(tmp_path: Path) -> None:
    import torch

    source = hugging_face(tmp_path / "model", vit().bfloat16())
    made = run_pass("OnnxConversion", source, tmp_path / "out", use_dynamo_exporter=False, target_opset=17)
    (found,) = answers(made, PIXELS)
    assert found.dtype == np.float32
    kept = load_model(source, dtype="float32")
    with torch.inference_mode():
        wanted = kept(pixel_values=torch.from_numpy(PIXELS["pixel_values"])).logits.numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)
