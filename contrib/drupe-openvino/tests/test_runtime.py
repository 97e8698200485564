"""The runtime and the model kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from drupe import Accelerator, ConfigError, EvaluationError, Model, PassContext

from drupe_openvino import plugin
from drupe_openvino.kind import OpenVinoKind
from drupe_openvino.runtime import OpenVinoRuntime

from .conftest import OPENVINO, opened


def runtime() -> OpenVinoRuntime:
    return OpenVinoRuntime(plugin.drupe_runtimes()[0])


def test_float32_is_asked_for_unless_told_otherwise(onnx_mlp: Model, run_pass: Callable[..., Model]) -> None:
    assert runtime().options(OPENVINO, {})["precision"] == "f32"
    converted = run_pass("OpenVINOConversion", onnx_mlp)
    hint = "INFERENCE_PRECISION_HINT"
    assert opened(converted)._compiled.get_property(hint).get_type_name() == "f32"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("options", "message"), [({"precison": "f32"}, "precison"), ({"precision": "f8"}, "f8")])
def test_unknown_options_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        runtime().options(OPENVINO, options)


def test_a_device_that_is_not_here_is_named_with_those_that_are(
    onnx_mlp: Model, run_pass: Callable[..., Model]
) -> None:
    converted = run_pass("OpenVINOConversion", onnx_mlp)
    with pytest.raises(EvaluationError, match=r"no NPU here; it finds: .*CPU"):
        opened(converted, Accelerator("openvino", "NPU"))


def test_a_missing_input_and_a_wrong_shape_are_errors(onnx_mlp: Model, run_pass: Callable[..., Model]) -> None:
    session = opened(run_pass("OpenVINOConversion", onnx_mlp))
    with pytest.raises(EvaluationError, match="takes x, which the batch lacks"):
        session.forward({"z": np.zeros(1)})
    with pytest.raises(EvaluationError, match=r"shapes \{'x': \(1, 3\)\}"):
        session.forward({"x": np.zeros((1, 3))})


def test_an_earlier_result_is_not_written_over(onnx_mlp: Model, run_pass: Callable[..., Model]) -> None:
    session = opened(run_pass("OpenVINOConversion", onnx_mlp))
    first = session.forward({"x": np.ones((1, 64), np.float32)}).outputs["y"]
    before = first.copy()
    session.forward({"x": np.zeros((1, 64), np.float32)})
    np.testing.assert_array_equal(first, before)


def test_the_kind_takes_a_folder_or_the_file_itself(
    onnx_mlp: Model, run_pass: Callable[..., Model], tmp_path: Path
) -> None:
    converted = run_pass("OpenVINOConversion", onnx_mlp)
    (converted.folder / "config.json").write_text("{}")
    kind = OpenVinoKind(plugin.drupe_model_kinds()[0])
    config = kind.Config.model_validate({"model_path": "somewhere"})
    for name, source, files in (
        ("folder", converted.folder, {"openvino_model.xml", "openvino_model.bin", "config.json"}),
        ("file", converted.folder / "openvino_model.xml", {"openvino_model.xml", "openvino_model.bin"}),
    ):
        output = tmp_path / name
        output.mkdir()
        assert set(kind.load(config, {"model": source}, PassContext(output, tmp_path)).files) == files


def test_half_an_ir_is_refused(tmp_path: Path) -> None:
    kind = OpenVinoKind(plugin.drupe_model_kinds()[0])
    config = kind.Config.model_validate({"model_path": "somewhere"})
    with pytest.raises(ConfigError, match="holds 0"):
        kind.load(config, {"model": tmp_path}, PassContext(tmp_path, tmp_path))
    (tmp_path / "m.xml").write_text("<net/>")
    with pytest.raises(ConfigError, match=r"m\.bin is missing"):
        kind.load(config, {"model": tmp_path}, PassContext(tmp_path, tmp_path))
