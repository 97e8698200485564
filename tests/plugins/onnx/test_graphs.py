"""Graphs are written whatever their size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from drupe.plugins.onnx.graphs import byte_size, save_graph


def adding(width: int, count: int) -> ModelProto:
    """Return x + w0 + w1 + …; each weight of `width` numbers."""
    names = ["x", *(f"y{number}" for number in range(count))]
    nodes = [helper.make_node("Add", [names[k], f"w{k}"], [names[k + 1]]) for k in range(count)]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [width])] for name in (names[0], names[-1])]
    proto = helper.make_model(helper.make_graph(nodes, "adding", *ends))
    for number in range(count):
        weight = proto.graph.initializer.add(name=f"w{number}", data_type=TensorProto.FLOAT, dims=[width])
        weight.raw_data = np.ones(width, np.float32).tobytes()
    return proto


def test_a_graphs_size_is_protobufs_own_and_shrinks_by_what_lies_beside(tmp_path: Path) -> None:
    proto = adding(1000, 3)
    assert byte_size(proto) == proto.ByteSize() > 12000
    save_graph(proto, tmp_path, external=True)
    assert byte_size(proto) < 2000
    assert (tmp_path / "model.onnx.data").stat().st_size >= 12000


@pytest.mark.slow
@pytest.mark.full
def test_a_graph_of_more_than_two_gibibytes_is_written_beside_itself(tmp_path: Path) -> None:
    proto = adding(300 << 20, 2)
    assert byte_size(proto) == 2 * 4 * (300 << 20)
    path = save_graph(proto, tmp_path)
    assert path.stat().st_size < 10000
    assert (tmp_path / "model.onnx.data").stat().st_size == 2 * 4 * (300 << 20)
    (tmp_path / "model.onnx.data").unlink()
