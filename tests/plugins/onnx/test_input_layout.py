"""InputNCHWtoNHWC: the same answers to pictures with their channels last, with and without a transposition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model
from drupe.testing import PassContract, make_context, tiny_onnx_cnn, tiny_onnx_mlp
from tests.plugins.onnx.graphs import answers, kinds, proto_of, run_pass, saved
from tests.support.vision import HELD_OUT, digits

RANDOM = np.random.default_rng(3)


def last(pictures: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pictures.transpose(0, 2, 3, 1))


def shape_of(model: Model, name: str) -> list[int | str]:
    value = next(value for value in proto_of(model).graph.input if value.name == name)
    return [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]


class TestInputNCHWtoNHWC(PassContract):
    name = "InputNCHWtoNHWC"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_onnx_cnn(tmp_path / "model")


@pytest.mark.parametrize("fold", [True, False])
def test_pictures_come_with_channels_last(tmp_path: Path, fold: bool) -> None:
    source = tiny_onnx_cnn(tmp_path / "m")
    result = run_pass("InputNCHWtoNHWC", source, tmp_path / "job", fold=fold)
    assert shape_of(result, "image") == ["batch", 8, 8, 3]
    assert kinds(result).get("Transpose", 0) == (0 if fold else 1)
    pictures = RANDOM.normal(size=(5, 3, 8, 8)).astype(np.float32)
    expected = answers(source, {"image": pictures})[0]
    np.testing.assert_allclose(answers(result, {"image": last(pictures)})[0], expected, atol=1e-5)


def test_a_cpu_gets_no_transposition_and_an_npu_keeps_it(tmp_path: Path) -> None:
    source = tiny_onnx_cnn(tmp_path / "m")
    of_cpu = make_context(tmp_path / "a", accelerator=Accelerator("cpu"))
    assert "Transpose" not in kinds(run_pass("InputNCHWtoNHWC", source, tmp_path, context=of_cpu))
    assert of_cpu.report["inputs"] == {"image": "folded into conv"}
    of_npu = make_context(tmp_path / "b", accelerator=Accelerator("npu", "QNNExecutionProvider"))
    assert kinds(run_pass("InputNCHWtoNHWC", source, tmp_path, context=of_npu))["Transpose"] == 1


_CONV = """<ir_version: 8, opset_import: ["" : {opset}]>
g (float[{size}] x) => (float[N, K, U, V] y) {{
  {before}
  y = Conv <{how}> ({picture}, kernel)
}}"""


@pytest.mark.parametrize(
    ("how", "kernel", "folded"),
    [
        ("pads = [2, 1, 0, 1], strides = [2, 3]", (4, 3, 3, 2), True),
        ('auto_pad = "VALID", dilations = [2, 1]', (2, 3, 2, 3), True),
        ("kernel_shape = [5, 4], strides = [5, 4]", (6, 3, 5, 4), True),
        ("dilations = [1, 2]", (2, 3, 2, 3), False),
        ('auto_pad = "SAME_UPPER", strides = [2, 2]', (2, 3, 3, 3), False),
        ("group = 3", (6, 1, 3, 3), False),
    ],
)
@pytest.mark.parametrize(("opset", "size"), [(17, "N, 3, 11, 9"), (11, "N, 3, H, W")])
def test_convolutions_of_all_kinds(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    how: str,
    kernel: tuple[int, ...],
    folded: bool,
    opset: int,
    size: str,
) -> None:
    weights = {"kernel": RANDOM.normal(size=kernel).astype(np.float32)}
    text = _CONV.format(size=size, before="", how=how, picture="x", opset=opset)
    source = saved(tmp_path / "m", text, weights)
    result = run_pass("InputNCHWtoNHWC", source, tmp_path / "job", fold=True)
    assert ("Transpose" not in kinds(result)) == folded
    assert ("fold (x) found nothing to change in" in caplog.text) != folded
    pictures = RANDOM.normal(size=(2, 3, 11, 9)).astype(np.float32)
    expected = answers(source, {"x": pictures})[0]
    np.testing.assert_allclose(answers(result, {"x": last(pictures)})[0], expected, atol=1e-4)


def test_what_normalizes_the_picture_is_turned_with_it(tmp_path: Path) -> None:
    before = "s = Sub (x, mean) d = Div (s, std) p = Mul (half, d)"
    weights = {
        "mean": RANDOM.normal(size=(1, 3, 1, 1)).astype(np.float32),
        "std": RANDOM.uniform(1, 2, size=(3, 1, 1)).astype(np.float32),
        "half": np.array(0.5, np.float32),
        "kernel": RANDOM.normal(size=(4, 3, 3, 3)).astype(np.float32),
    }
    text = _CONV.format(size="N, 3, H, W", before=before, how="pads = [1, 1, 1, 1]", picture="p", opset=17)
    source = saved(tmp_path / "m", text, weights)
    result = run_pass("InputNCHWtoNHWC", source, tmp_path / "job", fold=True)
    assert "Transpose" not in kinds(result)
    pictures = RANDOM.normal(size=(2, 3, 6, 5)).astype(np.float32)
    expected = answers(source, {"x": pictures})[0]
    np.testing.assert_allclose(answers(result, {"x": last(pictures)})[0], expected, atol=1e-5)


def test_a_transposition_of_the_graph_itself_is_undone(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, H, W] x) => (float[N, H, W, 3] y) {
      s = Mul (x, scale)
      t = Transpose <perm = [0, 2, 3, 1]> (s)
      y = Relu (t)
    }"""
    source = saved(tmp_path / "m", text, {"scale": np.array([1.0, -2.0, 3.0], np.float32).reshape(3, 1, 1)})
    result = run_pass("InputNCHWtoNHWC", source, tmp_path / "job", fold=True)
    assert kinds(result) == {"Mul": 1, "Relu": 1}
    pictures = RANDOM.normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(answers(result, {"x": last(pictures)})[0], answers(source, {"x": pictures})[0])


def test_a_picture_that_two_nodes_read_and_a_branch_inside_is_transposed_once(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, H, W] x, bool flag) => (float[N, 3, H, W] y) {
      r = Relu (x)
      z = If (flag) <then_branch = one () => (float[N, 3, H, W] a) { a = Neg (x) },
                     else_branch = two () => (float[N, 3, H, W] b) { b = Abs (x) }>
      y = Add (r, z)
    }"""
    source = saved(tmp_path / "m", text)
    result = run_pass("InputNCHWtoNHWC", source, tmp_path / "job", fold=True)
    assert kinds(result)["Transpose"] == 1
    pictures = RANDOM.normal(size=(2, 3, 4, 5)).astype(np.float32)
    for flag in (np.array(True), np.array(False)):
        expected = answers(source, {"x": pictures, "flag": flag})[0]
        np.testing.assert_array_equal(answers(result, {"x": last(pictures), "flag": flag})[0], expected)


def test_of_a_composite_only_what_comes_from_outside_is_turned(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, H, W] {given}) => (float[N, 3, H, W] {made}) {{ {made} = Relu ({given}) }}"""
    for name, given, made in (("a", "x", "m"), ("b", "m", "y")):
        saved(tmp_path / "m" / name, text.format(given=given, made=made))
    components = [{"name": name, "file": f"{name}/model.onnx"} for name in ("a", "b")]
    whole = Model.from_dir("composite", tmp_path / "m", {"components": components})
    result = run_pass("InputNCHWtoNHWC", whole, tmp_path / "job")
    parts = [Model.from_dir("onnx", result.folder / name, {}) for name in ("a", "b")]
    assert shape_of(parts[0], "x") == ["N", "H", "W", 3] and shape_of(parts[1], "m") == ["N", 3, "H", "W"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["imago"], "the graph has no input 'imago'; did you mean 'image'"),
        (["zz"], r"no input 'zz'; it takes image \['batch', 3, 8, 8\]"),
    ],
)
def test_an_unknown_input_is_named(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_pass("InputNCHWtoNHWC", tiny_onnx_cnn(tmp_path / "m"), tmp_path / "job", input_names=names)


def test_a_graph_without_pictures_is_refused(tmp_path: Path) -> None:
    source = tiny_onnx_mlp(tmp_path / "m")
    with pytest.raises(PassError, match=r"no input has four axes.*the graph takes x \['batch', 8\]"):
        run_pass("InputNCHWtoNHWC", source, tmp_path / "a")
    with pytest.raises(ConfigError, match=r"'x' has the shape \['batch', 8\]; expected four axes"):
        run_pass("InputNCHWtoNHWC", source, tmp_path / "b", input_names=["x"])


def test_keys_and_values_of_a_decoder_are_no_pictures(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, H, W] x, float[N, 2, P, 4] past_key_0) => (float[N, 3, H, W] y, float[N, 2, P, 4] k) {
      y = Relu (x)
      k = Neg (past_key_0)
    }"""
    result = run_pass("InputNCHWtoNHWC", saved(tmp_path / "m", text), tmp_path / "job")
    assert shape_of(result, "x") == ["N", "H", "W", 3]
    assert shape_of(result, "past_key_0") == ["N", 2, "P", 4]


@pytest.mark.slow
@pytest.mark.real_run("InputNCHWtoNHWC")
def test_a_network_that_knows_digits_knows_them_channels_last(tmp_path: Path, digits_resnet_dir: Path) -> None:
    model = Model.from_dir("hf", digits_resnet_dir, {"task": "image-classification"})
    source = run_pass("OnnxConversion", model, tmp_path / "export")
    pictures, classes = (part[-HELD_OUT:] for part in digits(32, 3))
    expected = answers(source, {"pixel_values": pictures})[0]
    known: dict[str, Any] = {}
    for fold in (True, False):
        result = run_pass("InputNCHWtoNHWC", source, tmp_path / str(fold), fold=fold)
        found = answers(result, {"pixel_values": last(pictures)})[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        known[str(fold)] = (found.argmax(-1) == classes).mean()
        assert ("Transpose" not in kinds(result)) == fold
    assert known["True"] == known["False"] == (expected.argmax(-1) == classes).mean() > 0.8
