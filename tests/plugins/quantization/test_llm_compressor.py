"""LLMCompressor: what is known before the library is there, and real compression in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

import drupe as drupe_package
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.huggingface.loading import load_model, load_tokenizer
from drupe.plugins.quantization.compressor.config import LLMCompressorConfig
from drupe.plugins.quantization.compressor.recipes import read_recipe
from drupe.plugins.quantization.compressor.schemes import SCHEMES
from drupe.testing import tiny_causal_lm
from tests.plugins.onnx.graphs import CPU
from tests.plugins.quantization.measuring import measured_workflow
from tests.plugins.quantization.workflows import assert_idle
from tests.support.environments import environment_with
from tests.support.real_runs import noted_elsewhere
from tests.support.workflows import drupe

REPOSITORY = Path(__file__).parents[3]


def planned(attributes: dict[str, Any], **config: Any) -> ModelInfo:
    subject = get_registry().create("drupe_passes", "LLMCompressor")
    info: ModelInfo = subject.plan(ModelInfo("hf", attributes), LLMCompressorConfig(**config), CPU)
    return info


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scheme": "W4A17"}, "Input should be 'W4A16'"),
        (
            {"scheme": "W8A8", "group_size": 64},
            "group_size is for W4A16, W4A16_ASYM, W8A16, W4A8, W4AFP8; W8A8 has its own",
        ),
        ({"scheme": "NVFP4", "dtype": "float32"}, "transformers runs NVFP4 in bfloat16 only"),
        ({"smoothing_strength": 0.5}, "W4A16 leaves them in float; take W8A8"),
        ({"scheme": "W8A8", "smoothing_strength": 1.5}, "less than or equal to 1"),
        ({"scheme": None}, "nothing is left to do"),
        ({"sparsity": 0.5}, "gptq fills the zeros that sparsity asks for; take algorithm: rtn"),
        ({"scheme": None, "sparsity": 0.5, "algorithm": "gptq"}, "algorithm: gptq rounds weights, and scheme is null"),
        (
            {"sparsity": 0.3, "algorithm": "rtn"},
            "mask_structure 2:4 sets 0.5 of the weights to zero, sparsity says 0.3",
        ),
        ({"sparsity": 0.5, "algorithm": "rtn", "mask_structure": "4:2"}, "expected n:m with n below m"),
        ({"mask_structure": "0:0"}, "mask_structure is for sparsity"),
        ({"pipeline": "datafree"}, "datafree has no calibration"),
        ({"algorithm": "awq"}, "Input should be 'gptq' or 'rtn'"),
        ({"recipe": {"GPTQModifier": {}}, "recipe_file": "r.yaml"}, "both given"),
        ({"recipe": {"GPTQModifier": {"scheme": "W4A16"}}, "scheme": "W8A8"}, "scheme and a recipe contradict"),
        ({"recipe": {"GptqModifier": {}}}, "did you mean GPTQModifier"),
        ({"recipe": {"quant_stages": {}}}, "expected stages"),
        ({"recipe": {"quant_stage": {"modifiers": {}}}}, r"quant_stage has 'modifiers'; expected groups of modifiers"),
        ({"recipe": {"a_stage": {"b_modifiers": {"GPTQModifier": "W4A16"}}}}, "expected its arguments by name"),
        ({"recipe": {}}, "a recipe is a mapping"),
    ],
)
def test_what_does_not_go_together_is_told(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LLMCompressorConfig(**config)


@pytest.mark.parametrize(
    ("config", "idle"),
    [
        ({"actorder": None, "dampening_frac": 0.1, "pipeline": "sequential"}, []),
        ({"algorithm": "rtn", "actorder": None, "block_size": 64}, ["actorder", "block_size"]),
        ({"algorithm": "rtn", "pipeline": "basic", "sequential_targets": ["X"]}, ["pipeline", "sequential_targets"]),
        ({"scheme": None, "sparsity": 0.5, "actorder": None, "dampening_frac": 0.1}, ["actorder"]),
        ({"scheme": "FP8", "algorithm": "rtn", "dampening_frac": 0.1, "pipeline": "basic"}, ["dampening_frac"]),
    ],
)
def test_what_has_no_effect_is_told(tmp_path: Path, config: dict[str, Any], idle: list[str]) -> None:
    assert_idle(tmp_path, "LLMCompressor", config, idle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "r.yaml is no YAML"),
        ("- GPTQModifier", "a recipe is a mapping"),
        ("s_stage:\n  q_modifiers:\n    SparseGPTModifer: {sparsity: 0.5}\n", "did you mean SparseGPTModifier"),
        ("GPTQModifier:\n  scheme: W4A16\nignore: [lm_head]\n", "the recipe has 'GPTQModifier'; expected stages"),
    ],
)
def test_a_recipe_file_is_read_before_work(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"LLMCompressor: recipe_file: .*{message}"):
        planned({}, recipe_file=str(path))


def test_a_recipe_of_bare_modifiers_becomes_a_stage(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"GPTQModifier": {"scheme": "W4A16"}}')
    assert read_recipe(path) == {"default_stage": {"default_modifiers": {"GPTQModifier": {"scheme": "W4A16"}}}}


@pytest.mark.parametrize(
    ("config", "quantization"),
    [
        ({}, "compressed-tensors"),
        ({"scheme": None, "sparsity": 0.5}, None),
        ({"recipe": {"SparseGPTModifier": {"sparsity": 0.5}}}, None),
        ({"recipe": {"QuantizationModifier": {"scheme": "FP8_DYNAMIC"}}}, "compressed-tensors"),
    ],
)
def test_whether_the_result_is_quantized_is_known_before(config: dict[str, Any], quantization: str | None) -> None:
    assert planned({}, **config).attributes.get("quantization") == quantization
    builder = get_registry().create("drupe_passes", "ModelBuilder")
    if quantization is None:
        builder.plan(planned({}, **config), type(builder).Config(precision="int4"), CPU)
    else:
        with pytest.raises(ConfigError, match="this one is compressed-tensors"):
            builder.plan(planned({}, **config), type(builder).Config(precision="int4"), CPU)


@pytest.mark.parametrize(
    ("recipe", "sparsity"),
    [
        ({"SparseGPTModifier": {"sparsity": 0.5}}, 0.5),
        ({"SparseGPTModifier": {"sparsity": 0.5, "mask_structure": "2:4"}}, [2, 4]),
        ({"WandaPruningModifier": {"sparsity": [0.4, 0.6], "mask_structure": "0:0"}}, 0.5),
        ({"MagnitudePruningModifier": {"init_sparsity": 0.0, "final_sparsity": 0.3}}, 0.3),
        ({"SparseGPTModifier": {"sparsity": 0.5}, "QuantizationModifier": {"scheme": "W8A16"}}, 0.5),
        ({"SparseGPTModifier": {"sparsity": 0.5}, "GPTQModifier": {"scheme": "W8A16"}}, None),
        ({"QuantizationModifier": {"scheme": "W8A16"}}, None),
    ],
)
def test_a_recipe_that_prunes_says_how_sparse_the_model_is(
    tmp_path: Path, recipe: dict[str, Any], sparsity: float | list[int] | None
) -> None:
    assert planned({}, recipe=recipe).attributes.get("sparsity") == sparsity
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert planned({}, recipe_file=str(tmp_path / "r.yaml")).attributes.get("sparsity") == sparsity
    if sparsity is not None and "QuantizationModifier" not in recipe:
        gptq = get_registry().create("drupe_passes", "Gptq")
        with pytest.raises(ConfigError, match="would fill the zeros of a model that was pruned"):
            gptq.plan(planned({}, recipe=recipe), type(gptq).Config(), CPU)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"adapter": "adapter"}, "MergeAdapterWeights"),
        ({"quantization": "gptq"}, r"quantized already \(gptq\)"),
        ({"mixed_precision": {"a": 8}}, "an earlier pass chose bits"),
        ({"task": "text-classification"}, "a model for text-classification writes none itself; give a data_config"),
    ],
)
def test_inputs_that_it_cannot_take_are_refused(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(attributes)


@pytest.mark.parametrize("name", ["AutoRoundModifier", "GPTQModifier", "QuIPModifier", "SpinQuantModifier"])
def test_recipes_that_would_fill_zeros_refuse_pruned_models(name: str) -> None:
    with pytest.raises(ConfigError, match="would fill the zeros of a model that was pruned"):
        planned({"sparsity": [2, 4]}, recipe={name: {}})
    planned({"sparsity": [2, 4]}, recipe={"QuantizationModifier": {"scheme": "W8A16"}})


def test_a_host_without_the_library_is_told_with_the_lines_that_help(tmp_path: Path) -> None:
    tiny_causal_lm(tmp_path / "model")
    done = drupe(
        "run", measured_workflow(tmp_path, tmp_path / "model", squeeze={"type": "LLMCompressor"}), folder=tmp_path
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "LLMCompressor needs llmcompressor>=0.14 (there is none)" in done.stderr
    assert '"passes": {"squeeze": {"type": "LLMCompressor", "host": "squeeze_environment"}}' in done.stderr


# What runs in the environment of its own


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with llmcompressor and its own transformers."""
    folder = tmp_path_factory.mktemp("llmcompressor") / "environment"
    return environment_with(folder, "llmcompressor>=0.14", needed_too=True, timeout=400)


def there(environment: Path, *arguments: str) -> None:
    """Run Python in the environment, in the repository's folder."""
    env = {**os.environ, "PYTHONPATH": f"{Path(drupe_package.__path__[0]).parent}{os.pathsep}{REPOSITORY}"}
    done = subprocess.run([environment / "bin" / "python", *arguments], cwd=REPOSITORY, env=env, capture_output=True,
                          text=True, check=False, timeout=400)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


Compress = Callable[..., tuple[Callable[[str], Model], dict[str, Any]]]


@pytest.fixture
def compress(environment: Path, tmp_path: Path) -> Compress:
    """Run cases on a source there. Gives a function from a case's name to its model, and what was told of each."""
    pytest.importorskip("compressed_tensors")

    def run(
        source: Model, rows: Any, cases: dict[str, dict[str, Any]]
    ) -> tuple[Callable[[str], Model], dict[str, Any]]:
        job = {"source": str(source.folder), "out": str(tmp_path), "rows": np.asarray(rows).tolist(), "cases": cases}
        (tmp_path / "job.json").write_text(json.dumps(job))
        there(environment, "-m", "tests.plugins.quantization.compressing", str(tmp_path / "job.json"))
        told = json.loads((tmp_path / "results.json").read_text())
        if any("attributes" in told[name] for name in cases):
            noted_elsewhere("LLMCompressor", source)

        def made(name: str) -> Model:
            return Model.from_dir("hf", tmp_path / name / "outputs", told[name]["attributes"])

        return made, told

    return run


def answers(network: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(network(input_ids=ids).logits.float(), -1)


def divergence(source: Model, result: Model, ids: torch.Tensor) -> float:
    """Mean Kullback-Leibler divergence of what the result predicts from what the source predicts, a token, in nats."""
    wanted, found = answers(load_model(source, dtype="float32"), ids), answers(load_model(result), ids)
    return float(torch.nn.functional.kl_div(found, wanted, reduction="sum", log_target=True)) / ids.numel()


def plain_divergence(source: Model, result: Model, ids: torch.Tensor) -> float:
    """The same, with both opened by transformers alone."""
    wanted, found = (
        answers(AutoModelForCausalLM.from_pretrained(model.folder, dtype="float32"), ids) for model in (source, result)
    )
    return float(torch.nn.functional.kl_div(found, wanted, reduction="sum", log_target=True)) / ids.numel()


@pytest.mark.slow
def test_the_contract_holds_there(environment: Path) -> None:
    there(
        environment,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name("compressing_contract.py")),
    )


@pytest.mark.slow
@pytest.mark.full
def test_schemes_and_recipes_give_checkpoints_that_transformers_opens(compress: Compress, tmp_path: Path) -> None:
    source = tiny_causal_lm(tmp_path / "model", hidden_size=128, num_attention_heads=4, initializer_range=0.1)
    quick: dict[str, Any] = {"data_config": "text", "nsamples": 8, "seqlen": 32}
    eight = {"targets": ["Linear"], "scheme": "W8A16", "ignore": ["lm_head"]}
    layers = {"targets": ["Linear"], "ignore": ["lm_head"]}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"q_stage": {"q_modifiers": {"GPTQModifier": eight}}}))
    cases: dict[str, dict[str, Any]] = {
        "groups": {**quick, "group_size": 32},
        "offset": {**quick, "scheme": "W4A16_ASYM", "group_size": 32},
        "smooth": {**quick, "scheme": "W8A8", "smoothing_strength": 0.8},
        "float8": {"scheme": "FP8_DYNAMIC", "algorithm": "rtn"},
        "float4": {**quick, "scheme": "NVFP4"},
        "sparse": {**quick, "scheme": None, "sparsity": 0.5},
        "thin": {**quick, "scheme": "W8A8", "algorithm": "rtn", "sparsity": 0.5},
        "cut": {**quick, "recipe": {"WandaPruningModifier": {"sparsity": 0.5, "mask_structure": "2:4", **layers}}},
        "ignored": {"scheme": "W8A16", "algorithm": "rtn", "ignore": ["lm_head", "re:.*mlp.*"]},
        "recipe": {**quick, "recipe_file": "recipe.yaml"},
        "own_text": {**quick, "recipe": {"GPTQModifier": eight}, "data_config": None, "nsamples": 2},
        "bad_argument": {**quick, "recipe": {"GPTQModifier": {**eight, "targts": ["Linear"]}}},
        "bad_scheme": {**quick, "recipe": {"GPTQModifier": {**eight, "scheme": "W9A16"}}},
        "bad_target": {**quick, "recipe": {"GPTQModifier": {**eight, "targets": ["Lineal"]}}},
        "bad_ignore": {**quick, "ignore": ["model.layers.0.mlp.up_prj"]},
        "bad_group": {"scheme": "MXFP4", "algorithm": "rtn", "targets": ["re:.*mlp.*"], "ignore": ["re:.*"]},
        "awq": {**quick, "recipe": {"AWQModifier": {}, "QuantizationModifier": {**eight, "scheme": "W4A16"}}},
    }
    rows = np.random.default_rng(7).integers(0, 250, (8, 32))
    made, told = compress(source, rows, cases)
    errors = {name: entry["error"] for name, entry in told.items() if "error" in entry}
    expected = {
        "bad_argument": "GPTQModifier has no argument 'targts'; did you mean targets?",
        "bad_scheme": "GPTQModifier: scheme is 'W9A16'",
        "bad_target": "unable to find any modules to quantize",
        "bad_ignore": "ignore: no layer of the model matches 'model.layers.0.mlp.up_prj'; did you mean model",
        "bad_group": "targets and ignore leave no layer",
    }
    if not torch.accelerator.is_available():
        expected["awq"] = "AWQModifier needs an accelerator where the pass runs"
    assert set(errors) == set(expected)
    assert [name for name, message in expected.items() if message not in errors[name]] == []

    ids = torch.arange(20, 60)[None]
    limits = {"groups": 0.2, "offset": 0.2, "smooth": 0.01, "float8": 0.05, "float4": 0.3, "recipe": 0.005,
              "ignored": 0.005, "own_text": 0.005}  # fmt: skip
    for name, limit in limits.items():
        assert 0 < divergence(source, made(name), ids) < limit, name
        quantization = json.loads((made(name).folder / "config.json").read_text())["quantization_config"]
        assert quantization["quant_method"] == told[name]["attributes"]["quantization"] == "compressed-tensors"
        assert (made(name).folder / "recipe.yaml").is_file() and (made(name).folder / "tokenizer.json").is_file()
    for name in ("groups", "smooth", "float8", "float4"):
        plain = AutoModelForCausalLM.from_pretrained(made(name).folder)
        assert torch.equal(answers(plain, ids), answers(load_model(made(name)), ids)), name
    assert told["float4"]["attributes"]["dtype"] == "bfloat16"
    assert told["groups"]["report"]["layers"] == 14 and told["ignored"]["report"]["layers"] == 8
    assert told["own_text"]["report"]["calibration"]["from"] == "the model's own text"

    assert "quantization" not in told["sparse"]["attributes"]
    for name in ("sparse", "thin", "cut"):
        network = load_model(made(name))
        network(input_ids=ids)  # packed layers have their weights from then on
        weights = [layer.weight for path, layer in network.named_modules()
                   if isinstance(layer, torch.nn.Linear) and path != "lm_head"]  # fmt: skip
        assert all(int((weight == 0).reshape(-1, 4).sum(1).min()) >= 2 for weight in weights), name
        assert told[name]["attributes"]["sparsity"] == [2, 4]

    presets = told["presets"]
    for name, scheme in SCHEMES.items():
        assert presets[name]["type"] == scheme.weights, name
        assert (presets[name]["group_size"], presets[name]["static"]) == (scheme.group_size, scheme.static), name
        assert presets[name]["symmetric"] != scheme.asymmetric, name


@pytest.mark.slow
@pytest.mark.real_run("LLMCompressor")
def test_smollm2s_blocks_keep_more_by_gptq_than_by_rounding(compress: Compress, smollm2_cut_dir: Path) -> None:
    """On real text that neither saw; groups of 128 do not divide its 576 columns, which is told with what does."""
    source = Model.from_dir("hf", smollm2_cut_dir, {"task": "text-generation"})
    lines = (REPOSITORY / "examples" / "tone" / "phrases.jsonl").read_text().splitlines()
    ids = load_tokenizer(source)(" ".join(json.loads(line)["phrase"] for line in lines)).input_ids
    rows = np.array(ids[: 64 * 24]).reshape(24, 64)
    cases = {
        "solved": {"group_size": 64, "data_config": "text", "nsamples": 16, "seqlen": 64},
        "rounded": {"group_size": 64, "algorithm": "rtn"},
        "eight": {"scheme": "W8A8", "algorithm": "rtn"},
        "wide": {"algorithm": "rtn"},
    }
    made, told = compress(source, rows[:16], cases)
    assert "groups of 128 do not divide the 576 columns of model.layers.0.self_attn.q_proj" in told["wide"]["error"]
    assert "the largest group_size that does is 64" in told["wide"]["error"]
    unseen = torch.from_numpy(rows[16:])
    solved, rounded, eight = (plain_divergence(source, made(name), unseen) for name in ("solved", "rounded", "eight"))
    assert 0 < eight < 0.5 * solved
    assert solved < 0.8 * rounded


@pytest.mark.full
@pytest.mark.slow
def test_a_workflow_compresses_there_and_measures_here(environment: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    source = tiny_causal_lm(tmp_path / "model", hidden_size=128, num_attention_heads=4)
    step = {
        "type": "LLMCompressor",
        "group_size": 32,
        "data_config": "words",
        "nsamples": 4,
        "seqlen": 16,
        "host": "apart",
    }
    path = measured_workflow(tmp_path, source.folder, squeeze=step)
    document = json.loads(path.read_text())
    document["systems"]["apart"] = {
        "type": "PythonEnvironment",
        "python_environment_path": str(environment),
        "threads": 1,
    }
    path.write_text(json.dumps(document))
    done = drupe("run", path, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (config,) = (tmp_path / "out").rglob("config.json")
    assert json.loads(config.read_text())["quantization_config"]["format"] == "pack-quantized"
    assert "ppl" in (tmp_path / "out" / "drupe.json").read_text()
