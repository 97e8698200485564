"""SliceGPT: unsliced, a decoder says what it said; cut along its texts' directions it keeps more than otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drupe.core.data import Sample
from drupe.core.errors import ConfigError, DrupeError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.huggingface.loading import load_model
from drupe.plugins.quantization.hadamard import rotation
from drupe.plugins.quantization.slicing import slicing
from drupe.plugins.quantization.slicing.kind import SlicedConfig
from drupe.testing import PassContract, make_context, tiny_causal_lm
from tests.plugins.onnx.graphs import CPU, answers, run_pass
from tests.plugins.quantization.decoders import decoder, logits
from tests.plugins.real_models import by_transformers, perplexity


def text(count: int = 8, length: int = 32) -> list[Sample]:
    random = np.random.default_rng(7)
    return [
        Sample(f"s{n}", {"input_ids": random.integers(0, 250, length - n % 3)}, content_key=f"k{n}")
        for n in range(count)
    ]


def sliced(model: Model, folder: Path, **config: Any) -> Model:
    context = make_context(folder, accelerator=CPU, data={"text": text()})
    return run_pass("SliceGPT", model, folder, context=context, **{"calibration_data_config": "text", **config})


def learned(folder: Path, kind: str = "Llama", **config: Any) -> Model:
    """A decoder whose embeddings lie near a plane of 24 dimensions, as those of trained models do."""
    from safetensors.torch import load_file, save_file

    made = decoder(folder, kind, **config)
    state = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for name, tensor in state.items():
        if "embed_tokens" in name:
            plane = rotation(64, "random", generator)[:24].float()
            state[name] = torch.randn(len(tensor), 24, generator=generator) @ plane + 0.02 * tensor
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return Model.from_dir("hf", folder, made.attributes)


def error(model: Model, source: Model) -> float:
    """The root mean square of the logits' error, as a share of the logits'."""
    before, after = logits(source), logits(model)
    return float(np.sqrt(np.square(after - before).mean() / np.square(before).mean()))


class TestSliceGPT(PassContract):
    name = "SliceGPT"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_causal_lm(tmp_path / "model")

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"calibration_data_config": "text"}

    @pytest.fixture
    def data(self) -> dict[str, Any]:
        return {"text": text()}


OPT = {"ffn_dim": 96, "word_embed_proj_dim": 64, "max_position_embeddings": 64}
ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {"tie_word_embeddings": True}),
    ("Llama", {"attention_bias": True, "mlp_bias": True}),
    ("Qwen3", {"head_dim": 32}),
    ("Phi3", {}),
    ("Gemma", {"head_dim": 16}),
    ("OPT", {**OPT, "tie_word_embeddings": True}),
    ("OPT", {**OPT, "layer_norm_elementwise_affine": False}),
    ("Phi", {}),
    ("GPTNeoX", {"use_parallel_residual": True}),
]


@pytest.mark.parametrize(("kind", "config"), ARCHITECTURES)
def test_unsliced_the_logits_stay_what_they_were(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    source = decoder(tmp_path / "m", kind, **config)
    whole = sliced(source, tmp_path / "job", sparsity=0.0)
    np.testing.assert_allclose(logits(whole), logits(source), atol=1e-4 * float(np.abs(logits(source)).max()))
    shortcut = load_model(whole).state_dict()
    assert any(name.endswith("attention_shortcut") for name in shortcut)


@pytest.mark.parametrize(("kind", "config"), [("Llama", {}), ("OPT", OPT), ("Phi", {})])
def test_the_directions_of_the_texts_keep_more_than_others(
    tmp_path: Path, kind: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = learned(tmp_path / "m", kind, **config)
    errors = {"principal": error(sliced(source, tmp_path / "p", sparsity=0.5), source)}
    others = {
        "first": lambda moment, width, *_: (torch.eye(64, dtype=torch.float64)[:, :width], 0.5),
        "random": lambda moment, width, _, generator: (rotation(64, "random", generator)[:, :width], 0.5),
    }
    for name, directions in others.items():
        monkeypatch.setattr(slicing, "principal", directions)
        errors[name] = error(sliced(source, tmp_path / name, sparsity=0.5), source)
    assert errors["principal"] < 0.5 * min(errors["first"], errors["random"]), errors


def test_what_is_left_and_where_it_goes(tmp_path: Path) -> None:
    source = learned(tmp_path / "m")
    context = make_context(tmp_path / "job", accelerator=CPU, data={"text": text()})
    made = run_pass("SliceGPT", source, tmp_path / "job", context=context, sparsity=0.3, calibration_data_config="text")
    shapes = {name: tuple(tensor.shape) for name, tensor in load_model(made).state_dict().items()}
    # 0.7 × 64 = 44.8, and the next multiple of 8 below is 40.
    assert shapes["model.embed_tokens.weight"] == (264, 40)
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == (64, 40)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (40, 96)
    assert shapes["model.layers.0.attention_shortcut"] == (40, 40)
    assert shapes["model.layers.1.feed_forward_shortcut"] == (40, 64)
    assert shapes["lm_head.weight"] == (264, 64)
    assert context.report["width"] == {"before": 64, "after": 40}
    counts = context.report["parameters"]
    assert counts["after"] == sum(int(np.prod(shape)) for shape in shapes.values()) < counts["before"]
    assert 0 < context.report["lost"]["mean"] <= context.report["lost"]["most"] < 0.05


def test_the_head_is_sliced_where_it_is_asked_for(tmp_path: Path) -> None:
    source = learned(tmp_path / "m")
    made = sliced(source, tmp_path / "job", sparsity=0.5, slice_head=True, round_interval=1)
    assert load_model(made).lm_head.weight.shape == (264, 32)
    assert error(made, source) < 0.5


def test_the_orientation_turns_what_is_left_and_says_the_same(tmp_path: Path) -> None:
    source = learned(tmp_path / "m")
    made = {
        (orientation, seed): sliced(
            source, tmp_path / f"{orientation}{seed}", sparsity=0.5, final_orientation=orientation, seed=seed
        )
        for orientation, seed in (("pca", 1), ("pca", 2), ("random", 1), ("random", 2))
    }
    tables = {key: load_model(model).model.embed_tokens.weight for key, model in made.items()}
    powers = tables["pca", 1].square().sum(0)
    assert bool(powers[:8].mean() > 4 * powers[-8:].mean())
    torch.testing.assert_close(tables["pca", 1], tables["pca", 2])
    assert not torch.allclose(tables["random", 1], tables["random", 2], atol=1e-3)
    scale = float(np.abs(logits(source)).max())
    for model in made.values():
        np.testing.assert_allclose(logits(model), logits(made["pca", 1]), atol=2e-3 * scale)


def test_without_data_the_model_writes_what_calibrates_it(tmp_path: Path) -> None:
    source = learned(tmp_path / "m")
    values = {"calibration_data_config": None, "calibration_nsamples": 8, "calibration_seqlen": 24, "sparsity": 0.4}
    assert error(sliced(source, tmp_path / "job", **values), source) < 0.5


def test_weights_keep_the_type_that_they_were_stored_in_and_positions_stay_exact(tmp_path: Path) -> None:
    source = learned(tmp_path / "m")
    network = load_model(source)
    network.to(torch.bfloat16).save_pretrained(tmp_path / "m")
    made = sliced(Model.from_dir("hf", tmp_path / "m", source.attributes), tmp_path / "job", sparsity=0.25)
    loaded = load_model(made)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32
    assert load_model(made, dtype="float32").lm_head.weight.dtype == torch.float32
    assert error(made, source) < 0.3


def test_plain_libraries_load_it(tmp_path: Path) -> None:
    made = sliced(learned(tmp_path / "m"), tmp_path / "job", sparsity=0.4)
    program = (
        "import sys, torch, sliced_decoder; from transformers import AutoTokenizer\n"
        "model = sliced_decoder.load('.'); tokenizer = AutoTokenizer.from_pretrained('.')\n"
        "ids = tokenizer('a tone', return_tensors='pt').input_ids\n"
        "out = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=258)\n"
        "cached = model(out).logits[:, -1]; assert out.shape == (1, ids.shape[1] + 4)\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'drupe']\n"
        "print(model(ids).logits[0, -1, :3].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=made.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ids = torch.tensor([list(load_tokenizer_ids(made))])
    with torch.inference_mode():
        expected = load_model(made)(input_ids=ids).logits[0, -1, :3].tolist()
    assert json.loads(done.stdout) == pytest.approx(expected, abs=1e-4)


def load_tokenizer_ids(model: Model) -> list[int]:
    from drupe.plugins.huggingface.loading import load_tokenizer

    ids: list[int] = load_tokenizer(model)("a tone")["input_ids"]
    return ids


def test_it_is_exported_and_measured(tmp_path: Path) -> None:
    made = sliced(learned(tmp_path / "m"), tmp_path / "job", sparsity=0.4)
    graph = run_pass("OnnxConversion", made, tmp_path / "onnx")
    assert "tokenizer.json" in graph.files and "sliced_decoder.py" not in graph.files
    ids = np.random.default_rng(0).integers(0, 250, (3, 11))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    with torch.inference_mode():
        expected = load_model(made)(input_ids=torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(answers(graph, batch)[0], expected, atol=1e-4 * float(np.abs(expected).max()))
    runtime = get_registry().create("drupe_runtimes", "hf")
    with runtime.open(made, CPU, {}) as session:
        scored = session.score(ids[0], ids[0]).outputs["logprobs"]
        answer = session.generate("a", three_tokens())
    table = torch.log_softmax(torch.from_numpy(expected[0]).double(), -1)
    assert scored[1] == pytest.approx(float(table[0, ids[0, 1]]), abs=1e-4)
    assert len(answer.outputs["token_ids"]) == 3


def three_tokens() -> Any:
    from drupe.core.runtimes import GenerateOptions

    return GenerateOptions(max_new_tokens=3)


@pytest.mark.parametrize("name", ["ModelBuilder", "Gptq", "QuaRot"])
def test_passes_for_plain_models_refuse_it_before_work(name: str) -> None:
    subject = get_registry().create("drupe_passes", name)
    with pytest.raises(ConfigError, match=f"{name} takes hf models and would be given sliced"):
        subject.plan(ModelInfo("sliced", {"task": "text-generation"}), type(subject).Config.model_construct(), CPU)


def test_it_is_an_input_model_again(tmp_path: Path) -> None:
    made = sliced(learned(tmp_path / "m"), tmp_path / "job", sparsity=0.4)
    kind = get_registry().create("drupe_model_kinds", "SlicedModel")
    config = SlicedConfig(model_path=str(made.folder))
    read = kind.load(config, {"model": made.folder}, make_context(tmp_path / "in"))
    np.testing.assert_array_equal(logits(read), logits(made))
    assert not list(read.folder.glob("*.py"))
    with pytest.raises(ConfigError, match=r"holds no sliced model.*HfModel"):
        kind.load(config, {"model": tmp_path / "m"}, make_context(tmp_path / "in2"))
    hf = get_registry().create("drupe_model_kinds", "HfModel")
    with pytest.raises(ConfigError, match="use type SlicedModel"):
        hf.load(hf.Config(model_path="x"), {"model": made.folder}, make_context(tmp_path / "in3"))


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("OPT", {**OPT, "do_layer_norm_before": False}, "its head does not read the norm"),
        ("OPT", {**OPT, "word_embed_proj_dim": 32}, "OPTForCausalLM: .*; expected a decoder"),
        ("Gemma2", {"head_dim": 16}, "Gemma2ForCausalLM: model.layers.0 has norms elsewhere"),
        ("Olmo2", {}, "Olmo2ForCausalLM: .*; expected a decoder"),
        ("Mixtral", {"num_local_experts": 2}, "MixtralForCausalLM: .*; expected a decoder"),
        ("Granite", {"residual_multiplier": 0.5}, "GraniteForCausalLM.* does more with its states"),
    ],
)
def test_other_structures_are_told(tmp_path: Path, kind: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(DrupeError, match=message):
        sliced(decoder(tmp_path / "m", kind, **config), tmp_path / "job")


def test_nothing_left_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"of 64 a sparsity of 0.9 leaves no multiple of round_interval \(8\)"):
        sliced(decoder(tmp_path / "m"), tmp_path / "job", sparsity=0.9)


@pytest.mark.slow
@pytest.mark.real_run("SliceGPT")
def test_smollm2_sliced_by_a_quarter_still_speaks(smollm2: Model, tmp_path: Path) -> None:
    import importlib.util
    import pydoc

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder)
    page = np.asarray(tokenizer(pydoc.render_doc("argparse", renderer=pydoc.plaintext))["input_ids"])
    rows, unseen = page[:2048].reshape(8, 256), page[2048:2304]
    data = {"pages": [Sample(f"p{n}", {"input_ids": row}, content_key=f"k{n}") for n, row in enumerate(rows)]}
    context = make_context(tmp_path / "job", accelerator=CPU, data=data)
    made = run_pass("SliceGPT", smollm2, tmp_path / "job", context=context, calibration_data_config="pages")
    # The file beside the weights is all that it takes beside PyTorch and transformers.
    spec = importlib.util.spec_from_file_location("sliced_decoder", made.folder / "sliced_decoder.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sliced = module.load(made.folder)
    assert sliced.model.embed_tokens.weight.shape == (49152, 432)
    source = AutoModelForCausalLM.from_pretrained(smollm2.folder, dtype=torch.float32)
    before, after = (perplexity(by_transformers(model, unseen), unseen) for model in (source, sliced))
    # Guessing evenly costs 49,152.
    assert before < 10 and after < 1.06 * before, (before, after)
