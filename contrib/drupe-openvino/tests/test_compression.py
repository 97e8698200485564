"""OpenVINOWeightCompression and OpenVINOQuantization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from drupe import ConfigError, Model, Sample
from pydantic import ValidationError

from .conftest import OPENVINO, made, outputs, text_samples


def weight_types(model: Model) -> set[str]:
    """Return the element types of a model's constants with two axes."""
    from drupe_openvino.libraries import openvino

    graph = openvino().Core().read_model(next(model.folder.glob("*.xml")))
    constants = (op for op in graph.get_ops() if op.get_type_name() == "Constant")
    return {op.get_element_type().get_type_name() for op in constants if len(op.get_output_shape(0)) >= 2}


def cosine(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], name: str) -> float:
    x, y = a[name].ravel().astype(float), b[name].ravel().astype(float)
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.mark.parametrize(
    ("values", "kind"),
    [({"mode": "int8_asym"}, "u8"), ({"mode": "int4_sym", "group_size": 32, "all_layers": True}, "i4")],
)
def test_weights_take_the_type_asked_for_and_outputs_stay_close(
    values: dict[str, Any], kind: str, onnx_mlp: Model, run_pass: Callable[..., Model]
) -> None:
    converted = run_pass("OpenVINOConversion", onnx_mlp)
    compressed = run_pass("OpenVINOWeightCompression", converted, **values)
    assert kind in weight_types(compressed)
    assert compressed.attributes["quantization"] == values["mode"]
    x = {"x": np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32)}
    assert cosine(outputs(converted, x), outputs(compressed, x), "y") > 0.98
    assert sum((compressed.folder / n).stat().st_size for n in compressed.files if n.endswith(".bin")) < 5000


def test_equal_work_gives_equal_digests(onnx_mlp: Model, run_pass: Callable[..., Model]) -> None:
    converted = run_pass("OpenVINOConversion", onnx_mlp)
    first, second = (run_pass("OpenVINOWeightCompression", converted) for _ in range(2))
    assert first.digest == second.digest


def test_calibration_data_is_used(bert: Model, run_pass: Callable[..., Model]) -> None:
    converted = run_pass("OpenVINOConversion", bert)
    values = {"mode": "int4_asym", "group_size": 32, "data_config": "d", "scale_estimation": True}
    compressed = run_pass("OpenVINOWeightCompression", converted, data=text_samples(4), **values)
    assert "u4" in weight_types(compressed)


def test_a_group_size_that_fits_no_layer_says_so(onnx_mlp: Model, run_pass: Callable[..., Model]) -> None:
    converted = run_pass("OpenVINOConversion", onnx_mlp)
    with pytest.raises(ConfigError, match="group_size 48"):
        run_pass("OpenVINOWeightCompression", converted, mode="int4_sym", group_size=48, all_layers=True)


def test_ignored_layers_keep_their_type(onnx_mlp: Model, run_pass: Callable[..., Model]) -> None:
    converted = run_pass("OpenVINOConversion", onnx_mlp)
    left = run_pass(
        "OpenVINOWeightCompression", converted, ignored_scope=["MatMul"], ignored_scope_type="types", mode="int8_sym"
    )
    assert "i8" not in weight_types(left)


def test_compressing_twice_is_refused_while_planning() -> None:
    pass_ = made("OpenVINOWeightCompression")
    from drupe import ModelInfo

    with pytest.raises(ConfigError, match="int8_asym already"):
        pass_.plan(ModelInfo("openvino", {"quantization": "int8_asym"}), pass_.Config(), OPENVINO)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "int8_sym", "ratio": 0.5}, "ratio apply to 4-bit modes only"),
        ({"mode": "int4_sym", "gptq": True}, "name a data_config"),
        ({"mode": "int5"}, "mode"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        made("OpenVINOWeightCompression").Config.model_validate(values)


def test_nested_arguments_and_capitals_are_read() -> None:
    config: Any = made("OpenVINOWeightCompression").Config.model_validate(
        {"compress_config": {"mode": "INT4_SYM", "ratio": 0.8}, "group_size": 64}
    )
    assert (config.mode, config.ratio, config.group_size) == ("int4_sym", 0.8, 64)


def test_quantization_calibrates_activations(bert: Model, run_pass: Callable[..., Model]) -> None:
    converted = run_pass("OpenVINOConversion", bert)
    quantized = run_pass("OpenVINOQuantization", converted, data=text_samples(8), data_config="d")
    xml = (quantized.folder / "openvino_model.xml").read_text()
    assert "FakeQuantize" in xml
    sample = text_samples(1)[0].inputs
    batch = {name: np.asarray(value)[None] for name, value in sample.items()}
    batch["token_type_ids"] = np.zeros_like(batch["input_ids"])
    assert cosine(outputs(converted, batch), outputs(quantized, batch), "logits") > 0.9


def test_calibration_without_samples_or_with_others_is_an_error(bert: Model, run_pass: Callable[..., Model]) -> None:
    converted = run_pass("OpenVINOConversion", bert)
    with pytest.raises(ConfigError, match="gives no samples"):
        run_pass("OpenVINOQuantization", converted, data_config="d")
    with pytest.raises(ConfigError, match=r"no input 'input_ids'.*text"):
        run_pass("OpenVINOQuantization", converted, data=[Sample("a", {"text": "x"})], data_config="d")
