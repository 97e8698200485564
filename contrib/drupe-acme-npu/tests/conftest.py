"""ONNX models made on the spot, and what compiles and opens them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drupe import Accelerator, Model, PassContext

from drupe_acme_npu import plugin
from drupe_acme_npu.compiler import AcmeCompile
from drupe_acme_npu.runtime import AcmeRuntime, AcmeSession

NPU = Accelerator("acme_npu", "AcmeExecutionProvider")


def onnx_model(folder: Path, nodes: Sequence[Any], weights: dict[str, np.ndarray], out: int, into: int = 16) -> Model:
    """Write a model x (batch, into) → y (batch, out)."""
    from onnx import TensorProto, helper, numpy_helper, save

    folder.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", into])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", out])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), folder / "model.onnx")
    return Model.from_dir("onnx", folder, {"task": "test"})


def mlp(folder: Path, width: int = 32) -> Model:
    """A Gemm with transB, a Relu, a MatMul with an Add, a Softmax; random weights."""
    from onnx import helper

    random = np.random.default_rng(0)
    weights = {
        "w1": random.standard_normal((width, 16)) / 4,
        "b1": random.standard_normal(width) / 4,
        "w2": random.standard_normal((width, 8)) / 4,
        "b2": random.standard_normal(8) / 4,
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["m"]),
        helper.make_node("Add", ["m", "b2"], ["a"]),
        helper.make_node("Softmax", ["a"], ["y"]),
    ]
    return onnx_model(folder, nodes, weights, 8)


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[..., Model]:
    """Return what compiles a model and gives the result, in a folder."""
    count = 0

    def run(model: Model, **values: Any) -> Model:
        nonlocal count
        count += 1
        output = tmp_path / f"compiled-{count}"
        output.mkdir()
        pass_ = AcmeCompile(plugin.drupe_passes()[0])
        context = PassContext(output, tmp_path, accelerator=NPU)
        return pass_(model, pass_.Config.model_validate(values), context).at(output)

    return run


def opened(model: Model, **options: Any) -> AcmeSession:
    runtime = AcmeRuntime(plugin.drupe_runtimes()[0])
    session = runtime.open(model, NPU, runtime.options(NPU, options))
    assert isinstance(session, AcmeSession)
    return session
