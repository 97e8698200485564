"""ModelBuilder: what it refuses before work, and what it builds."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.core.runtimes import GenerateOptions
from drupe.plugins.genai.model_builder import ModelBuilderConfig
from drupe.plugins.huggingface.loading import load_model
from drupe.testing import PassContract, RuntimeContract, make_context, tiny_causal_lm
from tests.plugins.real_models import by_genai, perplexity

CPU = Accelerator("cpu", "CPUExecutionProvider")


def builder() -> Any:
    return get_registry().create("drupe_passes", "ModelBuilder")


def build(model: Model, folder: Path, **config: Any) -> Model:
    context = make_context(folder, accelerator=CPU)
    return builder()(model, ModelBuilderConfig(**config), context).at(context.output_dir)


def small(folder: Path) -> Model:
    return tiny_causal_lm(folder, hidden_size=128, intermediate_size=256, num_attention_heads=4)


class TestModelBuilder(PassContract):
    name = "ModelBuilder"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return small(tmp_path / "model")


class TestGenAIRuntime(RuntimeContract):
    name = "genai"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return build(small(tmp_path / "model"), tmp_path / "job", precision="fp32")


@pytest.mark.parametrize(
    "config", [{"algo_config": "k_quant"}, {"algo_config": "rtn", "is_symmetric": False}], ids=["k_quant", "rtn"]
)
def test_rows_that_zero_points_cant_be_packed_for_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    """The builder's quantizer ends in a reshape of its own otherwise."""
    model = tiny_causal_lm(tmp_path / "model", hidden_size=192, intermediate_size=256, num_attention_heads=4)
    with pytest.raises(ConfigError, match="hidden_size 192 makes 3 blocks of 64"):
        build(model, tmp_path / "job", precision="int4", block_size=64, **config)
    assert build(model, tmp_path / "even", precision="int4", block_size=32, **config).kind == "genai"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_precision_that_does_not_run_there_is_refused(precision: str) -> None:
    with pytest.raises(ConfigError, match=f"{precision} model does not run on cpu.*fp32, int4, int8"):
        builder().plan(ModelInfo("hf"), ModelBuilderConfig(precision=precision), CPU)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"adapter": "adapter"}, "MergeAdapterWeights"),
        ({"architecture": "BertForSequenceClassification"}, "the model is a BertForSequenceClassification"),
        ({"quantization": "bitsandbytes"}, "reads models quantized by"),
        ({"quantization": {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}}, "gptq_v2"),
        ({"quantization": {"quant_method": "gptq", "desc_act": True, "sym": False}}, "desc_act"),
    ],
)
def test_a_model_that_it_would_build_wrongly_is_refused(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        builder().plan(ModelInfo("hf", attributes), ModelBuilderConfig(), CPU)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"precision": "int8", "use_qdq": True}, "use_qdq"),
        ({"is_symmetric": False, "shared_embeddings": True}, "does not load; leave shared_embeddings out"),
        ({"precision": "fp32", "block_size": 64}, "no effect at precision fp32"),
    ],
)
def test_combinations_that_build_a_broken_model_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        builder().plan(ModelInfo("hf"), ModelBuilderConfig(**config), CPU)


@pytest.mark.parametrize("config", [{"is_symmetric": False}, {"use_qdq": True}])
def test_a_shared_table_is_written_twice_where_the_builder_can_not_share_it(
    config: dict[str, Any], tmp_path: Path
) -> None:
    import onnxruntime_genai as og
    import torch

    source = small(tmp_path / "model")
    ids = np.arange(8, dtype=np.int32)
    with torch.inference_mode():
        wanted = load_model(source)(input_ids=torch.from_numpy(ids[None]).long()).logits[0].numpy()
    model = og.Model(str(build(source, tmp_path, **config).folder))
    generator = og.Generator(model, og.GeneratorParams(model))
    generator.append_tokens(ids)
    found = np.asarray(generator.get_output("logits"))[0]
    assert np.linalg.norm(found - wanted) < 0.3 * np.linalg.norm(wanted)


def test_an_unknown_option_is_named_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match="no such option; did you mean 'qmoe_block_size'"):
        ModelBuilderConfig(extra_options={"qmoe_block_sizes": 32})


def test_older_names_mean_todays() -> None:
    older = ModelBuilderConfig(
        precision="float32", int4_block_size=64, extra_options={"int4_algo_config": "rtn", "exclude_embeds": False}
    )
    assert older.precision == "fp32"
    assert older.block_size == 64
    assert older.algo_config == "rtn"
    assert older.exclude_embeds is False
    assert older.extra_options == {}
    with pytest.raises(ValidationError, match="the same option"):
        ModelBuilderConfig(int4_block_size=64, block_size=32)


def test_block_size_and_bits_are_what_was_asked(tmp_path: Path) -> None:
    context = make_context(tmp_path / "job", accelerator=CPU)
    built = builder()(small(tmp_path / "model"), ModelBuilderConfig(block_size=64, algo_config="rtn"), context)
    assert context.report["graph"]["block_sizes"] == [64]
    assert "4" in context.report["graph"]["quantized_nodes_by_bits"]
    assert built.attributes["precision"] == "int4"


def test_no_commit_of_the_surroundings_is_in_the_graph(tmp_path: Path) -> None:
    """An environment inside a git repository would make other digests after each of its commits."""
    built = build(small(tmp_path / "model"), tmp_path / "job", precision="int4")
    graph = onnx.load(str(built.folder / "model.onnx"), load_external_data=False)
    assert graph.producer_version == importlib.metadata.version("onnxruntime-genai")


def test_search_settings_land_in_the_config_and_unknown_ones_are_named(tmp_path: Path) -> None:
    built = build(small(tmp_path / "model"), tmp_path / "a", precision="fp32", search={"max_length": 99})
    assert json.loads((built.folder / "genai_config.json").read_text())["search"]["max_length"] == 99
    with pytest.raises(ConfigError, match=r"search\.warmth is no generation option"):
        build(small(tmp_path / "again"), tmp_path / "b", precision="fp32", search={"warmth": 1})


def test_the_built_model_says_what_the_source_says(tmp_path: Path) -> None:
    source = small(tmp_path / "model")
    built = build(source, tmp_path / "job", precision="fp32")
    registry = get_registry()
    prompt = np.arange(40, 60)
    options = GenerateOptions(max_new_tokens=8)
    answers, scores = [], []
    for kind, model in (("hf", source), ("genai", built)):
        runtime = registry.create("drupe_runtimes", kind)
        with runtime.open(model, CPU, runtime.options(CPU, {"threads": 1})) as session:
            answers.append(session.generate(prompt, options).outputs["token_ids"].tolist())
            scores.append(session.score(prompt, prompt).outputs["logprobs"])
    assert answers[0] == answers[1]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)


@pytest.mark.slow
@pytest.mark.real_run("ModelBuilder")
def test_smollm2_at_int4_is_small_loads_by_itself_and_stays_near_its_source(
    smollm2: Model, smollm2_says: np.ndarray, prose: np.ndarray, tmp_path: Path
) -> None:
    import onnxruntime_genai as og

    built = build(smollm2, tmp_path / "job", precision="int4")
    assert sum(path.stat().st_size for path in built.folder.iterdir()) < 95e6
    loaded = og.Model(str(built.folder))
    parameters = og.GeneratorParams(loaded)
    parameters.set_search_options(max_length=12, do_sample=False)
    generator = og.Generator(loaded, parameters)
    generator.append_tokens(og.Tokenizer(loaded).encode("Once upon a time"))
    while not generator.is_done():
        generator.generate_next_token()
    assert len(generator.get_sequence(0)) == 12
    found = by_genai(built.folder, prose)
    assert perplexity(found, prose) < 1.35 * perplexity(smollm2_says, prose) < 28
    whole = by_genai(build(smollm2, tmp_path / "whole", precision="fp32").folder, prose)
    np.testing.assert_allclose(whole, smollm2_says, atol=1e-3)
