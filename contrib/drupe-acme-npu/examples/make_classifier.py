"""Writes classifier.onnx, the model of the example: 64 → 48 → 10, fixed random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save


def main() -> None:
    """Write the model beside this file."""
    random = np.random.default_rng(2026)
    weights = {
        "w1": random.standard_normal((64, 48)) / 8,
        "b1": random.standard_normal(48) / 8,
        "w2": random.standard_normal((48, 10)) / 3,
        "b2": random.standard_normal(10) / 8,
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["hidden"], name="first"),
        helper.make_node("Relu", ["hidden"], ["active"], name="relu"),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["logits"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    save(model, Path(__file__).with_name("classifier.onnx"))


if __name__ == "__main__":
    main()
