"""The loss that is trained on is the model's own, however it is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.plugins.huggingface.loading import load_model
from drupe.plugins.tuning import adapters
from drupe.plugins.tuning.batches import pack, padded
from drupe.plugins.tuning.config import LoRAConfig
from drupe.plugins.tuning.fused import fuse
from drupe.plugins.tuning.head import head_loss
from drupe.plugins.tuning.network import Network
from drupe.plugins.tuning.rows import Row, rows_of

from .conftest import toy_samples

CPU = torch.device("cpu")


def adapted(model: Any, **config: Any) -> Any:
    peft_model = adapters.attach(model, LoRAConfig(train_data_config="toy", r=4, **config), 0)
    torch.manual_seed(1)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return peft_model.train()


def rows() -> list[Row]:
    return rows_of(toy_samples(7), None, "toy")[0]


def plain_loss_and_gradients(peft_model: Any) -> tuple[float, dict[str, Any]]:
    """The slow and certain way: one row at a time through the model's own forward with labels."""
    total = 0.0
    for row in rows():
        logits = peft_model(input_ids=torch.from_numpy(row.ids)[None]).logits[0]
        loss = torch.nn.functional.cross_entropy(
            logits[torch.from_numpy(row.positions)], torch.from_numpy(row.targets), reduction="sum"
        )
        loss.backward()
        total += float(loss.detach())
    return total, gradients(peft_model)


def gradients(peft_model: Any) -> dict[str, Any]:
    return {n: p.grad.clone() for n, p in peft_model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_loss_and_gradients_are_those_of_row_by_row_training(tiny: Model, packing: bool, fused: bool) -> None:
    total, expected = plain_loss_and_gradients(adapted(load_model(tiny)))
    peft_model = adapted(load_model(tiny))
    if fused:
        assert fuse(peft_model) == 14
    network = Network.of(peft_model, CPU, rows(), packing, 0.0)
    assert network.split_head
    assert network.packed is packing
    loss = network.loss(pack(rows()) if packing else padded(rows(), network.pad_id))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    for name, gradient in gradients(peft_model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_what_one_row_says_does_not_reach_another(tiny: Model) -> None:
    network = Network.of(adapted(load_model(tiny)), CPU, rows(), True, 0.0)
    first, second = rows()[:2]
    alone = total_of(network, second)
    assert total_of(network, first, second) == pytest.approx(total_of(network, first) + alone, rel=1e-5)


def total_of(network: Network, *some: Row) -> float:
    return float(network.loss(pack(some)).detach())


def test_smoothing_is_torchs() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(37, 16, requires_grad=True)
    weight, bias, goal = torch.randn(50, 16), torch.randn(50), torch.randint(0, 50, (37,))
    ours = head_loss(hidden, weight, bias, goal, 0.1)
    (slope,) = torch.autograd.grad(ours, hidden)
    theirs = torch.nn.functional.cross_entropy(hidden @ weight.T + bias, goal, reduction="sum", label_smoothing=0.1)
    (expected,) = torch.autograd.grad(theirs, hidden)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-5)


def test_the_head_is_cut_into_chunks_without_changing_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, weight, goal = torch.randn(37, 16, requires_grad=True), torch.randn(50, 16), torch.randint(0, 50, (37,))
    whole = head_loss(hidden, weight, None, goal)
    monkeypatch.setattr("drupe.plugins.tuning.head.chunk_rows", lambda vocabulary, device: 5)
    torch.testing.assert_close(head_loss(hidden, weight, None, goal), whole)


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    quiet = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=264, n_embd=32, n_layer=2, n_head=2, n_positions=64, **quiet))


def gemma2() -> Any:
    """A model whose attention scores and logits are capped softly: neither fast way fits it."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=0.05,
        attn_implementation="eager",
    )
    return Gemma2ForCausalLM(config)


def test_a_model_that_neither_fast_way_fits_is_trained_its_own_way_and_says_so() -> None:
    total, expected = plain_loss_and_gradients(adapted(gemma2()))
    peft_model = adapted(gemma2())
    network = Network.of(peft_model, CPU, rows(), "auto", 0.0)
    assert not network.packed
    assert not network.split_head
    assert len(network.notes) == 2
    loss = network.loss(padded(rows(), network.pad_id))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(total, rel=1e-4)
    for name, gradient in gradients(peft_model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4)


def test_packing_that_was_demanded_and_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Gemma2ForCausalLM can't be trained on packed rows"):
        Network.of(adapted(gemma2()), CPU, rows(), True, 0.0)


def test_another_architecture_is_packed_too() -> None:
    total, _ = plain_loss_and_gradients(adapted(gpt2()))
    network = Network.of(adapted(gpt2()), CPU, rows(), "auto", 0.0)
    assert network.packed
    assert float(network.loss(pack(rows())).detach()) == pytest.approx(total, rel=1e-5)
