"""OpenVINOIoUpdate and OpenVINOEncapsulation."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from drupe import ConfigError, Model
from pydantic import ValidationError

from .conftest import made, opened, outputs


def test_shapes_are_fixed_and_freed_again(onnx_mlp: Model, run_pass: Callable[..., Model]) -> None:
    converted = run_pass("OpenVINOConversion", onnx_mlp)
    fixed = run_pass("OpenVINOIoUpdate", converted, static=True, input_shapes=[[2, 64]], input_names=["x"])
    assert opened(fixed).input_shapes()["x"] == ((2, 64), "float32")
    freed = run_pass("OpenVINOIoUpdate", fixed, static=False, reuse_cache=True)
    assert opened(freed).input_shapes()["x"][0][0] == "batch"
    x = np.ones((7, 64), np.float32)
    np.testing.assert_allclose(outputs(freed, {"x": x})["y"], outputs(converted, {"x": x})["y"], atol=1e-5)


def test_what_does_not_fit_the_model_is_named(onnx_mlp: Model, run_pass: Callable[..., Model]) -> None:
    converted = run_pass("OpenVINOConversion", onnx_mlp)
    with pytest.raises(ConfigError, match="no input z; it has: x"):
        run_pass("OpenVINOIoUpdate", converted, input_shapes=[[2, 64]], input_names=["z"])
    with pytest.raises(ConfigError, match="can't take the shapes"):
        run_pass("OpenVINOIoUpdate", converted, input_shapes=[[2, 63]])
    with pytest.raises(ValidationError, match="needs input_shapes"):
        made("OpenVINOIoUpdate").Config.model_validate({"static": True})


def wrapped(model: Model) -> Any:
    import onnx

    return onnx.load(model.folder / "model.onnx")


def test_the_wrapper_names_the_ir_and_has_its_inputs_and_outputs(
    onnx_mlp: Model, run_pass: Callable[..., Model]
) -> None:
    converted = run_pass("OpenVINOConversion", onnx_mlp, input_shapes=[[2, 64]])
    model = run_pass("OpenVINOEncapsulation", converted, target_device="npu", ov_version="2026.1")
    assert model.kind == "onnx"
    assert {"model.onnx", "openvino_model.xml", "openvino_model.bin"} <= set(model.files)
    graph = wrapped(model).graph
    (node,) = graph.node
    attributes = {a.name: a for a in node.attribute}
    assert node.op_type == "EPContext"
    assert attributes["ep_cache_context"].s == b"openvino_model.xml"
    assert attributes["ep_sdk_version"].s == b"2026.1"
    assert attributes["embed_mode"].i == 0
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [2, 64]
    assert [value.name for value in graph.output] == ["y"]


def test_open_axes_stay_only_when_asked_for(onnx_mlp: Model, run_pass: Callable[..., Model]) -> None:
    converted = run_pass("OpenVINOConversion", onnx_mlp)
    with pytest.raises(ConfigError, match="axis 0 of x is open; fix it with OpenVINOIoUpdate"):
        run_pass("OpenVINOEncapsulation", converted)
    model = run_pass("OpenVINOEncapsulation", converted, keep_ov_dynamic_dims=True)
    assert wrapped(model).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "x_0"


def test_an_override_is_merged_over_the_models_own_file(onnx_mlp: Model, run_pass: Callable[..., Model]) -> None:
    converted = run_pass("OpenVINOConversion", onnx_mlp)
    override = {"search": {"top_k": 1}, "model": {"context_length": 64}}
    with pytest.raises(ConfigError, match=r"no genai_config\.json"):
        run_pass("OpenVINOEncapsulation", converted, keep_ov_dynamic_dims=True, genai_config_override=override)
    (converted.folder / "genai_config.json").write_text(json.dumps({"model": {"context_length": 8, "type": "llama"}}))
    with_file = Model.from_dir("openvino", converted.folder)
    model = run_pass("OpenVINOEncapsulation", with_file, keep_ov_dynamic_dims=True, genai_config_override=override)
    merged = json.loads((model.folder / "genai_config.json").read_text())
    assert merged == {"model": {"context_length": 64, "type": "llama"}, "search": {"top_k": 1}}
