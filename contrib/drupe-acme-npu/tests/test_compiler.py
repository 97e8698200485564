"""AcmeCompile, and what the device computes of its programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drupe import Accelerator, ConfigError, EvaluationError, Model, ModelInfo

from drupe_acme_npu import plugin
from drupe_acme_npu.compiler import AcmeCompile

from .conftest import NPU, mlp, onnx_model, opened

Compile = Callable[..., Model]


def reference(model: Model, x: np.ndarray) -> np.ndarray:
    """What ONNX's own reference implementation computes."""
    from onnx.reference import ReferenceEvaluator

    result: np.ndarray = ReferenceEvaluator(str(model.folder / "model.onnx")).run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize(("bits", "off"), [(16, 2e-3), (8, 2e-2)])
def test_the_device_computes_what_the_graph_says_as_closely_as_its_weights_allow(
    bits: int, off: float, compiled: Compile, tmp_path: Path
) -> None:
    model = mlp(tmp_path / "mlp")
    x = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)
    session = opened(compiled(model, weight_bits=bits, batch_size=3))
    y = session.forward({"x": x}).outputs["y"]
    assert np.abs(y - reference(model, x)).max() < off
    np.testing.assert_allclose(y.sum(1), 1, atol=2e-3)


def test_a_program_holds_integers_and_no_trace_of_the_graph(compiled: Compile, tmp_path: Path) -> None:
    made = compiled(mlp(tmp_path / "mlp"))
    assert set(made.files) == {"program.json", "weights.npz"}
    assert made.attributes == {"task": "test", "quantization": "int8"}
    with np.load(made.folder / "weights.npz") as weights:
        assert {weights[name].dtype for name in weights.files} == {np.dtype(np.int8)}


def test_equal_work_gives_equal_digests(compiled: Compile, tmp_path: Path) -> None:
    model = mlp(tmp_path / "mlp")
    assert compiled(model).digest == compiled(model).digest


def test_all_operations_that_the_device_lacks_are_named_at_once(compiled: Compile, tmp_path: Path) -> None:
    from onnx import helper

    nodes = [
        helper.make_node("Erf", ["x"], ["e"], name="gelu/erf"),
        helper.make_node("Relu", ["e"], ["r"]),
        helper.make_node("Sin", ["r"], ["y"]),
    ]
    with pytest.raises(ConfigError, match=r"can't run Erf \(gelu/erf\), Sin \(y\); it has: Add, MatMul"):
        compiled(onnx_model(tmp_path / "m", nodes, {}, 16))


def test_flatten_identity_and_reshape_are_translated(compiled: Compile, tmp_path: Path) -> None:
    from onnx import helper, numpy_helper

    shape = helper.make_node(
        "Constant", [], ["s"], value=numpy_helper.from_array(np.array([-1, 4, 4], np.int64), "s_value")
    )
    nodes = [
        shape,
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("Reshape", ["i", "s"], ["c"]),
        helper.make_node("Transpose", ["c"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Flatten", ["t"], ["y"]),
    ]
    model = onnx_model(tmp_path / "m", nodes, {}, 16)
    x = np.arange(32, dtype=np.float32).reshape(2, 16)
    y = opened(compiled(model, batch_size=2)).forward({"x": x}).outputs["y"]
    np.testing.assert_array_equal(y, reference(model, x))


@pytest.mark.parametrize(
    ("info", "accelerator", "message"),
    [
        (ModelInfo("onnx"), Accelerator("cpu", "CPUExecutionProvider"), "is for acme_npu; the target's device is cpu"),
        (ModelInfo("hf"), NPU, "takes onnx models and would be given hf"),
        (ModelInfo("onnx", {"quantization": "int4"}), NPU, "leave out the pass that made it int4"),
    ],
)
def test_what_cannot_work_is_refused_while_planning(info: ModelInfo, accelerator: Any, message: str) -> None:
    pass_ = AcmeCompile(plugin.drupe_passes()[0])
    with pytest.raises(ConfigError, match=message):
        pass_.plan(info, pass_.Config(), accelerator)


def test_a_batch_of_another_shape_is_refused(compiled: Compile, tmp_path: Path) -> None:
    session = opened(compiled(mlp(tmp_path / "mlp")))
    assert session.input_shapes() == {"x": ((1, 16), "float32")}
    with pytest.raises(EvaluationError, match=r"shape \(2, 16\); the program was compiled for \(1, 16\)"):
        session.forward({"x": np.zeros((2, 16), np.float32)})


def test_time_and_energy_come_from_the_device(compiled: Compile, tmp_path: Path) -> None:
    x = {"x": np.zeros((1, 16), np.float32)}
    small = opened(compiled(mlp(tmp_path / "small", 32))).forward(x)
    wide = opened(compiled(mlp(tmp_path / "wide", 4096))).forward(x)
    wide16 = opened(compiled(mlp(tmp_path / "wide16", 4096), weight_bits=16)).forward(x)
    assert small.device_seconds and wide.device_seconds and wide16.device_seconds
    assert small.device_seconds < wide.device_seconds < wide16.device_seconds
    assert small.counters["energy"] < wide.counters["energy"] < wide16.counters["energy"]
    slow = opened(compiled(mlp(tmp_path / "slow", 32)), clock_mhz=100).forward(x)
    assert slow.device_seconds == pytest.approx(4 * small.device_seconds)


def test_a_program_with_an_unknown_operation_is_not_opened(compiled: Compile, tmp_path: Path) -> None:
    made = compiled(mlp(tmp_path / "mlp"))
    path = made.folder / "program.json"
    path.write_text(path.read_text().replace('"Softmax"', '"TopK"'))
    with pytest.raises(EvaluationError, match="this device has no TopK"):
        opened(made)


def test_a_clock_that_the_device_lacks_is_refused() -> None:
    from drupe_acme_npu.runtime import AcmeRuntime

    runtime = AcmeRuntime(plugin.drupe_runtimes()[0])
    for options in ({"clock_mhz": 900}, {"clock": 100}):
        with pytest.raises(ConfigError, match="clock"):
            runtime.options(NPU, options)
