"""SparseGPT: exactly as many zeros as were asked for, where they change a layer's outputs least."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from drupe.core.data import Sample
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model
from drupe.plugins.huggingface.loading import load_model, load_tokenizer
from drupe.plugins.quantization.checkpoint import quantized_layers
from drupe.plugins.quantization.sparsegpt import SparseGPTConfig, prune_with_hessian
from drupe.testing import PassContract, make_context, tiny_causal_lm
from tests.plugins.onnx.graphs import CPU, run_pass
from tests.plugins.quantization.decoders import decoder, logits


def text(count: int = 6, length: int = 24) -> list[Sample]:
    random = np.random.default_rng(7)
    return [
        Sample(f"s{n}", {"input_ids": random.integers(0, 250, length - n)}, content_key=f"k{n}") for n in range(count)
    ]


def pruned(model: Model, folder: Path, **config: Any) -> Model:
    context = make_context(folder, accelerator=CPU, data={"text": text()})
    return run_pass("SparseGPT", model, folder, context=context, **{"data_config": "text", **config})


def shares(model: Model) -> dict[str, float]:
    """The share of zeros of each matrix."""
    return {
        name: float((tensor == 0).double().mean())
        for name, tensor in load_model(model).state_dict().items()
        if tensor.ndim == 2 and ".layers." in name
    }


class TestSparseGPT(PassContract):
    name = "SparseGPT"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_causal_lm(tmp_path / "model")

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"data_config": "text", "sparsity": [2, 4]}

    @pytest.fixture
    def data(self) -> dict[str, Any]:
        return {"text": text()}


OPT = {"ffn_dim": 96, "word_embed_proj_dim": 64, "max_position_embeddings": 64}


# The solver


def inputs_and_weights(rows: int = 48, columns: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(512, columns // 2, generator=generator) @ torch.randn(
        columns // 2, columns, generator=generator
    )
    inputs += torch.randn(512, columns, generator=generator)
    return inputs, torch.randn(rows, columns, generator=generator)


def by_magnitude(weights: torch.Tensor, sparsity: float | tuple[int, int]) -> torch.Tensor:
    zeros, many = sparsity if isinstance(sparsity, tuple) else (round(sparsity * weights.numel()), weights.numel())
    groups = weights.reshape(-1, many)
    return groups.scatter(1, groups.abs().topk(zeros, largest=False).indices, 0.0).reshape(weights.shape)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, (2, 4), (5, 8)])
def test_outputs_change_less_than_by_magnitude(sparsity: float | tuple[int, int]) -> None:
    inputs, weights = inputs_and_weights()
    found = prune_with_hessian("SparseGPT", "x", weights, inputs.T @ inputs, sparsity, blocksize=32, damp=0.01)
    plain = by_magnitude(weights, sparsity)
    assert int((found == 0).sum()) == int((plain == 0).sum())
    loss = {name: float((inputs @ (w - weights).T).square().mean()) for name, w in (("s", found), ("m", plain))}
    assert loss["s"] < 0.6 * loss["m"], loss


@pytest.mark.parametrize("sparsity", [0.1, 0.37, 0.5])
@pytest.mark.parametrize("blocksize", [7, 64, 500])
def test_the_share_holds_exactly_however_columns_are_divided(sparsity: float, blocksize: int) -> None:
    inputs, weights = inputs_and_weights(rows=9, columns=66)
    found = prune_with_hessian("SparseGPT", "x", weights, inputs.T @ inputs, sparsity, blocksize=blocksize, damp=0.01)
    assert int((found == 0).sum()) == round(sparsity * weights.numel())


def test_inputs_that_never_see_anything_are_the_first_to_go() -> None:
    inputs, weights = inputs_and_weights(columns=32)
    inputs[:, 5] = 0
    found = prune_with_hessian("SparseGPT", "x", weights, inputs.T @ inputs, 0.25, blocksize=32, damp=0.01)
    assert bool((found[:, 5] == 0).all()) and bool(torch.isfinite(found).all())
    assert int((found == 0).sum()) == weights.numel() // 4


# The pass


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Qwen3", {"head_dim": 32}),
        ("Phi3", {}),
        ("GPTNeoX", {}),
        ("OPT", OPT),
        ("Bloom", {"n_layer": 2, "n_head": 4}),
    ],
)
def test_every_layer_of_the_blocks_has_the_share_and_nothing_else_changes(
    tmp_path: Path, kind: str, config: dict[str, Any]
) -> None:
    source = decoder(tmp_path / "m", kind, **config)
    made = pruned(source, tmp_path / "job", sparsity=0.375)
    network = load_model(made)
    linear = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not network.get_output_embeddings()
    }
    assert len(linear) >= 8
    before = load_model(source).state_dict()
    for name, tensor in network.state_dict().items():
        if name in linear:
            assert int((tensor == 0).sum()) == round(0.375 * tensor.numel()), name
        else:
            torch.testing.assert_close(tensor, before[name])
    assert np.isfinite(logits(made)).all()


def test_layers_that_store_their_weights_the_other_way_round_are_pruned_by_their_inputs(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    byte_level = tiny_causal_lm(tmp_path / "m")
    config = GPT2Config(
        vocab_size=264, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=256, eos_token_id=257
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "m")
    source = Model.from_dir("hf", tmp_path / "m", {**byte_level.attributes, "architecture": "GPT2LMHeadModel"})
    made = pruned(source, tmp_path / "job", sparsity=[1, 4])
    weights = load_model(made).transformer.h[1].mlp.c_proj.weight
    assert weights.shape == (256, 64)
    assert bool(((weights.T.reshape(64, 64, 4) == 0).sum(-1) == 1).all())


def test_a_pattern_holds_in_every_row_also_after_rounding(tmp_path: Path) -> None:
    made = pruned(tiny_causal_lm(tmp_path / "m"), tmp_path / "job", sparsity=[2, 4])
    assert made.attributes["sparsity"] == [2, 4]
    weights = load_model(made).model.layers[1].mlp.down_proj.weight
    assert bool(((weights.reshape(64, 32, 4) == 0).sum(-1) == 2).all())
    for name, more in (("Rtn", {}), ("KQuant", {}), ("AutoAWQQuantizer", {"nsamples": 2, "seqlen": 16})):
        rounded = run_pass(name, made, tmp_path / name, group_size=32, **more)
        kept = quantized_layers(rounded.folder)["model.layers.1.mlp.down_proj"].weights()
        assert bool((kept[weights == 0] == 0).all())


def test_blocks_and_layers_can_be_left_out(tmp_path: Path) -> None:
    source = tiny_causal_lm(tmp_path / "m", num_hidden_layers=3)
    some = shares(pruned(source, tmp_path / "a", min_layer=1, max_layer=2, layer_name_filter=["mlp", "o_proj"]))
    touched = {name for name, share in some.items() if share}
    assert touched == {
        f"model.layers.1.{name}.weight"
        for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.o_proj")
    }
    one = shares(pruned(source, tmp_path / "b", layer_name_filter="q_proj"))
    assert {name for name, share in one.items() if share} == {
        f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1, 2)
    }


def test_the_stored_type_stays_and_the_report_tells_what_was_done(tmp_path: Path) -> None:
    source = tiny_causal_lm(tmp_path / "m")
    load_model(source).to(torch.bfloat16).save_pretrained(tmp_path / "m")
    source = Model.from_dir("hf", tmp_path / "m", source.attributes)
    context = make_context(tmp_path / "job", accelerator=CPU)
    made = run_pass(
        "SparseGPT", source, tmp_path / "job", context=context, nsamples=4, seqlen=16, compute_device="auto"
    )
    assert load_model(made).dtype == torch.bfloat16
    assert context.report["calibration"]["from"] == "the model's own text"
    found = context.report["pruned"]
    assert found["layers"] == 14 and found["zeros"] * 2 == found["weights"]


# What is refused


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 1.0}, "less than 1"),
        ({"sparsity": [4, 4]}, "leaves nothing"),
        ({"sparsity": [2, 4, 8]}, "at most 2 items"),
        ({"sparsity": [2, 3]}, "blocksize 128 is no multiple of 3"),
        ({"min_layer": 2, "max_layer": 2}, "no block is from min_layer 2 on and below max_layer 2"),
        ({"percdamp": 0}, "greater than 0"),
        ({"sparsety": 0.5}, "not permitted"),
    ],
)
def test_values_that_mean_nothing_are_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SparseGPTConfig.model_validate(values)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_layer": 3}, "max_layer 3 is beyond the model's 2 blocks, 0 to 1"),
        ({"min_layer": 2}, "min_layer 2 is beyond"),
        ({"layer_name_filter": ["mlp", "fc1"]}, r"no layer's name contains 'fc1'; there are model\.layers\.0"),
        (
            {"sparsity": [3, 24], "blocksize": 48},
            r"the 64 columns of model\.layers\.0\.self_attn\.q_proj are no multiple",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_told_before_calibration(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    context = make_context(tmp_path / "job", accelerator=CPU)
    with pytest.raises(ConfigError, match=message):
        run_pass("SparseGPT", tiny_causal_lm(tmp_path / "m"), tmp_path / "job", context=context, **config)
    assert "calibration" not in context.report


def test_a_layer_that_no_text_reaches_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(LlamaMLP, "forward", lambda self, states: self.down_proj(self.up_proj(states)))
    with pytest.raises(PassError, match=r"nothing of the calibration text reaches model\.layers\.0\.mlp\.gate_proj"):
        pruned(tiny_causal_lm(tmp_path / "m"), tmp_path / "job")


def test_experts_that_are_no_layers_of_their_own_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp\.experts.* holds the weights of several layers"):
        pruned(decoder(tmp_path / "m", "Mixtral", num_local_experts=2), tmp_path / "job")


@pytest.mark.slow
@pytest.mark.real_run("SparseGPT")
def test_smollm2s_blocks_without_three_tenths_of_their_weights_say_more_than_without_the_smallest(
    smollm2_cut_dir: Path, tmp_path: Path
) -> None:
    import pydoc

    from transformers import AutoModelForCausalLM

    source = Model.from_dir("hf", smollm2_cut_dir, {"task": "text-generation"})
    page = load_tokenizer(source)(pydoc.render_doc("argparse", renderer=pydoc.plaintext))["input_ids"]
    rows, unseen = np.asarray(page[: 4 * 128]).reshape(4, 128), torch.tensor([page[2048:2304]])
    data = {"pages": [Sample(f"p{n}", {"input_ids": row}, content_key=f"k{n}") for n, row in enumerate(rows)]}
    context = make_context(tmp_path / "job", accelerator=CPU, data=data)
    made = run_pass("SparseGPT", source, tmp_path / "job", context=context, data_config="pages", sparsity=0.3)
    whole, solved, smallest = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in (source.folder, made.folder, source.folder)
    )
    inside = [tensor for name, tensor in solved.state_dict().items() if "_proj" in name]
    assert len(inside) == 28 and all(int((t == 0).sum()) == round(0.3 * t.numel()) for t in inside)
    with torch.inference_mode():
        for name, tensor in smallest.named_parameters():
            if "_proj" in name:
                bound = tensor.abs().flatten().kthvalue(round(0.3 * tensor.numel())).values
                tensor[tensor.abs() <= bound] = 0
        wanted = torch.log_softmax(whole(input_ids=unseen).logits, -1)
        lost = [
            float(torch.nn.functional.kl_div(
                torch.log_softmax(network(input_ids=unseen).logits, -1), wanted, reduction="sum", log_target=True
            ))
            for network in (solved, smallest)
        ]  # fmt: skip
    assert lost[0] < 0.55 * lost[1], lost
