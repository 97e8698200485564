"""Masks near minus infinity and indices that floats calculate survive few bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from drupe.core.data import Sample
from drupe.core.model import Model
from drupe.plugins.onnx.index_arithmetic import index_arithmetic
from drupe.plugins.onnx.masking import masking
from drupe.testing import make_context, tiny_encoder
from tests.plugins.onnx.graphs import CPU, answers, kinds, proto_of, run_pass, saved

# A row of a table for each position, by the logarithm of its distance: as T5, MPNet and DeBERTa have them.
BUCKETS = """
<ir_version: 8, opset_import: ["" : 17]>
buckets (int64[n] distance, float[n, 4] x) => (float[n, 4] y)
<float sixteen = {16}, float step = {4.0281}, float last = {15}>
{
    plain = Cast <to = 1> (distance)
    share = Div (plain, sixteen)
    log = Log (share)
    scaled = Mul (log, step)
    low = Add (scaled, last)
    bucket = Cast <to = 7> (low)
    row = Gather (table, bucket)
    sum = Add (row, x)
    y = MatMul (sum, weights)
}
"""


def buckets(folder: Path) -> Model:
    random = np.random.default_rng(0)
    weights = {"table": random.normal(size=(40, 4)), "weights": random.normal(size=(4, 4))}
    return saved(folder, BUCKETS, {name: value.astype(np.float32) for name, value in weights.items()})


def batch() -> dict[str, np.ndarray]:
    distance = np.arange(16, 272)
    return {"distance": distance, "x": np.zeros((len(distance), 4), np.float32)}


def test_indices_are_the_same_in_half_precision_and_in_eight_bits(tmp_path: Path) -> None:
    source = buckets(tmp_path / "model")
    assert index_arithmetic(proto_of(source)) == ["Div_1", "Log_2", "Mul_3", "Add_4"]
    wanted = answers(source, batch())[0]
    half = run_pass("OnnxFloatToFloat16", source, tmp_path / "half", keep_io_types=True)
    np.testing.assert_allclose(answers(half, batch())[0], wanted, atol=0.02)
    whole = Sample("s", batch(), None, "k", {"whole_batch": True})
    context = make_context(tmp_path / "int8", accelerator=CPU, data={"rows": [whole]})
    eight = run_pass("OnnxStaticQuantization", source, tmp_path / "int8", context=context, data_config="rows")
    np.testing.assert_allclose(answers(eight, batch())[0], wanted, atol=0.2)


def test_attention_is_left_by_a_scale_for_eight_bits(tmp_path: Path) -> None:
    """A scale that reaches the mask makes every score 0, and attention a mean."""
    source = tiny_encoder(tmp_path / "model")
    graph = run_pass("OnnxConversion", source, tmp_path / "graph", use_dynamo_exporter=False, target_opset=17)
    random = np.random.default_rng(1)
    rows = [
        {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        for ids in random.integers(5, 90, (8, 16))
    ]
    samples = [Sample(str(number), row, None, str(number)) for number, row in enumerate(rows)]
    context = make_context(tmp_path / "int8", accelerator=CPU, data={"rows": samples})
    result = run_pass("OnnxStaticQuantization", graph, tmp_path / "int8", context=context, data_config="rows")
    assert "Softmax" in kinds(result)
    masks = {node.name: node.op_type for node in proto_of(graph).graph.node if node.name in masking(proto_of(graph))}
    assert sorted(set(masks.values())) == ["Add", "Softmax", "Where"]
    quantized = {
        name for node in proto_of(result).graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    softmax = [node for node in proto_of(result).graph.node if node.op_type == "Softmax"]
    assert not any(set(node.input) & quantized for node in softmax)
