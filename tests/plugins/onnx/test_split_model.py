"""CaptureSplitInfo, SplitModel, ComposeOnnxModels: the pieces in a row, and put together, give what the whole gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, EvaluationError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.onnx.capture_split_info import CaptureSplitInfoConfig
from drupe.plugins.onnx.composite import CompositeConfig
from drupe.testing import PassContract, make_context, tiny_causal_lm
from tests.plugins.onnx.graphs import CPU, answers, proto_of, run_pass, saved

ROWS = {
    "input_ids": np.random.default_rng(0).integers(0, 250, (2, 9)),
    "attention_mask": np.ones((2, 9), np.int64),
    **{
        f"past_key_values.{n}.{kind}": np.zeros((2, 2, 0, 16), np.float32)
        for n in range(4)
        for kind in ("key", "value")
    },
}
CHAIN = """<ir_version: 10, opset_import: ["" : 17]>
chain (float[n, 4] x, bool flag) => (float[n, 4] y, float[n, 4] side)
{
  bias = Constant <value = float {2}> ()
  half = Constant <value = float {0.5}> ()
  ["/blocks.0/Mul"] a = Mul (x, half)
  side = Add (a, bias)
  ["/blocks.1/If"] b = If (flag) <
    then_branch = yes () => (float[n, 4] c) { c = Add (a, bias) },
    else_branch = no () => (float[n, 4] d) { d = Mul (side, half) }
  >
  ["/blocks.1/Add"] y = Add (b, bias)
}"""


def forward(kind: str, model: Model, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    runtime = get_registry().create("drupe_runtimes", kind)
    with runtime.open(model, CPU, runtime.options(CPU, {"threads": 1})) as session:
        return dict(session.forward(batch).outputs)


def chain(folder: Path, assignments: dict[str, int]) -> Model:
    graph = saved(folder, CHAIN)
    split = {"split": True, "split_assignments": assignments}
    return Model.from_dir("onnx", folder, {**graph.attributes, **split})


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_causal_lm(tmp_path_factory.mktemp("decoder") / "model", num_hidden_layers=4)


@pytest.fixture(scope="module")
def built(decoder: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("built")
    told = run_pass("CaptureSplitInfo", decoder, folder / "told", num_splits=2, unique_embeds_lm_head_splits=True)
    return run_pass("ModelBuilder", told, folder / "built", precision="int4", block_size=32)


class TestCaptureSplitInfo(PassContract):
    name = "CaptureSplitInfo"

    @pytest.fixture
    def model(self, decoder: Model) -> Model:
        return decoder

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"num_splits": 2}


class TestSplitModel(PassContract):
    name = "SplitModel"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return chain(tmp_path / "model", {"blocks.0": 0, "blocks.1": 1})


class TestComposeOnnxModels(PassContract):
    name = "ComposeOnnxModels"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return run_pass("SplitModel", chain(tmp_path / "model", {"blocks.0": 0, "blocks.1": 1}), tmp_path / "split")


def test_blocks_are_divided_evenly_and_in_order(decoder: Model, tmp_path: Path) -> None:
    found = run_pass("CaptureSplitInfo", decoder, tmp_path / "a", num_splits=3).attributes["split_assignments"]
    assert found == {"model.layers.0": 0, "model.layers.1": 0, "model.layers.2": 1, "model.layers.3": 2}
    named = run_pass("CaptureSplitInfo", decoder, tmp_path / "b", num_splits=2, block_to_split="model.layers.1")
    assert set(named.attributes["split_assignments"]) >= {"model.layers.1.self_attn", "model.layers.1.mlp"}
    with pytest.raises(ConfigError, match="num_splits 9, and there are 4 blocks"):
        run_pass("CaptureSplitInfo", decoder, tmp_path / "c", num_splits=9)
    with pytest.raises(ConfigError, match=r"no module 'model\.blocks'"):
        run_pass("CaptureSplitInfo", decoder, tmp_path / "d", num_splits=2, block_to_split="model.blocks")


def test_a_cost_model_fills_pieces_up_to_the_memory(decoder: Model, tmp_path: Path) -> None:
    rows = ["module,num_params,num_bytes,num_flops", "model.embed_tokens,1000,4000,1"]
    rows += [f"model.layers.{n}.mlp,100,400,200" for n in range(4)] + ["lm_head,100,400,200"]
    (tmp_path / "costs.csv").write_text("\n".join(rows) + "\n")
    device = Accelerator("cpu", None, {"memory": "1kB"})

    def pieces(memory: str) -> dict[str, int]:
        context = make_context(
            tmp_path / memory, accelerator=Accelerator("cpu", None, {"memory": memory}), workflow_dir=tmp_path
        )
        result = run_pass("CaptureSplitInfo", decoder, tmp_path, context=context, cost_model="costs.csv")
        found: dict[str, int] = result.attributes["split_assignments"]
        return found

    assert list(pieces("4kB").values()) == [0, 1, 1, 1, 1, 1]
    assert list(pieces("4000").values()) == [0, 1, 1, 1, 1, 1]
    with pytest.raises(ConfigError, match="embed_tokens takes 4000 bytes, more than the accelerator's memory of 1000"):
        pieces(str(device.options["memory"]))
    subject = get_registry().create("drupe_passes", "CaptureSplitInfo")
    with pytest.raises(ConfigError, match=r"systems\.X\.accelerators\[\]\.memory"):
        subject.plan(ModelInfo("hf"), CaptureSplitInfoConfig(cost_model="costs.csv"), CPU)
    with pytest.raises(ValidationError, match="num_splits or cost_model"):
        CaptureSplitInfoConfig()


def test_a_quantized_decoder_in_pieces_is_the_decoder(built: Model, tmp_path: Path) -> None:
    split = run_pass("SplitModel", built, tmp_path / "split")
    assert [part["name"] for part in split.attributes["components"]] == [f"split_{n}" for n in range(4)]
    first, *_, last = (onnx.load(str(split.folder / f"split_{n}" / "model.onnx")) for n in range(4))
    assert "GatherBlockQuantized" in [node.op_type for node in first.graph.node if "embed" in node.name]
    assert [node.op_type for node in last.graph.node] == ["MatMulNBits"]
    whole = dict(zip([v.name for v in proto_of(built).graph.output], answers(built, ROWS), strict=True))
    parts = forward("composite", split, ROWS)
    assert list(parts) == list(whole)
    again = run_pass("ComposeOnnxModels", split, tmp_path / "again")
    assert again.kind == "onnx" and "genai_config.json" in again.files
    for name, value in zip(whole, answers(again, ROWS), strict=True):
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-5)
        np.testing.assert_allclose(value, whole[name], atol=1e-5)


def test_graphs_inside_nodes_and_outputs_that_others_need(tmp_path: Path) -> None:
    source = chain(tmp_path / "model", {"blocks.0": 0, "blocks.1": 1})
    split = run_pass("SplitModel", source, tmp_path / "split")
    again = run_pass("ComposeOnnxModels", split, tmp_path / "again")
    newer = run_pass("OnnxOpVersionConversion", split, tmp_path / "newer", target_opset=20)
    for flag in (True, False):
        batch = {"x": np.arange(8, dtype=np.float32).reshape(2, 4), "flag": np.array(flag)}
        whole = dict(zip(("y", "side"), answers(source, batch), strict=True))
        for model in (split, newer):
            assert forward("composite", model, batch).keys() == whole.keys()
            for name, value in forward("composite", model, batch).items():
                np.testing.assert_array_equal(value, whole[name])
        for name, value in zip(whole, answers(again, batch), strict=True):
            np.testing.assert_array_equal(value, whole[name])
    with pytest.raises(EvaluationError, match="the batch has a, which the model lacks; it takes x, flag"):
        forward("composite", split, {"x": np.ones((1, 4), np.float32), "flag": np.array(True), "a": np.ones(1)})


def test_what_can_not_be_split_is_told(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="needs what piece 1 gives; modules must be split in the order"):
        run_pass("SplitModel", chain(tmp_path / "a", {"blocks.0": 1, "blocks.1": 0}), tmp_path / "b")
    with pytest.raises(PassError, match=r"no node of the graph belongs to layers\.0"):
        run_pass("SplitModel", chain(tmp_path / "c", {"layers.0": 0}), tmp_path / "d")
    with pytest.raises(ConfigError, match="put CaptureSplitInfo before"):
        run_pass("SplitModel", saved(tmp_path / "e", CHAIN), tmp_path / "f")


def read(components: list[Path], folder: Path) -> Model:
    kind = get_registry().create("drupe_model_kinds", "CompositeModel")
    config = CompositeConfig(model_components=[{"type": "ONNXModel", "model_path": str(path)} for path in components])
    context = make_context(folder)
    model: Model = kind.load(config, dict(zip(config.names, components, strict=True)), context)
    return model.at(context.output_dir)


def test_an_input_model_of_several_files(tmp_path: Path) -> None:
    head = '<ir_version: 8, opset_import: ["" : {version}]>\ng (float[n, {size}] {x}) => (float[n, {size}] {y})\n'
    body = "{{\n  w = Constant <value = float {{2}}> ()\n  h = Mul ({x}, w)\n  {y} = Add (h, w)\n}}"

    def part(name: str, version: int, size: int, x: str, y: str) -> Path:
        return saved(tmp_path / name, (head + body).format(version=version, size=size, x=x, y=y)).folder / "model.onnx"

    first = part("first", 17, 4, "x", "y")
    both = read([first, part("second", 17, 4, "y", "z")], tmp_path / "both")
    batch = {"x": np.ones((1, 4), np.float32)}
    assert forward("composite", both, batch)["z"].tolist() == [[10.0] * 4]
    one = run_pass("ComposeOnnxModels", both, tmp_path / "one")
    assert answers(one, batch)[0].tolist() == [[10.0] * 4]
    for wrong, message in (
        (part("older", 16, 4, "y", "z"), "OnnxOpVersionConversion"),
        (part("wider", 17, 8, "y", "z"), r"takes y as float\[n, 8\], and it is float\[n, 4\] before"),
        (part("again", 17, 4, "y", "x"), "gives x, which there is before it"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_pass(
                "ComposeOnnxModels", read([first, wrong], tmp_path / f"read-{wrong.parent.name}"), wrong.parent / "job"
            )


def test_functions_of_one_name_that_differ_are_told(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    g (float[n, 4] {given}) => (float[n, 4] {made}) {{ {made} = own.Twist ({given}) }}
    <domain: "own", opset_import: ["" : 17]> Twist (a) => (b) {{ b = {kind} (a) }}"""
    for name, given, made, kind in (("first", "x", "y", "Neg"), ("second", "y", "z", "Abs")):
        saved(tmp_path / "m" / name, text.format(given=given, made=made, kind=kind))
    components = [{"name": name, "file": f"{name}/model.onnx"} for name in ("first", "second")]
    both = Model.from_dir("composite", tmp_path / "m", {"components": components})
    with pytest.raises(ConfigError, match="two graphs have a function Twist, and they differ"):
        run_pass("ComposeOnnxModels", both, tmp_path / "job")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_components": [{"type": "HfModel", "model_path": "a"}]}, "expected ONNXModel"),
        ({"model_components": [{"type": "ONNXModel", "config": {}}]}, "names no model_path"),
        ({"model_components": [{"type": "ONNXModel", "model_path": "a", "x": 1}]}, "x is not for a component"),
        (
            {"model_components": [{"type": "ONNXModel", "model_path": "a"}], "model_component_names": ["a", "b"]},
            "2 model_component_names for 1",
        ),
        (
            {"model_components": [{"type": "ONNXModel", "model_path": "a"}], "model_component_names": ["../a"]},
            "can't be the name of a folder",
        ),
    ],
)
def test_what_is_wrong_with_components_is_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CompositeConfig.model_validate(values)
