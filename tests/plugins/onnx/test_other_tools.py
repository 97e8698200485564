"""Graphs as other tools write them: the passes give what the source gives, or one message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from drupe.core.errors import PassError
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.plugins.onnx.plain import make_plain
from drupe.testing import make_context
from tests.plugins.onnx.graphs import CPU, answers, kinds, proto_of, run_pass, saved

RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "w1": RANDOM.normal(size=(64, 64)).astype(np.float32),
    "w2": RANDOM.normal(size=(64, 32)).astype(np.float32),
}
X = {"x": RANDOM.normal(size=(3, 64)).astype(np.float32)}
BODY = "{ [first] a = MatMul (x, w1) [middle] b = Relu (a) [last] y = MatMul (b, w2) }"


def graph(folder: Path, *, head: str = '<ir_version: 8, opset_import: ["" : 17]>', change: Any = None) -> Model:
    made = saved(folder, f"{head} g (float[n, 64] x) => (float[n, 32] y) {BODY}", WEIGHTS, check=False)
    if change is not None:
        proto = proto_of(made)
        change(proto)
        onnx.save(proto, folder / "model.onnx")
    return Model.from_dir("onnx", folder, {"onnx_file": "model.onnx"})


def sparse(proto: Any) -> None:
    """Some of w1's numbers, and no others, as a sparse initializer."""
    kept = [tensor for tensor in proto.graph.initializer if tensor.name != "w1"]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    values = helper.make_tensor("w1", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    places = helper.make_tensor("places", TensorProto.INT64, [3], [0, 65, 4095])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [64, 64]))


def sparse_constant(proto: Any) -> None:
    """As `sparse`, in a Constant node, with an index for each axis."""
    sparse(proto)
    (tensor,) = proto.graph.sparse_initializer
    tensor.indices.CopyFrom(helper.make_tensor("places", TensorProto.INT64, [3, 2], [0, 0, 1, 1, 63, 63]))
    node = helper.make_node("Constant", [], ["w1"], name="constant")
    node.attribute.append(helper.make_attribute("sparse_value", tensor))
    proto.graph.node.insert(0, node)
    del proto.graph.sparse_initializer[:]


def listed(proto: Any) -> None:
    """Weights are inputs as well."""
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))


def long_domain(proto: Any) -> None:
    proto.opset_import[0].domain = "ai.onnx"
    for node in proto.graph.node:
        node.domain = "ai.onnx"


def nameless(proto: Any) -> None:
    for node in proto.graph.node:
        node.name = ""


_NUMBERS = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}
CHAINS = (
    ("OnnxPeepholeOptimizer", {}, 1e-5),
    ("OnnxFloatToFloat16", {"keep_io_types": True}, 2e-2),
    ("OrtMixedPrecision", {}, 2e-2),
    ("OnnxDynamicQuantization", {}, 0.1),
    ("OnnxKQuantQuantization", {"bits": 8}, 0.1),
)


@pytest.mark.parametrize("change", [sparse, sparse_constant, listed, long_domain, nameless])
def test_what_the_format_allows_is_rewritten_as_what_is_usual(change: Callable[[Any], None], tmp_path: Path) -> None:
    source = graph(tmp_path / "source", change=change)
    (wanted,) = answers(source, X)
    for name, config, limit in CHAINS:
        result = run_pass(name, source, tmp_path / name, **config)
        (taken,) = proto_of(result).graph.input
        (found,) = answers(result, {taken.name: X["x"].astype(_NUMBERS[taken.type.tensor_type.elem_type])})
        assert np.linalg.norm(found - wanted) <= limit * np.linalg.norm(wanted), name


def test_files_of_the_first_years_are_quantized(tmp_path: Path) -> None:
    source = graph(tmp_path / "source", head='<ir_version: 3, opset_import: ["" : 7]>', change=listed)
    result = run_pass("OnnxKQuantQuantization", source, tmp_path / "out", bits=8)
    assert kinds(result)["MatMulNBits"] == 2
    np.testing.assert_allclose(answers(result, X)[0], answers(source, X)[0], atol=1.5)


def test_doubled_names_become_different() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y)'
    proto = onnx.parser.parse_model(text + "{ [n] a = Neg (x) [n] b = Abs (a) [n_1] y = Neg (b) }")
    assert make_plain(proto)
    assert [node.name for node in proto.graph.node] == ["n", "n_2", "n_1"]
    assert not make_plain(proto)


def test_functions_survive_another_operator_set(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    g (float[n, 4] x) => (float[n, 4] y) { y = own.Twice (x) }
    <domain: "own", opset_import: ["" : 17]> Twice (a) => (b) { b = Add (a, a) }"""
    source = saved(tmp_path / "source", text)
    result = run_pass("OnnxOpVersionConversion", source, tmp_path / "out", target_opset=21)
    batch = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
    np.testing.assert_array_equal(answers(result, batch)[0], 2 * batch["x"])


def test_weights_beside_the_graph_are_found_inside_its_branches(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 2] x, bool flag) => (float[n, 2] y) {
      y = If (flag) <then_branch = yes () => (float[n, 2] c) { c = Add (x, w) },
                     else_branch = no () => (float[n, 2] d) { d = Neg (x) }>
    }"""
    proto = onnx.parser.parse_model(text)
    inner = next(entry.g for entry in proto.graph.node[0].attribute if entry.name == "then_branch")
    tensor = numpy_helper.from_array(np.array([1, 2], np.float32), "w")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    inner.initializer.append(tensor)
    path = tmp_path / "model" / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    kind = get_registry().create("drupe_model_kinds", "onnx")
    context = make_context(tmp_path / "import")
    read = kind.load(type(kind).Config(model_path=str(path)), {"model": path}, context).at(context.output_dir)
    batch = {"x": np.ones((1, 2), np.float32), "flag": np.array(True)}
    assert answers(run_pass("OnnxPeepholeOptimizer", read, tmp_path / "out"), batch)[0].tolist() == [[2, 3]]


def test_a_number_without_axes_is_given_as_one(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[n] x, float[] s) => (float[n] y) { y = Mul (x, s) }'
    source = saved(tmp_path / "m", text, check=False)
    proto = proto_of(source)
    # The parser leaves the shape out where it has no axes.
    proto.graph.input[1].type.tensor_type.shape.SetInParent()
    onnx.save(proto, source.folder / "model.onnx")
    source = Model.from_dir("onnx", source.folder, source.attributes)
    runtime = get_registry().create("drupe_runtimes", "onnx")
    with runtime.open(source, CPU, runtime.options(CPU, {"threads": 1})) as session:
        got = session.forward({"x": np.ones(2, np.float32), "s": np.array(3, np.float32)}).outputs
    assert got["y"].tolist() == [3, 3]


HEAD = '<ir_version: 8, opset_import: ["" : 17, "acme" : 1]> g '


@pytest.mark.parametrize(
    ("name", "config", "text", "message"),
    [
        ("OnnxPeepholeOptimizer", {}, "(float[2] x) => (float[2] y, float[2] x) { y = Neg (x) }", "output that is an"),
        ("SplitModel", {}, "(float[2] x) => (float[2] y, float[2] x) { [a/n] b = Neg (x) [b/n] y = Neg (b) }",
         "the output x is an input or a constant"),
        ("SplitModel", {}, "(float[2] x) => (float[2] y) { [a/n] b = SequenceConstruct (x, x) "
         "[b/n] y = ConcatFromSequence <axis = 0> (b) }", r"the value b goes .* is a seq\(tensor\(float\)\)"),
        ("SplitModel", {}, "(float[2] x) => (float[2] y) { [a/n] b = acme.Wiggle (x) [b/n] y = Neg (b) }",
         "the types of b.*are not told"),
        ("OnnxFloatToFloat16", {}, "(seq(float[n]) x) => (float[m] y) { y = ConcatFromSequence <axis = 0> (x) }",
         "x is a sequence of tensors"),
    ],
)  # fmt: skip
def test_what_can_not_be_done_is_one_message(
    name: str, config: dict[str, Any], text: str, message: str, tmp_path: Path
) -> None:
    proto = onnx.parser.parse_model(HEAD + text.replace("[a/n]", '["a/n"]').replace("[b/n]", '["b/n"]'))
    (tmp_path / "m").mkdir()
    onnx.save(proto, tmp_path / "m" / "model.onnx")
    split = {"split": True, "split_assignments": {"a": 0, "b": 1}} if name == "SplitModel" else {}
    source = Model.from_dir("onnx", tmp_path / "m", {"onnx_file": "model.onnx", **split})
    with pytest.raises(PassError, match=message):
        run_pass(name, source, tmp_path / "out", **config)


def test_a_weight_that_a_product_shares_is_quantized_beside_the_others(tmp_path: Path) -> None:
    """A tied embedding: the product's weight is looked up and turned as well."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 64] x, int64[k] i) => (float[n, 64] y, float[k, 64] e) {
      a = MatMul (x, w1) t = Transpose (w1) y = MatMul (a, t) e = Gather (w1, i)
    }"""
    source = saved(tmp_path / "source", text, {"w1": WEIGHTS["w1"]})
    result = run_pass("OnnxDynamicQuantization", source, tmp_path / "out")
    batch = {**X, "i": np.array([3, 9])}
    for found, wanted in zip(answers(result, batch), answers(source, batch), strict=True):
        assert np.linalg.norm(found - wanted) <= 0.05 * np.linalg.norm(wanted)
    assert kinds(result)["MatMulInteger"] >= 1
