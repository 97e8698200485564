"""OptimumMerging: one graph whose branches give what the two decoders give."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model
from drupe.testing import PassContract, tiny_causal_lm
from tests.plugins.onnx.graphs import run_pass
from tests.plugins.onnx.test_past import OLDER, generated, greedy, with_past
from tests.plugins.real_models import by_transformers
from tests.support.texts import PROSE


def composite(folder: Path, graphs: dict[str, Any], source: Path | None = None) -> Model:
    folder.mkdir(parents=True, exist_ok=True)
    if source is not None:
        shutil.copy(source / "config.json", folder)
    for name, proto in graphs.items():
        onnx.save(proto, folder / f"{name}.onnx")
    components = [{"name": name, "file": f"{name}.onnx"} for name in graphs]
    return Model.from_dir("composite", folder, {"task": "text-generation-with-past", "components": components})


def without_past(proto: Any) -> Any:
    """The first step of a decoder: its keys and values before are those of no token."""
    first = onnx.ModelProto()
    first.CopyFrom(proto)
    kept = [value for value in first.graph.input if not value.name.startswith("past")]
    for value in first.graph.input:
        if value.name.startswith("past"):
            sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            # One row: an initializer has no free axes.
            first.graph.initializer.append(
                numpy_helper.from_array(np.zeros((1, sizes[1], 0, sizes[3]), np.float32), value.name)
            )
    del first.graph.input[:]
    first.graph.input.extend(kept)
    return first


def dotted(text: str) -> Any:
    """A graph written as text, its __ being dots, which the text form has no place for."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]> {text}')
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = value.name.replace("__", ".")
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [name.replace("__", ".") for name in names]
    return proto


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_causal_lm(tmp_path_factory.mktemp("source"), initializer_range=0.3)


@pytest.fixture(scope="module")
def decoders(source: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("decoders")
    later = onnx.load(run_pass("OnnxConversion", with_past(source), folder / "job", **OLDER).folder / "model.onnx")
    graphs = {"decoder_model": without_past(later), "decoder_with_past_model": later}
    return composite(folder / "both", graphs, source.folder)


class TestOptimumMerging(PassContract):
    name = "OptimumMerging"

    @pytest.fixture
    def model(self, decoders: Model) -> Model:
        return decoders


def test_both_branches_step_as_generate_does(source: Model, decoders: Model, tmp_path: Path) -> None:
    merged = run_pass("OptimumMerging", decoders, tmp_path / "job")
    prompt = np.random.default_rng(0).integers(0, 250, (1, 9))
    assert greedy(merged, prompt, 24) == generated(source, prompt, 24)
    sizes = {
        path.name: path.stat().st_size for folder in (decoders.folder, merged.folder) for path in folder.glob("*.onnx")
    }
    together = sizes["decoder_model.onnx"] + sizes["decoder_with_past_model.onnx"]
    assert sizes["decoder_model_merged.onnx"] < 0.7 * together, "equal weights are kept once"
    names = [
        node.name
        for branch in onnx.load(merged.folder / "decoder_model_merged.onnx").graph.node[0].attribute
        for node in branch.g.node
    ]
    assert len(set(names)) == len(names)


@pytest.mark.slow
@pytest.mark.real_run("OnnxConversion", "OptimumMerging")
def test_the_first_blocks_of_smollm2_read_prose_as_transformers_does(smollm2_cut_dir: Path, tmp_path: Path) -> None:
    import onnxruntime as ort
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = Model.from_dir("hf", smollm2_cut_dir, {"task": "text-generation-with-past"})
    later = onnx.load(run_pass("OnnxConversion", model, tmp_path / "a", **OLDER).folder / "model.onnx")
    graphs = {"decoder_model": without_past(later), "decoder_with_past_model": later}
    merged = run_pass("OptimumMerging", composite(tmp_path / "both", graphs, smollm2_cut_dir), tmp_path / "b")
    session = ort.InferenceSession(str(merged.folder / "decoder_model_merged.onnx"))
    shapes = {item.name: item.shape for item in session.get_inputs() if item.name.startswith("past")}
    past = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()}
    ids = np.asarray(AutoTokenizer.from_pretrained(smollm2_cut_dir)(PROSE[0]).input_ids[:32])
    said, outputs = [], [item.name for item in session.get_outputs()]
    for start, end in ((0, 24), *((place, place + 1) for place in range(24, len(ids)))):
        step = {
            "input_ids": ids[None, start:end],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(start, end)[None],
            "use_cache_branch": np.array([start > 0]),
        }
        given = dict(zip(outputs, session.run(None, {**step, **past}), strict=True))
        said.append(given["logits"][0])
        past = {name: given[name.replace("past_key_values", "present")] for name in past}
    source = AutoModelForCausalLM.from_pretrained(smollm2_cut_dir, dtype="float32").eval()
    wanted = by_transformers(source, ids)
    found = np.concatenate(said).astype(np.float64)
    found -= np.log(np.exp(found - found.max(-1, keepdims=True)).sum(-1, keepdims=True)) + found.max(-1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=5e-3)


def test_each_branch_is_the_one_that_the_flag_asks_for(tmp_path: Path) -> None:
    """Toy decoders that give different things: without past x + w, with past (x + past) * w."""
    import onnxruntime as ort

    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w")
    first = dotted(
        "a (float[2, 3] x) => (float[2, 3] logits, float[2, 3] present__0__key) "
        "{ logits = Add (x, w) present__0__key = Identity (x) }"
    )
    later = dotted(
        "b (float[2, 3] x, float[2, 3] past_key_values__0__key) => (float[2, 3] logits, float[2, 3] present__0__key) "
        "{ present__0__key = Add (x, past_key_values__0__key) logits = Mul (present__0__key, w) }"
    )
    for proto in (first, later):
        proto.graph.initializer.append(weight)
    merged = run_pass("OptimumMerging", composite(tmp_path / "in", {"a": first, "b": later}), tmp_path / "job")
    path = merged.folder / "model.onnx"
    assert [tensor.name for tensor in onnx.load(path).graph.initializer] == ["w"]
    session = ort.InferenceSession(str(path))
    assert [item.name for item in session.get_inputs()] == ["x", "past_key_values.0.key", "use_cache_branch"]
    x, past = (np.full((2, 3), value, np.float32) for value in (2, 3))
    w = numpy_helper.to_array(weight)
    for flag, expected in ((False, (x + w, x)), (True, ((x + past) * w, x + past))):
        got = session.run(None, {"x": x, "past_key_values.0.key": past, "use_cache_branch": np.array([flag])})
        for ours, wanted in zip(got, expected, strict=True):
            np.testing.assert_array_equal(ours, wanted)


def test_an_encoders_keys_are_passed_on_by_the_later_steps(tmp_path: Path) -> None:
    import onnxruntime as ort

    first = dotted(
        "a (float[2] x) => (float[2] logits, float[2] present__0__encoder__key) "
        "{ logits = Neg (x) present__0__encoder__key = Abs (x) }"
    )
    later = dotted(
        "b (float[2] x, float[2] past_key_values__0__encoder__key) => (float[2] logits) "
        "{ logits = Add (x, past_key_values__0__encoder__key) }"
    )
    merged = run_pass("OptimumMerging", composite(tmp_path / "in", {"a": first, "b": later}), tmp_path / "job")
    session = ort.InferenceSession(str(merged.folder / "model.onnx"))
    batch = {"x": np.ones(2, np.float32), "past_key_values.0.encoder.key": np.array([5, 6], np.float32)}
    logits, kept = session.run(None, {**batch, "use_cache_branch": np.array([True])})
    assert logits.tolist() == [6, 7] and kept.tolist() == [5, 6]


def test_decoders_that_do_not_fit_together_are_told(decoders: Model, tmp_path: Path) -> None:
    graphs = {path.stem: onnx.load(path) for path in decoders.folder.glob("*.onnx")}
    with pytest.raises(ConfigError, match="the model has 1 components"):
        run_pass(
            "OptimumMerging", composite(tmp_path / "one", {"decoder_model": graphs["decoder_model"]}), tmp_path / "a"
        )
    twice = {"decoder_model": graphs["decoder_model"], "other": graphs["decoder_model"]}
    with pytest.raises(ConfigError, match="none takes past keys"):
        run_pass("OptimumMerging", composite(tmp_path / "two", twice), tmp_path / "b")
    graphs["decoder_model"].opset_import[0].version = 18
    with pytest.raises(ConfigError, match="target_opset"):
        run_pass("OptimumMerging", composite(tmp_path / "three", graphs), tmp_path / "c")
    del graphs["decoder_with_past_model"].graph.output[-1]
    graphs["decoder_model"].opset_import[0].version = 17
    with pytest.raises(PassError, match="only one gives present"):
        run_pass("OptimumMerging", composite(tmp_path / "four", graphs), tmp_path / "d")


def test_one_graph_stays_as_it_is(source: Model, decoders: Model, tmp_path: Path) -> None:
    shutil.copytree(decoders.folder, tmp_path / "in")
    (tmp_path / "in" / "decoder_model.onnx").unlink()
    graph = Model.from_dir("onnx", tmp_path / "in", {"onnx_file": "decoder_with_past_model.onnx"})
    assert run_pass("OptimumMerging", graph, tmp_path / "job").digest == graph.digest
