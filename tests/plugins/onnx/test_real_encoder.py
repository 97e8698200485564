"""The graph passes on MiniLM: sentences lie where transformers puts them, by plain onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from drupe.core.context import Resources
from drupe.core.data import Sample
from drupe.core.model import Model
from drupe.testing import make_context
from tests.plugins.onnx.graphs import CPU, answers, graph_file, kinds, proto_of, run_pass
from tests.plugins.real_models import Sentences
from tests.support.texts import PAIRS, PRIMER

pytestmark = pytest.mark.slow
MATMULS = {"op_types_to_quantize": ["MatMul"], "data_config": "texts", "per_channel": True}


@pytest.fixture(scope="module")
def texts(minilm_dir: Path) -> list[Sample]:
    """Prose that calibrates; none of the sentences is in it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
    rows = [{name: np.array(ids) for name, ids in tokenizer(text).items()} for text in PRIMER]
    return [Sample(f"t{n}", row, content_key=f"k{n}") for n, row in enumerate(rows)]


def near(model: Model, sentences: Sentences, least: float) -> None:
    """The worst of the sentences is at least so near to where its source has it, and each finds its pair."""
    found = sentences.again(answers(model, sentences.batch)[0])
    worst = float(found.cosines(sentences).min())
    assert worst >= least, worst
    assert found.found() == len(sentences.embeddings)


def megabytes(model: Model) -> float:
    return sum(path.stat().st_size for path in model.folder.glob("*.onnx*")) / 1e6


@pytest.mark.real_run("OnnxConversion")
@pytest.mark.parametrize("exporter", ["torch.export", "tracing"])
def test_the_export_says_what_transformers_says(
    exporter: str, minilm: Model, minilm_graph: Model, sentences: Sentences, tmp_path: Path
) -> None:
    assert sentences.found() == len(sentences.embeddings)
    dynamo = exporter == "torch.export"
    graph = run_pass("OnnxConversion", minilm, tmp_path / "a", target_opset=20) if dynamo else minilm_graph
    near(graph, sentences, 1 - 1e-9)
    # Each alone, without padding, as well.
    for row, wanted in zip(range(3), sentences.embeddings, strict=False):
        length = int(sentences.batch["attention_mask"][row].sum())
        alone = {name: value[row : row + 1, :length] for name, value in sentences.batch.items()}
        assert float(Sentences.of(alone, answers(graph, alone)[0]).embeddings[0] @ wanted) > 1 - 1e-9
    if dynamo:
        fused = run_pass("OrtTransformersOptimization", graph, tmp_path / "b")
        assert (kinds(fused)["BiasGelu"], kinds(fused)["SkipLayerNormalization"]) == (6, 12)
        near(fused, sentences, 1 - 1e-9)


# What changes no number, or the last digits only


@pytest.mark.parametrize(
    ("name", "config", "operators"),
    [
        pytest.param(
            "OnnxPeepholeOptimizer", {}, {"Constant": 0, "MatMul": 48},
            marks=pytest.mark.real_run("OnnxPeepholeOptimizer"),
        ),
        pytest.param(
            "OnnxOpVersionConversion", {"target_opset": 21}, {"MatMul": 48},
            marks=pytest.mark.real_run("OnnxOpVersionConversion"),
        ),
        pytest.param(
            "QuantizationPreprocess", {}, {"MatMul": 48}, marks=pytest.mark.real_run("QuantizationPreprocess")
        ),
        pytest.param(
            "OrtTransformersOptimization", {}, {"Attention": 6, "EmbedLayerNormalization": 1, "BiasGelu": 6,
            "SkipLayerNormalization": 12}, marks=pytest.mark.real_run("OrtTransformersOptimization"),
        ),
        pytest.param(
            "GraphSurgeries", {"surgeries": [{"surgeon": "MatMulAddToGemm"}]}, {"Gemm": 37, "MatMul": 12},
            marks=pytest.mark.real_run("GraphSurgeries"),
        ),
    ],
)  # fmt: skip
def test_rewritten_it_says_the_same(
    name: str, config: dict[str, Any], operators: dict[str, int], minilm_graph: Model, sentences: Sentences,
    tmp_path: Path,
) -> None:  # fmt: skip
    made = run_pass(name, minilm_graph, tmp_path, **config)
    found = kinds(made)
    assert {kind: found.get(kind, 0) for kind in operators} == operators
    near(made, sentences, 1 - 1e-9)
    if name == "OnnxOpVersionConversion":
        assert next(entry.version for entry in proto_of(made).opset_import if not entry.domain) == 21
    if name == "QuantizationPreprocess":
        shapes = {value.name: value.type.tensor_type.shape.dim for value in proto_of(made).graph.value_info}
        known = [node for node in proto_of(made).graph.node if node.op_type == "MatMul" and node.output[0] in shapes]
        assert len(known) == 48 > len(proto_of(minilm_graph).graph.value_info)


@pytest.mark.real_run("AddOliveMetadata")
def test_metadata_is_read_and_no_number_changes(minilm_graph: Model, sentences: Sentences, tmp_path: Path) -> None:
    made = run_pass("AddOliveMetadata", minilm_graph, tmp_path, graph_name="minilm", custom_metadata={"owner": "us"})
    told = ort.InferenceSession(str(graph_file(made)), providers=["CPUExecutionProvider"]).get_modelmeta()
    assert told.graph_name == "minilm" and told.custom_metadata_map["owner"] == "us"
    for ours, theirs in zip(answers(made, sentences.batch), answers(minilm_graph, sentences.batch), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.real_run("DynamicToFixedShape", "OnnxIODataTypeConverter")
def test_inputs_of_other_shapes_and_types_give_the_same(
    minilm_graph: Model, sentences: Sentences, tmp_path: Path
) -> None:
    rows, length = sentences.batch["input_ids"].shape
    fixed = run_pass(
        "DynamicToFixedShape", minilm_graph, tmp_path / "a", dim_param=["batch", "sequence"], dim_value=[rows, length]
    )
    session = ort.InferenceSession(str(graph_file(fixed)), providers=["CPUExecutionProvider"])
    assert {tuple(value.shape) for value in session.get_inputs()} == {(rows, length)}
    assert session.get_outputs()[0].shape == [rows, length, 384]
    near(fixed, sentences, 1 - 1e-9)
    names = "|".join(sentences.batch)
    small = run_pass(
        "OnnxIODataTypeConverter", minilm_graph, tmp_path / "b", name_pattern=names, source_dtype="int64",
        target_dtype="int32",
    )  # fmt: skip
    narrow = {name: value.astype(np.int32) for name, value in sentences.batch.items()}
    np.testing.assert_array_equal(answers(small, narrow)[0], answers(minilm_graph, sentences.batch)[0])


@pytest.mark.real_run("OrtSessionParamsTuning")
def test_the_options_that_were_found_open_it(minilm_graph: Model, sentences: Sentences, tmp_path: Path) -> None:
    context = make_context(tmp_path / "job", accelerator=CPU, resources=Resources(cpus=1))
    made = run_pass(
        "OrtSessionParamsTuning", minilm_graph, tmp_path, context=context, opt_level_list=[0, 99], repeats=3,
        arena_list=[True], shape_kwargs={"batch": 2, "sequence": 16},
    )  # fmt: skip
    tried = context.report["session_options"]["tried"]
    assert len(tried) == 2 and all(entry["seconds"] > 0 for entry in tried)
    options = ort.SessionOptions()
    for name, value in made.attributes.get("inference_settings", {}).get("session_options", {}).items():
        if name == "graph_optimization_level":
            value = ort.GraphOptimizationLevel(value)
        if name == "execution_mode":
            value = ort.ExecutionMode(value)
        setattr(options, name, value)
    session = ort.InferenceSession(str(graph_file(made)), options, providers=["CPUExecutionProvider"])
    found = sentences.again(session.run(None, sentences.batch)[0])
    assert found.cosines(sentences).min() > 1 - 1e-9


@pytest.mark.real_run("CaptureSplitInfo", "SplitModel", "ComposeOnnxModels")
def test_the_pieces_one_after_another_and_put_together_are_the_whole(
    minilm: Model, sentences: Sentences, tmp_path: Path
) -> None:
    told = run_pass("CaptureSplitInfo", minilm, tmp_path / "a", num_splits=3)
    whole = run_pass("OnnxConversion", told, tmp_path / "b", use_dynamo_exporter=False, target_opset=17)
    split = run_pass("SplitModel", whole, tmp_path / "c")
    values = dict(sentences.batch)
    sizes = []
    for part in split.attributes["components"]:
        file = split.folder / part["file"]
        session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        given = {value.name: values[value.name] for value in session.get_inputs()}
        values |= dict(zip([v.name for v in session.get_outputs()], session.run(None, given), strict=True))
        sizes.append(file.stat().st_size)
    expected = answers(whole, sentences.batch)[0]
    np.testing.assert_allclose(values["last_hidden_state"], expected, atol=1e-5)
    # The embeddings lie in the first piece, two blocks in each: none has what another one needs.
    assert len(sizes) == 3 and sum(sizes) < 1.01 * graph_file(whole).stat().st_size
    again = run_pass("ComposeOnnxModels", split, tmp_path / "d")
    np.testing.assert_allclose(answers(again, sentences.batch)[0], expected, atol=1e-5)
    near(again, sentences, 1 - 1e-9)


@pytest.mark.real_run("AppendPrePostProcessingOps")
@pytest.mark.parametrize("vocabulary", ["vocab.txt", "tokenizer.json"])
def test_a_sentence_goes_in_as_text(vocabulary: str, minilm_graph: Model, sentences: Sentences, tmp_path: Path) -> None:
    import onnxruntime_extensions

    tokenizer = {"type": "TokenizerParam", "params": {"vocab_or_file": vocabulary, "do_lower_case": True}}
    made = run_pass(
        "AppendPrePostProcessingOps", minilm_graph, tmp_path, pre=[{"BertTokenizer": {"tokenizer_param": tokenizer}}],
        tool_command_args=[{"name": "text", "data_type": "string", "shape": [1]}],
    )  # fmt: skip
    options = ort.SessionOptions()
    options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
    session = ort.InferenceSession(str(graph_file(made)), options, providers=["CPUExecutionProvider"])
    for text, wanted in zip([text for pair in PAIRS for text in pair], sentences.embeddings, strict=True):
        states = session.run(["last_hidden_state"], {"text": np.array([text])})[0]
        alone = {"attention_mask": np.ones(states.shape[:2], np.int64)}
        assert float(Sentences.of(alone, states).embeddings[0] @ wanted) > 1 - 1e-6


# What rounds


@pytest.mark.parametrize(
    ("name", "config", "least", "most"),
    [
        pytest.param(
            "OnnxFloatToFloat16", {"keep_io_types": True}, 1 - 5e-6, 46,
            marks=pytest.mark.real_run("OnnxFloatToFloat16"),
        ),
        pytest.param("OrtMixedPrecision", {}, 1 - 5e-6, 46, marks=pytest.mark.real_run("OrtMixedPrecision")),
        pytest.param("OnnxDynamicQuantization", {}, 0.987, 23.5, marks=pytest.mark.real_run("OnnxDynamicQuantization")),
        pytest.param(
            "OnnxStaticQuantization", {**MATMULS, "activation_type": "uint16"}, 0.9985, 60,
            marks=pytest.mark.real_run("OnnxStaticQuantization"),
        ),
        pytest.param(
            "OnnxQuantization", {**MATMULS, "op_types_to_quantize": ["MatMul", "Gather"], "activation_type": "uint16"},
            0.9985, 36, marks=pytest.mark.real_run("OnnxQuantization"),
        ),
        pytest.param("OnnxQuantization", {"quant_mode": "dynamic"}, 0.92, 23.5),
        pytest.param(
            "OnnxBlockWiseRtnQuantization", {"block_size": 32}, 0.94, 55.5,
            marks=pytest.mark.real_run("OnnxBlockWiseRtnQuantization"),
        ),
        pytest.param(
            "OnnxKQuantQuantization", {"block_size": 32}, 0.955, 55.5,
            marks=pytest.mark.real_run("OnnxKQuantQuantization"),
        ),
        pytest.param(
            "OnnxHqqQuantization", {"block_size": 32}, 0.962, 57, marks=pytest.mark.real_run("OnnxHqqQuantization")
        ),
        pytest.param(
            "OnnxBnb4Quantization", {"block_size": 64}, 0.953, 55, marks=pytest.mark.real_run("OnnxBnb4Quantization")
        ),
    ],
)  # fmt: skip
def test_rounded_it_is_smaller_and_stays_near(
    name: str, config: dict[str, Any], least: float, most: float, minilm_graph: Model, sentences: Sentences,
    texts: list[Sample], tmp_path: Path,
) -> None:  # fmt: skip
    context = make_context(tmp_path / "job", accelerator=CPU, data={"texts": texts})
    made = run_pass(name, minilm_graph, tmp_path, context=context, **config)
    assert megabytes(made) < most < megabytes(minilm_graph)
    near(made, sentences, least)


@pytest.mark.real_run("OnnxBlockWiseRtnQuantization", "MatMulNBitsToQDQ")
def test_standard_operators_say_what_the_products_of_few_bits_say(
    minilm_graph: Model, sentences: Sentences, tmp_path: Path
) -> None:
    newer = run_pass("OnnxOpVersionConversion", minilm_graph, tmp_path / "a", target_opset=21)
    small = run_pass("OnnxBlockWiseRtnQuantization", newer, tmp_path / "b", block_size=32, accuracy_level=1)
    made = run_pass("MatMulNBitsToQDQ", small, tmp_path / "c")
    assert {entry.domain for entry in proto_of(made).opset_import if entry.domain} <= {"com.microsoft"}
    assert {node.domain for node in proto_of(made).graph.node} == {""} and kinds(made)["DequantizeLinear"] == 36
    expected = answers(small, sentences.batch)[0]
    np.testing.assert_allclose(answers(made, sentences.batch, as_written=True)[0], expected, atol=1e-4)
    near(made, sentences, 0.94)
