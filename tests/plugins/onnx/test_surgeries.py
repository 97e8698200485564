"""GraphSurgeries and each of its surgeons: graphs written as text, before and after through plain onnxruntime."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from pydantic import ValidationError

from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.plugins.onnx.graph_surgeries import GraphSurgeriesConfig
from drupe.testing import PassContract, make_context, tiny_causal_lm, tiny_onnx_mlp
from tests.plugins.onnx.graphs import CPU, answers, graph_file, kinds, proto_of, run_pass, saved

RANDOM = np.random.default_rng(0)
HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
MICROSOFT = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'


class TestGraphSurgeries(PassContract):
    name = "GraphSurgeries"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_onnx_mlp(tmp_path / "model")

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"surgeries": [{"surgeon": "GemmToMatMulAdd"}]}


def operate(model: Model, folder: Path, *surgeries: str | dict[str, Any]) -> Model:
    entries = [{"surgeon": entry} if isinstance(entry, str) else entry for entry in surgeries]
    return run_pass("GraphSurgeries", model, folder, surgeries=entries)


def weights(**shapes: Sequence[int]) -> dict[str, np.ndarray]:
    return {name: RANDOM.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def assert_same(before: Model, after: Model, *batches: dict[str, np.ndarray], atol: float = 1e-5) -> None:
    for batch in batches:
        for one, other in zip(answers(before, batch), answers(after, batch), strict=True):
            np.testing.assert_allclose(one, other, atol=atol)


# The pass


def test_a_surgeon_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(
        ValidationError, match=r"surgeries\[1\]: no plugin provides a surgeon 'GemToMatMulAdd'; did you"
    ):
        GraphSurgeriesConfig(surgeries=[{"surgeon": "RemoveShapes"}, {"surgeon": "GemToMatMulAdd"}])
    with pytest.raises(ValidationError, match=r"surgeries\[0\] has no surgeon"):
        GraphSurgeriesConfig(surgeries=[{"name": "RemoveShapes"}])
    with pytest.raises(ValidationError, match=r"surgeries\[0\] \(ReplaceAttentionMaskValue\): value: Extra inputs"):
        GraphSurgeriesConfig(surgeries=[{"surgeon": "replaceattentionmaskvalue", "value": 1}])


def test_the_defaults_of_a_surgeon_are_part_of_the_config() -> None:
    config = GraphSurgeriesConfig(surgeries=[{"surgeon": "ReplaceAttentionMaskValue"}])
    assert config.surgeries == [{"surgeon": "ReplaceAttentionMaskValue", "threshold": -3e30, "replacement": -1e4}]


def test_places_are_counted_and_a_surgeon_without_work_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = make_context(tmp_path / "job", accelerator=CPU)
    entries = [{"surgeon": "GemmToMatMulAdd"}, {"surgeon": "ReciprocalMulToDiv"}]
    run_pass("GraphSurgeries", tiny_onnx_mlp(tmp_path / "model"), tmp_path, context=context, surgeries=entries)
    assert [entry["places"] for entry in context.report["surgeries"]["model.onnx"]] == [2, 0]
    assert "surgeries[1] (ReciprocalMulToDiv) found nothing to change in model.onnx" in caplog.text


def test_every_surgeon_says_what_it_does_and_documents_its_parameters() -> None:
    registry = get_registry()
    for entry in registry.of("drupe_surgeons"):
        surgeon = registry.resolve(entry)
        assert surgeon.__doc__ and entry.spec.summary
        assert all(info.description for info in surgeon.Config.model_fields.values()), entry.spec.name


# Products, quotients, constants


@pytest.mark.parametrize("attributes", ["", "<transB = 1>", "<alpha = 0.5, beta = 2.0, transA = 1, transB = 1>"])
def test_gemm_becomes_matmul_and_add(tmp_path: Path, attributes: str) -> None:
    text = f"{HEADER} g (float[4, 4] x, float[4, 4] z) => (float[N, M] y) {{ h = Gemm{attributes}(x, w, b)"
    source = saved(tmp_path / "m", f"{text}  y = Gemm{attributes}(h, z) }}", weights(w=(4, 4), b=(4,)))
    result = operate(source, tmp_path / "job", "GemmToMatMulAdd")
    assert "Gemm" not in kinds(result) and kinds(result)["MatMul"] == 2
    assert_same(source, result, weights(x=(4, 4), z=(4, 4)))


def test_equal_initializers_are_kept_once_where_that_is_asked_for(tmp_path: Path) -> None:
    text = f"{HEADER} g (float[N, 64] x) => (float[N, 64] y) {{ h = MatMul(x, v) y = MatMul(h, w) }}"
    same = RANDOM.normal(size=(64, 64)).astype(np.float32)
    source = saved(tmp_path / "m", text, {"v": same, "w": same.copy()})
    surgeries = [{"surgeon": "GemmToMatMulAdd"}]
    kept = run_pass("GraphSurgeries", source, tmp_path / "a", surgeries=surgeries)
    once = run_pass("GraphSurgeries", source, tmp_path / "b", surgeries=surgeries, remove_duplicate_initializers=True)
    assert [len(proto_of(model).graph.initializer) for model in (kept, once)] == [2, 1]
    assert_same(source, once, weights(x=(2, 64)))


@pytest.mark.parametrize("shape", ["N, 4", "N, 3, 4", "N, L, 4", "2, N, L, 4"])
def test_matmul_and_add_become_gemm(tmp_path: Path, shape: str) -> None:
    names = ", ".join(part.strip() for part in shape.split(",")[:-1])
    text = f"{HEADER} g (float[{shape}] x) => (float[{names}, 5] y) {{ h = MatMul(x, w)  y = Add(b, h) }}"
    source = saved(tmp_path / "m", text, weights(w=(4, 5), b=(5,)))
    result = operate(source, tmp_path / "job", "MatMulAddToGemm")
    assert kinds(result)["Gemm"] == 1 and "MatMul" not in kinds(result)
    sizes = [int(part) if part.strip().isdigit() else 2 for part in shape.split(",")]
    assert_same(source, result, weights(x=sizes))


def test_axes_that_the_graph_does_not_tell_are_inferred(tmp_path: Path) -> None:
    text = f"""{HEADER} g (float[N, L, 4] x) => (float[N, L, 4] y)
    {{ h = MatMul(x, w)  i = Add(h, b)  r = Relu(i)  j = MatMul(r, w)  y = Add(j, b) }}"""
    source = saved(tmp_path / "m", text, weights(w=(4, 4), b=(4,)))
    result = operate(source, tmp_path / "job", "MatMulAddToGemm")
    assert kinds(result)["Gemm"] == 2
    assert_same(source, result, weights(x=(2, 3, 4)))


def test_a_product_that_is_read_twice_stays(tmp_path: Path) -> None:
    text = f"{HEADER} g (float[N, 4] x) => (float[N, 5] y, float[N, 5] h) {{ h = MatMul(x, w)  y = Add(h, b) }}"
    source = saved(tmp_path / "m", text, weights(w=(4, 5), b=(5,)))
    assert kinds(operate(source, tmp_path / "job", "MatMulAddToGemm")) == {"MatMul": 1, "Add": 1}


def test_a_product_with_a_reciprocal_becomes_a_quotient(tmp_path: Path) -> None:
    text = f"{HEADER} g (float[N] a, float[N] b) => (float[N] y) {{ r = Reciprocal(b)  y = Mul(r, a) }}"
    source = saved(tmp_path / "m", text)
    result = operate(source, tmp_path / "job", "ReciprocalMulToDiv")
    assert kinds(result) == {"Div": 1}
    assert_same(source, result, {"a": np.ones(3, np.float32), "b": np.full(3, 4, np.float32)})


def test_constants_near_minus_infinity_become_bearable(tmp_path: Path) -> None:
    text = f"""{HEADER} g (float[N, 2] x, int64[1] n) => (float[N, 2] y, float[K] z, float[N, 2] v)
    <float[2] mask = {{0.0, -3.4e38}}> {{
      y = Add(x, mask)  z = ConstantOfShape<value = float[1] {{-3.4e38}}>(n)  c = Constant<value_float = -3.4e38>()
      v = Max(x, c) }}"""
    source = saved(tmp_path / "m", text)
    result = operate(source, tmp_path / "job", {"surgeon": "ReplaceAttentionMaskValue", "replacement": -50})
    y, z, v = answers(result, {"x": np.full((1, 2), -100, np.float32), "n": np.asarray([1])})
    assert y.tolist() == [[-100, -150]] and z.tolist() == [-50] and v.tolist() == [[-50, -50]]


# Norms


@pytest.mark.parametrize("skip", [False, True])
def test_an_rms_norm_becomes_an_l2_norm(tmp_path: Path, skip: bool) -> None:
    call = (
        "y, m, d, s = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 1e-6>(x, z, w)  t = Neg(s)"
        if skip
        else "y = SimplifiedLayerNormalization<axis = -1, epsilon = 1e-6>(x, w)  t = Neg(z)"
    )
    text = f"{MICROSOFT} g (float[N, 8] x, float[N, 8] z) => (float[N, 8] y, float[N, 8] t) {{ {call} }}"
    source = saved(tmp_path / "m", text, weights(w=(8,)), check=False)
    result = operate(source, tmp_path / "job", "SimplifiedLayerNormToL2Norm")
    assert kinds(result) == {"LpNormalization": 1, "Mul": 1, "Neg": 1, **({"Add": 1} if skip else {})}
    assert_same(source, result, weights(x=(3, 8), z=(3, 8)), atol=1e-4)


@pytest.mark.parametrize(
    "norm",
    [
        "p = Pow(x, two)  r = ReduceSum<keepdims = 1>(p, axes)  n = Pow(r, half)",
        "p = Mul(x, x)  r = ReduceSum<keepdims = 1>(p, axes)  q = Sqrt(r)  n = Clip(q, tiny)",
        "n = ReduceL2<axes = [1]>(x)",
    ],
)
def test_a_spelled_out_norm_becomes_one_operator(tmp_path: Path, norm: str) -> None:
    text = f"""{HEADER} g (float[N, 6] x) => (float[N, 6] y)
    <int64[1] axes = {{1}}, float two = {{2.0}}, float half = {{0.5}}, float tiny = {{1e-12}}> {{
      {norm}  y = Div(x, n) }}"""
    source = saved(tmp_path / "m", text)
    result = operate(source, tmp_path / "job", "PowReduceSumPowDiv2LpNorm")
    assert kinds(result) == {"LpNormalization": 1}
    assert_same(source, result, weights(x=(4, 6)))


def test_a_quotient_of_another_kind_stays(tmp_path: Path) -> None:
    text = f"""{HEADER} g (float[N, 6] x, float[N, 6] z) => (float[N, 6] y)
    <int64[1] axes = {{1}}, float two = {{2.0}}, float half = {{0.5}}> {{
      p = Pow(z, two)  r = ReduceSum<keepdims = 1>(p, axes)  n = Pow(r, half)  y = Div(x, n) }}"""
    assert "LpNormalization" not in kinds(
        operate(saved(tmp_path / "m", text), tmp_path / "j", "PowReduceSumPowDiv2LpNorm")
    )


# Borders


def test_inputs_and_outputs_get_other_names(tmp_path: Path) -> None:
    text = f"""{HEADER} g (float[N] a, float[M] b) => (float[N] y) {{
      c = Neg(a)  z = Neg(b)  s = ReduceSum(z)  y = Add(c, s) }}"""
    source = saved(tmp_path / "m", text)
    swap = {"surgeon": "RenameInputs", "old_names": ["a", "b"], "new_names": ["b", "a"]}
    rename = {"surgeon": "RenameOutputs", "old_names": ["y"], "new_names": ["z"]}
    result = operate(source, tmp_path / "job", swap, rename)
    session = ort.InferenceSession(str(graph_file(result)))
    assert [value.name for value in session.get_inputs()] == ["b", "a"]
    assert [value.name for value in session.get_outputs()] == ["z"]
    a, b = np.arange(3, dtype=np.float32), np.ones(2, np.float32)
    assert_equal = np.testing.assert_array_equal
    assert_equal(answers(source, {"a": a, "b": b})[0], answers(result, {"b": a, "a": b})[0])
    with pytest.raises(ConfigError, match="no output 'q'; it has z"):
        operate(result, tmp_path / "again", {**rename, "old_names": ["q"]})


def test_axes_get_names_and_inputs_another_order(tmp_path: Path) -> None:
    text = f"{HEADER} g (float[N, 4] a, float[N, 4] b) => (float[N, 4] y) {{ y = Sub(a, b) }}"
    result = operate(
        saved(tmp_path / "m", text),
        tmp_path / "job",
        {"surgeon": "RenameInputDims", "input_name": "b", "dim_idx": 0, "dim_name": "rows"},
        {"surgeon": "RenameInputDims", "input_idx": 0, "dim_idx": 0, "dim_name": "rows"},
        {"surgeon": "RenameOutputDims", "output_idx": 0, "dim_idx": 0, "dim_name": "rows"},
        {"surgeon": "ReorderInputs", "permutation": [1, 0]},
    )
    graph = proto_of(result).graph
    assert [value.name for value in graph.input] == ["b", "a"]
    shown = [value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.input, *graph.output)]
    assert shown == ["rows"] * 3


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"surgeon": "RenameInputDims", "input_name": "q", "dim_idx": 0, "dim_name": "n"}, "no 'q'; it has x"),
        ({"surgeon": "RenameInputDims", "input_idx": 3, "dim_idx": 0, "dim_name": "n"}, "there is no number 3"),
        ({"surgeon": "RenameOutputDims", "output_idx": 0, "dim_idx": 9, "dim_name": "n"}, "no axis 9"),
        ({"surgeon": "ReorderInputs", "permutation": [1]}, "no order of 1 inputs"),
        ({"surgeon": "ZeroOutInput", "node_name": "third", "input_idx": 0}, "no node 'third'"),
        ({"surgeon": "ExposeOutputs", "names": ["third"]}, "no node 'third'"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        operate(tiny_onnx_mlp(tmp_path / "m"), tmp_path / "job", entry)


def test_inner_values_can_be_looked_at_and_inputs_be_zero(tmp_path: Path) -> None:
    source = tiny_onnx_mlp(tmp_path / "m")
    result = operate(
        source,
        tmp_path / "job",
        "InferShapes",
        {"surgeon": "ExposeOutputs", "names": ["relu"]},
        {"surgeon": "ZeroOutInput", "node_name": "second", "input_idx": 2},
    )
    logits, inner = answers(result, {"x": np.ones((2, 8), np.float32)})
    assert inner.shape == (2, 16) and (inner >= 0).all()
    w2 = next(onnx.numpy_helper.to_array(t) for t in proto_of(source).graph.initializer if t.name == "w2")
    np.testing.assert_allclose(logits, inner @ w2, atol=1e-5)


def test_shapes_can_be_forgotten_and_weights_stop_being_inputs(tmp_path: Path) -> None:
    source = tiny_onnx_mlp(tmp_path / "m")
    known = operate(source, tmp_path / "a", "InferShapes")
    forgotten = operate(known, tmp_path / "b", "RemoveShapes")
    inner = [{value.name for value in proto_of(model).graph.value_info} & {"h", "r"} for model in (known, forgotten)]
    assert inner == [{"h", "r"}, set()]
    proto = proto_of(source)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w1", onnx.TensorProto.FLOAT, [8, 16]))
    onnx.save(proto, graph_file(source))
    cleaned = operate(Model.from_dir("onnx", source.folder), tmp_path / "c", "RemoveInitializerFromInputs")
    assert [value.name for value in proto_of(cleaned).graph.input] == ["x"]


# Tables of decoders


def tied(folder: Path) -> Model:
    table = RANDOM.normal(size=(40, 64)).astype(np.float32)
    text = f"""{HEADER} g (int64[N, L] ids) => (float[N, L, 40] logits) {{
      h = Gather(table, ids)  t = Tanh(h)  logits = MatMul(t, head) }}"""
    return saved(folder, text, {"table": table, "head": np.ascontiguousarray(table.T)})


def test_one_table_serves_embedding_and_head(tmp_path: Path) -> None:
    source = tied(tmp_path / "m")
    result = operate(source, tmp_path / "job", "InferShapes", "TieWordEmbeddings")
    assert graph_file(result).stat().st_size < 0.6 * graph_file(source).stat().st_size
    assert_same(source, result, {"ids": np.asarray([[1, 2, 39]])})


def test_tables_that_differ_stay_two(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = f"{HEADER} g (int64[N, L] ids) => (float[N, L, 9] y) {{ h = Gather(t, ids)  y = MatMul(h, w) }}"
    source = saved(tmp_path / "m", text, weights(t=(9, 4), w=(4, 9)))
    result = operate(source, tmp_path / "job", "InferShapes", "TieWordEmbeddings")
    assert kinds(result)["MatMul"] == 1 and "(TieWordEmbeddings) found nothing" in caplog.text


def test_an_embedding_of_8_bits_is_shared_with_a_head_of_8_bits(tmp_path: Path) -> None:
    source = tied(tmp_path / "m")
    head = run_pass("OnnxBlockWiseRtnQuantization", source, tmp_path / "a", bits=8, block_size=32, is_symmetric=True)
    both = operate(head, tmp_path / "b", "QuantizeEmbeddingInt8")
    shared = operate(both, tmp_path / "c", "ShareEmbeddingLmHead")
    assert kinds(both)["GatherBlockQuantized"] == 1
    assert graph_file(shared).stat().st_size < 0.7 * graph_file(both).stat().st_size
    batch = {"ids": np.asarray([[1, 2, 39]])}
    assert_same(both, shared, batch, atol=1e-6)
    assert_same(source, shared, batch, atol=0.2)


def test_the_rotary_table_for_short_contexts_stays(tmp_path: Path) -> None:
    small, large = weights(a=(4, 3))["a"], weights(a=(9, 3))["a"]
    proto = onnx.parser.parse_model(
        f"""{HEADER} g (int64[1] n) => (float[R, 3] y) <int64[1] most = {{4}}> {{
          long = Greater(n, most)  flag = Squeeze(long)
          cos = If (flag) <then_branch = b1 () => (float[9, 3] l) {{ l = Constant<value_float = 0.0>() }},
                           else_branch = b2 () => (float[4, 3] s) {{ s = Constant<value_float = 0.0>() }}>
          y = Neg(cos) }}"""
    )
    branches = next(node for node in proto.graph.node if node.op_type == "If").attribute
    for attribute, table in zip(branches, (large, small), strict=True):
        constant = attribute.g.node[0]
        del constant.attribute[:]
        constant.attribute.append(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(table)))
    folder = tmp_path / "m"
    folder.mkdir()
    onnx.save(proto, folder / "model.onnx")
    source = Model.from_dir("onnx", folder, {"onnx_file": "model.onnx"})
    result = operate(source, tmp_path / "job", "RemoveRopeMultiCache")
    assert kinds(result) == {"Neg": 1}
    assert answers(result, {"n": np.asarray([9])})[0].shape == (4, 3)
    kept = operate(source, tmp_path / "more", {"surgeon": "RemoveRopeMultiCache", "use_large_cache": True})
    np.testing.assert_array_equal(answers(kept, {"n": np.asarray([1])})[0], -large)


def test_lengths_become_inputs_of_a_decoder(tmp_path: Path) -> None:
    source = tiny_causal_lm(tmp_path / "model", hidden_size=128, num_attention_heads=4)
    built = run_pass("ModelBuilder", source, tmp_path / "a", precision="fp32")
    result = operate(built, tmp_path / "b", "AttentionMaskToSequenceLengths")
    session = ort.InferenceSession(str(graph_file(result)), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    assert "attention_mask" not in names and {"past_seq_len", "total_seq_len"} <= set(names)
    ids = np.asarray([[5, 6, 7, 8]])
    empty = {
        value.name: np.zeros((1, 2, 0, 32), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values")
    }
    before = ort.InferenceSession(str(graph_file(built))).run(
        ["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids), **empty}
    )
    lengths = {"past_seq_len": np.asarray([[3]], np.int32), "total_seq_len": np.asarray([4], np.int32)}
    after = session.run(["logits"], {"input_ids": ids, **lengths, **empty})
    np.testing.assert_allclose(before[0], after[0], atol=1e-5)


def test_packed_attention_becomes_a_loop(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "custom" : 1]>
    g (float[1, 2, L, 4] q, float[1, 2, L, 4] k, float[1, 2, L, 4] v, int32[P] cu) => (float[1, L, 2, 4] y) {
      y = custom.PackedAttention<num_heads = 2, scale = 0.5>(q, k, v, cu) }"""
    result = operate(saved(tmp_path / "m", text, check=False), tmp_path / "job", "PackedAttentionToLoopMHA")
    batch = weights(q=(1, 2, 7, 4), k=(1, 2, 7, 4), v=(1, 2, 7, 4))
    bounds = np.asarray([0, 3, 7], np.int32)
    [got] = answers(result, {**batch, "cu": bounds})
    expected = np.zeros((1, 7, 2, 4), np.float32)
    for begin, end in itertools.pairwise(bounds):
        for head in range(2):
            q, k, v = (batch[name][0, head, begin:end] for name in "qkv")
            scores = np.exp(q @ k.T * 0.5)
            expected[0, begin:end, head] = scores / scores.sum(1, keepdims=True) @ v
    np.testing.assert_allclose(got, expected, atol=1e-5)
