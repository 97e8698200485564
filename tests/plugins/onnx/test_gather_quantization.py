"""Embedding tables of few bits: what ONNX Runtime reads from them is the table, to the grid's step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from drupe.core.errors import PassError
from drupe.core.model import Model
from tests.plugins.onnx.graphs import answers, kinds, run_pass


def embedding(folder: Path, width: int) -> tuple[Model, np.ndarray]:
    table = np.random.default_rng(0).standard_normal((40, width)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["embeds"], "embed")],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "m"])],
        [helper.make_tensor_value_info("embeds", TensorProto.FLOAT, ["n", "m", width])],
        [numpy_helper.from_array(table, "table")],
    )
    folder.mkdir()
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(proto, folder / "model.onnx")
    return Model.from_dir("onnx", folder, {}).at(folder), table


@pytest.mark.parametrize(("bits", "symmetric", "step"), [(4, True, 1 / 8), (4, False, 1 / 15), (8, True, 1 / 128)])
def test_the_table_of_a_graph_without_products_is_quantized(
    tmp_path: Path, bits: int, symmetric: bool, step: float
) -> None:
    model, table = embedding(tmp_path / "in", 96)
    options = {"bits": bits, "block_size": 32, "is_symmetric": symmetric}
    made = run_pass("OnnxBlockWiseRtnQuantization", model, tmp_path / "out", **options)
    assert kinds(made) == {"GatherBlockQuantized": 1}
    ids = np.arange(40).reshape(2, 20)
    (found,) = answers(made, {"ids": ids})
    blocks = table.reshape(40, 3, 32)
    spans = np.ptp(blocks, axis=2) if not symmetric else np.abs(blocks).max(axis=2)
    # Half a step of the grid, and on the short side of a symmetric one a whole step.
    assert np.abs(found.reshape(40, 3, 32) - blocks).max() <= spans.max() * step * (1 if symmetric else 0.51)
    assert np.corrcoef(found.ravel(), table.ravel())[0, 1] > 0.99


def test_where_only_products_are_asked_for_it_says_that_there_are_none(tmp_path: Path) -> None:
    model, _ = embedding(tmp_path / "in", 32)
    with pytest.raises(PassError, match="found nothing to quantize"):
        run_pass("OnnxBlockWiseRtnQuantization", model, tmp_path / "out", op_types_to_quantize=["MatMul"])
