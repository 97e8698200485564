"""StaticLLM: graphs of fixed lengths, which plain onnxruntime-genai runs and answers from as from their source."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai as og
import pytest
import torch

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, EvaluationError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.core.runtimes import GenerateOptions
from drupe.plugins.genai.padding import padding_token
from drupe.plugins.genai.static_llm import StaticLLMConfig
from drupe.plugins.huggingface.loading import load_model
from drupe.testing import PassContract, RuntimeContract, tiny_causal_lm
from tests.plugins.onnx.graphs import CPU, run_pass
from tests.plugins.quantization.decoders import decoder

LENGTHS = {"surgeries": [{"surgeon": "AttentionMaskToSequenceLengths"}]}


def build(model: Model, folder: Path, **config: Any) -> Model:
    """A decoder for onnxruntime-genai that SplitModel knows to cut into embedding, two pieces and head."""
    told = run_pass("CaptureSplitInfo", model, folder / "told", num_splits=2, unique_embeds_lm_head_splits=True)
    return run_pass("ModelBuilder", told, folder / "built", **config)


def pieces(model: Model, folder: Path) -> Model:
    lengths = run_pass("GraphSurgeries", model, folder / "lengths", **LENGTHS)
    return run_pass("SplitModel", lengths, folder / "split")


def said(folder: Path, ids: Sequence[int], count: int) -> list[int]:
    """What plain onnxruntime-genai says after a prompt, greedily."""
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + 64 + count, do_sample=False, top_k=1)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.asarray(ids, np.int32))
    tokens: list[int] = []
    while not generator.is_done() and len(tokens) < count:
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("decoder")
    # Weights this wide give text that does not repeat itself, so that one wrong key is seen.
    return build(tiny_causal_lm(folder / "model", num_hidden_layers=4, initializer_range=0.3), folder, precision="fp32")


@pytest.fixture(scope="module")
def split(built: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return pieces(built, tmp_path_factory.mktemp("split"))


class TestStaticLLM(PassContract):
    name = "StaticLLM"

    @pytest.fixture
    def model(self, built: Model) -> Model:
        return built

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"context_length": 16}


class TestGenAIRuntimeOnAPipeline(RuntimeContract):
    name = "genai"

    @pytest.fixture
    def model(self, split: Model, tmp_path: Path) -> Model:
        return run_pass("StaticLLM", split, tmp_path, context_length=8)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "pieces"])
def test_the_tokens_are_the_sources_whatever_the_prompts_length(
    built: Model, split: Model, tmp_path: Path, whole: bool
) -> None:
    static = run_pass("StaticLLM", built if whole else split, tmp_path, context_length=16)
    rng = np.random.default_rng(0)
    for length in (1, 2, 15, 16, 17, 40, 64):
        prompt = rng.integers(0, 250, length).tolist()
        assert said(static.folder, prompt, 24) == said(built.folder, prompt, 24), length


def stepped(folder: Path, ids: Sequence[int], count: int) -> tuple[list[int], np.ndarray]:
    """The tokens that plain onnxruntime-genai puts behind a prompt, and the logits of each."""
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=128, do_sample=False, top_k=1)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.asarray(ids, np.int32))
    tokens, found = [], []
    for _ in range(count):
        found.append(np.asarray(generator.get_logits()).reshape(-1))
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens, np.stack(found)


@pytest.mark.parametrize(
    ("kind", "window", "sizes"),
    [("Mistral", 20, {}), ("Gemma2", 6, {"head_dim": 16, "query_pre_attn_scalar": 16})],
)
def test_layers_that_look_back_over_a_window_do_so_with_fixed_lengths(
    kind: str, window: int, sizes: dict[str, Any], tmp_path: Path
) -> None:
    """Windows longer and shorter than the chunks of a prompt; of Gemma's layers every second has one."""
    source = decoder(tmp_path / "model", kind, sliding_window=window, initializer_range=0.2, **sizes)
    network = load_model(source, dtype="float32")
    built = build(source, tmp_path, precision="fp32")
    whole = run_pass("StaticLLM", built, tmp_path / "whole", context_length=16)
    parts = run_pass("StaticLLM", pieces(built, tmp_path), tmp_path / "parts", context_length=16)
    prompt = np.random.default_rng(0).integers(0, 250, 41).tolist()
    for static in (whole, parts):
        tokens, logits = stepped(static.folder, prompt, 6)
        with torch.inference_mode():
            wanted = network(input_ids=torch.as_tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].numpy()
        np.testing.assert_allclose(logits, wanted, atol=1e-4 * abs(wanted).max())


def test_graphs_have_fixed_lengths_and_share_their_weights(split: Model, tmp_path: Path) -> None:
    options = {"intra_op_num_threads": 1}
    static = run_pass("StaticLLM", split, tmp_path, context_length=16, group_session_options=options)
    assert static.kind == "genai"
    for group, length in (("context", 16), ("iterator", 1)):
        for number in (0, 1):
            graph = onnx.load(str(static.folder / f"{group}_{number}.onnx"), load_external_data=False).graph
            shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
            assert next(s for name, s in shapes.items() if name.startswith("/model/")) == [1, length, 64]
            assert shapes["past_seq_len"] == [1, 1]
            places = {e.value for t in graph.initializer for e in t.external_data if e.key == "location"}
            assert places == {f"transformer_{number}.onnx.data"}
    decoder = json.loads((static.folder / "genai_config.json").read_text())["model"]["decoder"]
    (entries,) = decoder["pipeline"]
    assert list(entries) == ["embeddings", "context_0", "context_1", "iterator_0", "iterator_1", "lm_head"]
    assert entries["context_1"]["session_options"] == options
    assert (entries["context_0"]["run_on_token_gen"], entries["iterator_0"]["run_on_prompt"]) == (False, False)


def test_text_is_scored_chunk_by_chunk_as_the_source_scores_it(built: Model, split: Model, tmp_path: Path) -> None:
    static = run_pass("StaticLLM", split, tmp_path, context_length=16)
    runtime = get_registry().create("drupe_runtimes", "genai")
    options = runtime.options(CPU, {"threads": 1})
    ids = np.random.default_rng(1).integers(0, 250, 41)
    with runtime.open(built, CPU, options) as source, runtime.open(static, CPU, options) as fixed:
        expected = source.score(ids, ids).outputs
        np.testing.assert_allclose(fixed.score(ids, ids).outputs["logprobs"], expected["logprobs"], atol=1e-4)
        # The last chunk of a prompt is filled up, and what fills it counts.
        with pytest.raises(EvaluationError, match="499 tokens, in chunks of 16, can't be answered in a context of 512"):
            fixed.generate(np.zeros(499, np.int64), GenerateOptions(max_new_tokens=4))
        assert len(fixed.generate(ids[:8], GenerateOptions(max_new_tokens=4)).outputs["token_ids"]) == 4


def test_a_prompt_may_hold_the_token_that_the_model_calls_padding(built: Model, tmp_path: Path) -> None:
    """Models name the end of a turn for it, and a chat has one after each turn."""
    settings = json.loads((built.folder / "genai_config.json").read_text())
    settings["model"]["pad_token_id"] = settings["model"]["eos_token_id"]
    ends = built.folder.parent / "ends"
    ends.mkdir(exist_ok=True)
    for name in built.files:
        (ends / name).write_bytes((built.folder / name).read_bytes())
    (ends / "genai_config.json").write_text(json.dumps(settings))
    static = run_pass("StaticLLM", Model.from_dir("genai", ends), tmp_path, context_length=16)
    prompt = [5, 9, settings["model"]["eos_token_id"], 17, 4, 200]
    assert said(static.folder, prompt, 16) == said(built.folder, prompt, 16)


def test_the_token_that_fills_a_prompt_is_one_that_no_prompt_has(tmp_path: Path) -> None:
    added = [{"id": n, "content": f"<{n}>", "special": True} for n in (3, 4, 5)]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": added}))
    (tmp_path / "chat_template.jinja").write_text("<4>{{ text }}")
    model = {"bos_token_id": 3, "eos_token_id": [3], "vocab_size": 6}
    assert padding_token(tmp_path, {**model, "pad_token_id": 5}) == 5
    assert padding_token(tmp_path, {**model, "pad_token_id": 3}) == 5
    assert padding_token(tmp_path, {**model, "pad_token_id": 3, "vocab_size": 8}) == 6
    assert padding_token(tmp_path, {**model, "pad_token_id": 4, "eos_token_id": 5}) is None


@pytest.mark.parametrize(
    ("info", "config", "message"),
    [
        (ModelInfo("genai"), {"batch_size": 2}, "with a batch of 1 only"),
        (ModelInfo("composite"), {}, "put ModelBuilder before it, and SplitModel between them"),
        (ModelInfo("genai", {"llm_pipeline": True}), {}, "fixed lengths already"),
        (ModelInfo("onnx"), {}, "StaticLLM takes"),
    ],
)
def test_what_can_not_be_run_is_refused_before_work(info: ModelInfo, config: dict[str, Any], message: str) -> None:
    subject = get_registry().create("drupe_passes", "StaticLLM")
    with pytest.raises(ConfigError, match=message):
        subject.plan(info, StaticLLMConfig(**config), Accelerator("cpu", "CPUExecutionProvider"))


def test_what_the_graphs_lack_is_told(built: Model, tmp_path: Path) -> None:
    masked = run_pass("SplitModel", built, tmp_path / "masked")
    with pytest.raises(PassError, match="surgeon AttentionMaskToSequenceLengths before SplitModel"):
        run_pass("StaticLLM", masked, tmp_path / "a")
    with pytest.raises(ConfigError, match="context_length is 1024; the model's context has 512 tokens"):
        run_pass("StaticLLM", built, tmp_path / "b", context_length=1024)


@pytest.mark.slow
@pytest.mark.real_run("StaticLLM")
def test_smollm2_says_the_same(smollm2_dir: Path, tmp_path: Path) -> None:
    source = Model.from_dir("hf", smollm2_dir, {"task": "text-generation", "architecture": "LlamaForCausalLM"})
    model = build(source, tmp_path, precision="int4")
    static = run_pass("StaticLLM", pieces(model, tmp_path), tmp_path / "static", context_length=64)
    tokenizer = og.Tokenizer(og.Model(str(model.folder)))
    texts = [
        "The capital of France is",
        "<|im_start|>user\nName three primary colours.<|im_end|>\n<|im_start|>assistant\n",
        "Once upon a time there was a clockmaker who lived at the edge of a very large forest. " * 6,
    ]
    for text in texts:
        ids = tokenizer.encode(text).tolist()
        assert said(static.folder, ids, 32) == said(model.folder, ids, 32), text
