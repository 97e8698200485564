"""ExtractAdapters: with its weights the graph is what it was, without them it is the base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from pydantic import ValidationError

from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.onnx.adapter_weights import read_weights
from drupe.plugins.onnx.extract_adapters import ExtractAdaptersConfig
from drupe.testing import PassContract, make_context, tiny_causal_lm, tiny_onnx_mlp
from tests.plugins.onnx.graphs import CPU, run_pass

RANK = 4
ROWS = {"input_ids": np.random.default_rng(0).integers(0, 250, (2, 9)), "attention_mask": np.ones((2, 9), np.int64)}


def adapted(folder: Path, *, rank: int = RANK, seed: int = 0) -> Model:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tiny_causal_lm(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "down_proj"], init_lora_weights=False
        )
        get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).save_pretrained(folder / "adapter")
    return Model.from_dir("hf", folder, {**base.attributes, "adapter": "adapter"})


def logits(kind: str, model: Model) -> np.ndarray:
    runtime = get_registry().create("drupe_runtimes", kind)
    with runtime.open(model, CPU, runtime.options(CPU, {"threads": 1})) as session:
        found: np.ndarray = session.forward(ROWS).outputs["logits"]
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return adapted(tmp_path_factory.mktemp("adapted"))


def converted(source: Model, folder: Path, *, dynamo: bool) -> Model:
    return run_pass("OnnxConversion", source, folder, use_dynamo_exporter=dynamo, target_opset=18)


@pytest.fixture(scope="module")
def graph(source: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return converted(source, tmp_path_factory.mktemp("graph"), dynamo=False)


@pytest.fixture(scope="module")
def plain(source: Model) -> np.ndarray:
    attributes = {key: value for key, value in source.attributes.items() if key != "adapter"}
    return logits("hf", Model.from_dir("hf", source.folder, attributes))


class TestExtractAdapters(PassContract):
    name = "ExtractAdapters"

    @pytest.fixture
    def model(self, graph: Model) -> Model:
        return graph


@pytest.mark.parametrize("form", ["onnx_adapter", "safetensors", "numpy"])
def test_inputs_are_optional_and_of_any_rank(
    source: Model, graph: Model, plain: np.ndarray, tmp_path: Path, form: str
) -> None:
    wanted = logits("hf", source)
    if form == "onnx_adapter":
        graph = converted(source, tmp_path / "exported", dynamo=True)
    assert np.abs(wanted - plain).max() > 0.1
    apart = run_pass("ExtractAdapters", graph, tmp_path / "job", save_format=form)
    np.testing.assert_allclose(logits("onnx", apart), wanted, atol=1e-5)
    session = ort.InferenceSession(str(apart.folder / "model.onnx"))
    np.testing.assert_allclose(session.run(["logits"], ROWS)[0], plain, atol=1e-5)
    weights = read_weights(apart.folder / str(apart.attributes["constant_inputs"]))
    assert len(weights) == 8
    assert weights["model.layers.1.mlp.down_proj.lora_B.weight"].shape == (RANK, 64)
    # Half of the adapter, at half the rank, is what those two rows and columns give.
    halves = {k: v[:, :2] if ".lora_A." in k else v[:2] for k, v in weights.items()}
    zeros = {k: v.copy() for k, v in weights.items()}
    for name, value in zeros.items():
        value[:, 2:] = 0 if ".lora_A." in name else value[:, 2:]
    expected = session.run(["logits"], {**ROWS, **zeros})[0]
    np.testing.assert_allclose(session.run(["logits"], {**ROWS, **halves})[0], expected, atol=1e-5)


def test_inputs_can_be_demanded_at_a_fixed_rank(graph: Model, tmp_path: Path) -> None:
    apart = run_pass("ExtractAdapters", graph, tmp_path / "job", dynamic_lora_r=False, optional_inputs=False)
    session = ort.InferenceSession(str(apart.folder / "model.onnx"))
    shapes = {item.name: item.shape for item in session.get_inputs()}
    assert shapes["model.layers.0.self_attn.q_proj.lora_A.weight"] == [64, RANK]
    np.testing.assert_allclose(logits("onnx", apart), logits("onnx", graph), atol=1e-6)


def test_initializers_lie_in_a_file_that_another_adapters_can_replace(
    source: Model, graph: Model, plain: np.ndarray, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    apart = run_pass("ExtractAdapters", graph, tmp_path / "job", make_inputs=False)
    assert "constant_inputs" not in apart.attributes
    np.testing.assert_allclose(logits("onnx", apart), logits("hf", source), atol=1e-5)
    file = apart.folder / "adapter_weights.safetensors"
    save_file({name: np.zeros_like(value) for name, value in load_file(file).items()}, file)
    np.testing.assert_allclose(logits("onnx", apart), plain, atol=1e-5)


def test_quantized_weights_keep_their_rank(graph: Model, tmp_path: Path) -> None:
    small = run_pass("OnnxBlockWiseRtnQuantization", graph, tmp_path / "a", block_size=32, accuracy_level=1)
    apart = run_pass("ExtractAdapters", small, tmp_path / "b")
    np.testing.assert_array_equal(logits("onnx", apart), logits("onnx", small))
    names = {item.name for item in ort.InferenceSession(str(apart.folder / "model.onnx")).get_inputs()}
    assert "model.layers.0.self_attn.q_proj.lora_A.quant.scale" in names


def test_a_genai_folder_serves_with_and_without(source: Model, tmp_path: Path) -> None:
    ids = np.arange(10, 30)

    def scores(model: Model) -> np.ndarray:
        runtime = get_registry().create("drupe_runtimes", "genai")
        with runtime.open(model, CPU, {"threads": 1}) as session:
            found: np.ndarray = session.score(ids, ids).outputs["logprobs"][1:]
        return found

    built = run_pass("ModelBuilder", source, tmp_path / "built", precision="fp32", use_adapter=True)
    apart = run_pass("ExtractAdapters", built, tmp_path / "apart")
    base = Model.from_dir("hf", source.folder, {k: v for k, v in source.attributes.items() if k != "adapter"})
    alone = run_pass("ModelBuilder", base, tmp_path / "alone", precision="fp32")
    np.testing.assert_allclose(scores(apart), scores(built), atol=1e-6)
    without = Model.from_dir("genai", apart.folder, {k: v for k, v in apart.attributes.items() if "constant" not in k})
    np.testing.assert_allclose(scores(without), scores(alone), atol=1e-6)
    assert np.abs(scores(apart) - scores(alone)).max() > 0.01


def test_a_model_without_an_adapter_goes_on_as_it_is(source: Model, tmp_path: Path) -> None:
    base = Model.from_dir("hf", source.folder, {k: v for k, v in source.attributes.items() if k != "adapter"})
    exported = converted(base, tmp_path / "exported", dynamo=False)
    context = make_context(tmp_path / "job", accelerator=CPU)
    result = run_pass("ExtractAdapters", exported, tmp_path / "job", context=context)
    assert result.digest == exported.digest and context.report["adapter"] == "none"
    subject = get_registry().create("drupe_passes", "ExtractAdapters")
    planned = subject.plan(exported.info, ExtractAdaptersConfig(), CPU)
    assert "constant_inputs" not in planned.attributes and "adapter_weights" not in planned.attributes


def test_what_can_not_be_taken_apart_is_told(tmp_path: Path) -> None:
    subject = get_registry().create("drupe_passes", "ExtractAdapters")
    with pytest.raises(PassError, match="found no weights of a LoRA adapter"):
        run_pass("ExtractAdapters", tiny_onnx_mlp(tmp_path / "model"), tmp_path / "a")
    with pytest.raises(ValidationError, match="initializers are written as safetensors"):
        ExtractAdaptersConfig(make_inputs=False, save_format="numpy")
    with pytest.raises(ConfigError, match="onnxruntime-genai loads adapters of the form onnx_adapter"):
        subject.plan(ModelInfo("genai", {}), ExtractAdaptersConfig(save_format="numpy"), CPU)
    with pytest.raises(ConfigError, match="as inputs already"):
        subject.plan(ModelInfo("onnx", {"constant_inputs": "a.npz"}), ExtractAdaptersConfig(), CPU)


def test_an_adapter_that_is_more_than_a_lora_is_refused_unless_merged(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tiny_causal_lm(tmp_path / "model")
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder), config).save_pretrained(base.folder / "adapter")
    source = Model.from_dir("hf", base.folder, {**base.attributes, "adapter": "adapter"})
    with pytest.raises(ConfigError, match=r"modules_to_save.*merge_adapter_weights: true"):
        run_pass("OnnxConversion", source, tmp_path / "job")
