"""TorchAO: what it quantizes is in the file, and stays near the source in transformers and in the runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.huggingface.loading import load_model
from drupe.plugins.quantization.ao.config import TorchAOConfig
from drupe.testing import PassContract, tiny_causal_lm, tiny_encoder
from tests.plugins.onnx.graphs import CPU, run_pass
from tests.plugins.quantization.measuring import measured_workflow
from tests.support.workflows import drupe

pytest.importorskip("torchao")

GPU = Accelerator("gpu", "CUDAExecutionProvider")
DYNAMIC = "int8_dynamic_activation_int8_weight"


def decoder(folder: Path) -> Model:
    return tiny_causal_lm(folder, hidden_size=128, num_attention_heads=4, initializer_range=0.1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return decoder(tmp_path_factory.mktemp("source") / "model")


def logits(network: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = network(input_ids=torch.arange(20, 60)[None]).logits.float()
    return found


def likeness(source: Model, result: Model) -> float:
    before, after = logits(load_model(source, dtype="float32")), logits(load_model(result))
    return float(torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0))


def quantized(network: Any) -> dict[str, str]:
    """Layer → the library's class of its weights."""
    found = {name: type(module.weight).__name__ for name, module in network.named_modules()
             if isinstance(module, (torch.nn.Linear, torch.nn.Embedding))}  # fmt: skip
    return {name: kind for name, kind in found.items() if kind.endswith("Tensor")}


class TestTorchAO(PassContract):
    name = "TorchAO"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return decoder(tmp_path / "model")


@pytest.mark.parametrize(
    ("config", "kind", "least"),
    [
        ({}, "Int8Tensor", 0.999),
        ({"group_size": 32}, "Int8Tensor", 0.999),
        ({"granularity": "tensor"}, "Int8Tensor", 0.998),
        ({"scheme": DYNAMIC}, "Int8Tensor", 0.998),
        ({"scheme": DYNAMIC, "activation_sym": False}, "Int8Tensor", 0.998),
        ({"scheme": "intx_weight_only"}, "IntxUnpackedToInt8Tensor", 0.9),
        ({"scheme": "intx_weight_only", "sym": False, "group_size": -1, "bits": 6}, "IntxUnpackedToInt8Tensor", 0.98),
        ({"scheme": "int8_dynamic_activation_intx_weight", "bits": 8}, "IntxUnpackedToInt8Tensor", 0.998),
        ({"scheme": "float8_weight_only"}, "Float8Tensor", 0.99),
    ],
)  # fmt: skip
def test_every_scheme_of_a_cpu_stays_near_the_source(
    source: Model, tmp_path: Path, config: dict[str, Any], kind: str, least: float
) -> None:
    result = run_pass("TorchAO", source, tmp_path, **config)
    assert least < likeness(source, result) < 0.9999999
    plain = AutoModelForCausalLM.from_pretrained(result.folder)
    assert set(quantized(plain).values()) == {kind} and len(quantized(plain)) == 14
    assert torch.equal(logits(plain), logits(load_model(result)))
    told = json.loads((result.folder / "config.json").read_text())["quantization_config"]
    assert told["quant_method"] == "torchao" and told["quant_type"]["default"]["_version"] == 2
    assert [path.name for path in result.folder.glob("*.bin")] == [] and "tokenizer.json" in result.files


def test_dynamic_activations_are_rounded_and_not_only_weights(source: Model, tmp_path: Path) -> None:
    weights, both = (run_pass("TorchAO", source, tmp_path / scheme, scheme=scheme)
                     for scheme in ("int8_weight_only", DYNAMIC))  # fmt: skip
    assert likeness(source, both) < likeness(source, weights)


def test_half_quadratic_ranges_lose_less(source: Model, tmp_path: Path) -> None:
    found = [likeness(source, run_pass("TorchAO", source, tmp_path / ranges, scheme="intx_weight_only", ranges=ranges))
             for ranges in ("minmax", "hqq")]  # fmt: skip
    assert found[0] < found[1]


def test_patterns_say_which_layers(source: Model, tmp_path: Path) -> None:
    result = run_pass("TorchAO", source, tmp_path, include=["*mlp*", "*q_proj"], exclude=["model.layers.0.*"])
    expected = {
        f"model.layers.1.{name}" for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_proj")
    }
    assert set(quantized(load_model(result))) == expected


def test_head_and_table_that_were_one_have_weights_of_their_own(source: Model, tmp_path: Path) -> None:
    result = run_pass("TorchAO", source, tmp_path / "both", lm_head=True, embeddings=True)
    network = load_model(result)
    assert {"lm_head", "model.embed_tokens"} <= set(quantized(network))
    assert likeness(source, result) > 0.999
    head = load_model(run_pass("TorchAO", source, tmp_path / "head", lm_head=True))
    assert "lm_head" in quantized(head) and "model.embed_tokens" not in quantized(head)
    table = load_model(source).get_input_embeddings().weight
    assert torch.equal(head.get_input_embeddings().weight, table)


def test_layers_have_grids_of_their_own(source: Model, tmp_path: Path) -> None:
    def sizes(result: Model) -> dict[str, int]:
        network = load_model(result)
        return {name: len(network.get_submodule(name).weight.qdata.unique()) for name in quantized(network)}

    mixed = Model(
        source.kind, source.files, {**source.attributes, "mixed_precision": {"model.layers.0.mlp.up_proj": 8}}
    )
    own = {"*.down_proj": {"bits": 2, "group_size": 64}}
    found = sizes(run_pass("TorchAO", mixed.at(source.folder), tmp_path, scheme="intx_weight_only", overrides=own))
    assert found["model.layers.0.mlp.up_proj"] > 16
    assert found["model.layers.1.mlp.up_proj"] <= 16 and found["model.layers.1.mlp.up_proj"] > 4
    assert {found[f"model.layers.{n}.mlp.down_proj"] for n in (0, 1)} <= {2, 3, 4}


def test_an_encoder(tmp_path: Path) -> None:
    source = tiny_encoder(tmp_path / "model")
    result = run_pass("TorchAO", source, tmp_path / "made", scheme=DYNAMIC, exclude=["classifier"])
    network = load_model(result)
    assert len(quantized(network)) == 13 and "classifier" not in quantized(network)
    assert likeness(source, result) > 0.99


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bits": 3}, "bits: 3 is for intx_weight_only and int8_dynamic_activation_intx_weight; the scheme is int8"),
        ({"sym": False}, "sym: false is for intx_weight_only"),
        ({"overrides": {"*": {"bits": 4}}}, "overrides is for intx"),
        ({"scheme": "intx_weight_only", "overrides": {"*": {"bit": 4}}}, "has 'bit'; expected bits, group_size, sym"),
        ({"scheme": "intx_weight_only", "overrides": {"*": {"bits": 9}}}, "whole number from 1 to 8"),
        ({"scheme": DYNAMIC, "group_size": 32}, f"group_size is 32; {DYNAMIC} has none"),
        ({"scheme": "int4_weight_only", "group_size": 16}, "int4_weight_only has groups of 32, 64, 128, 256"),
        ({"granularity": "row", "group_size": 32}, "contradict each other"),
        ({"scheme": "intx_weight_only", "granularity": "tensor"}, "granularity: tensor is not for intx_weight_only"),
        ({"scheme": "intx_weight_only", "granularity": "row"}, "has groups or, by group_size: -1, whole rows"),
        ({"scheme": "int4_weight_only", "granularity": "row"}, "granularity: row is not for int4_weight_only"),
        (
            {"scheme": "intx_weight_only", "ranges": "hqq", "overrides": {"*": {"sym": False}}},
            "the scheme is intx_weight_only with sym: false",
        ),
        ({"scheme": "int4_weight_only", "device": "cpu"}, "device is cpu; the kernels of int4_weight_only are for"),
        ({"ranges": "hqq"}, "ranges: hqq is for int4_weight_only and, with sym, the intx schemes"),
        ({"activation_sym": False}, "activation_sym: false is for int8_dynamic_activation_int8_weight"),
        ({"scheme": DYNAMIC, "embeddings": True}, "embeddings: true is for int8_weight_only and intx_weight_only"),
        ({"scheme": "int4_weight_only", "dtype": "float32"}, "calculate in bfloat16"),
        ({"scheme": "int4"}, "Input should be 'int8_weight_only'"),
        ({"include": []}, "at least 1"),
    ],
)
def test_what_does_not_go_together_is_told(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TorchAOConfig(**config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"exclude": ["*.q_prj"]}, r"exclude: no layer of the model matches '\*.q_prj'; it has model.layers.0"),
        ({"include": ["model.layers.0.mlp.up_prj"]}, "did you mean 'model.layers.0.mlp.up_proj'"),
        ({"include": ["*mlp*"], "exclude": ["*"]}, "leave no layer to quantize"),
        ({"include": ["*mlp*"], "lm_head": True}, "lm_head: true, and include and exclude leave lm_head out"),
        ({"group_size": 256}, "groups of 256 do not divide the 128 columns of model.layers.0.self_attn.q_proj; the"),
    ],
)
def test_what_does_not_suit_the_model_is_told(
    source: Model, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_pass("TorchAO", source, tmp_path, **config)


def test_a_head_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no linear head, so lm_head: true can't be done"):
        run_pass("TorchAO", tiny_encoder(tmp_path / "model"), tmp_path / "made", lm_head=True)


def planned(attributes: dict[str, Any], accelerator: Accelerator = CPU, **config: Any) -> ModelInfo:
    subject = get_registry().create("drupe_passes", "TorchAO")
    info: ModelInfo = subject.plan(ModelInfo("hf", attributes), TorchAOConfig(**config), accelerator)
    return info


@pytest.mark.parametrize("scheme", ["int4_weight_only", "float8_dynamic_activation_float8_weight"])
def test_schemes_for_gpus_are_refused_elsewhere(scheme: str) -> None:
    with pytest.raises(ConfigError, match=f"{scheme} runs on GPUs only, and the target's device is cpu"):
        planned({}, scheme=scheme)
    assert planned({"dtype": "float32"}, GPU, scheme=scheme).attributes == {
        "dtype": "bfloat16",
        "quantization": "torchao",
    }
    if not torch.cuda.is_available():
        subject = get_registry().create("drupe_passes", "TorchAO")
        with pytest.raises(ConfigError, match="needs a GPU where the pass runs"):
            subject.check(TorchAOConfig(scheme=scheme), GPU)
        with pytest.raises(ConfigError, match=r"device is cuda, and PyTorch sees no GPU .*; leave device out"):
            subject.check(TorchAOConfig(device="cuda"), CPU)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"adapter": "adapter"}, "MergeAdapterWeights"),
        ({"quantization": "gptq"}, r"quantized already \(gptq\)"),
        ({"mixed_precision": {"a": 8}}, "int8_weight_only has one width for all"),
    ],
)
def test_inputs_that_it_cannot_take_are_refused(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(attributes)


def test_model_builder_is_refused_after_it_before_any_work() -> None:
    builder = get_registry().create("drupe_passes", "ModelBuilder")
    with pytest.raises(ConfigError, match="this one is torchao"):
        builder.plan(planned({}), type(builder).Config(precision="int4"), CPU)


def test_a_workflow_measures_the_result(source: Model, tmp_path: Path) -> None:
    done = drupe("run", measured_workflow(tmp_path, source.folder, ao={"type": "TorchAO"}), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "torchao" in (next((tmp_path / "out").rglob("config.json"))).read_text()
    assert "ppl" in (tmp_path / "out" / "drupe.json").read_text()


@pytest.mark.slow
@pytest.mark.real_run("TorchAO")
def test_smollm2s_blocks_keep_what_they_say(smollm2_cut_dir: Path, tmp_path: Path) -> None:
    """Eight bits change next to nothing of what real blocks answer, four by groups some, by whole rows more."""
    from drupe.plugins.huggingface.loading import load_tokenizer

    source = Model.from_dir("hf", smollm2_cut_dir, {"task": "text-generation"})
    lines = (Path(__file__).parents[3] / "examples" / "tone" / "phrases.jsonl").read_text().splitlines()
    text = load_tokenizer(source)(" ".join(json.loads(line)["phrase"] for line in lines)).input_ids
    ids = torch.from_numpy(np.array(text[: 64 * 8]).reshape(8, 64))

    def answers(model: Model) -> torch.Tensor:
        with torch.inference_mode():
            network = AutoModelForCausalLM.from_pretrained(model.folder)
            return torch.log_softmax(network(input_ids=ids).logits.float(), -1)

    wanted = answers(source)

    def divergence(**config: Any) -> float:
        made = answers(run_pass("TorchAO", source, tmp_path / "-".join(map(str, config.values())), **config))
        return float(torch.nn.functional.kl_div(made, wanted, reduction="sum", log_target=True)) / ids.numel()

    eight = divergence(scheme="int8_weight_only")
    groups, rows = (divergence(scheme="intx_weight_only", group_size=size) for size in (64, -1))
    assert 0 < eight < 0.05 * groups
    assert groups < rows
