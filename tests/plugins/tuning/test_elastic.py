"""Elastic adapters: what each row trains, and what is cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from drupe.core.accelerators import Accelerator
from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.plugins.huggingface.loading import load_model
from drupe.plugins.tuning import adapters
from drupe.plugins.tuning.batches import pack, padded
from drupe.plugins.tuning.config import ElasticLoRAConfig
from drupe.plugins.tuning.elastic import Ranks
from drupe.plugins.tuning.fused import fuse
from drupe.plugins.tuning.network import Network
from drupe.plugins.tuning.rows import rows_of

from .conftest import make_pass, run_pass, toy_samples

Make = Callable[..., JobContext]
RANKS = [2, 4, 8]


def network(tiny: Model) -> Network:
    peft_model = adapters.attach(load_model(tiny), ElasticLoRAConfig(train_data_config="toy", r=8, ranks=RANKS), 0)
    torch.manual_seed(1)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    ranks = Ranks(RANKS, 0, torch.float32)
    fuse(peft_model.train(), ranks=ranks)
    return Network.of(peft_model, torch.device("cpu"), rows_of(toy_samples(6), None, "toy")[0], "auto", 0.0, ranks)


def with_rank(peft_model: Any, rank: int) -> None:
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_A" in name:
                parameter[rank:] = 0


@pytest.mark.parametrize("packing", [True, False])
def test_a_row_sees_and_trains_the_ranks_that_it_was_given(tiny: Model, packing: bool) -> None:
    net = network(tiny)
    rows = [replace(row, rank=RANKS[i % 3]) for i, row in enumerate(rows_of(toy_samples(6), None, "toy")[0])]
    net.packed = packing
    loss = net.loss(pack(rows) if packing else padded(rows, 0))
    loss.backward()
    expected = 0.0
    gradients: dict[str, Any] = {}
    for rank in RANKS:
        alone = network(tiny)
        with_rank(alone.model, rank)
        part = alone.loss(pack([replace(row, rank=0) for row in rows if row.rank == rank]))
        part.backward()
        expected += float(part.detach())
        for name, parameter in alone.model.named_parameters():
            if parameter.requires_grad:
                slope = parameter.grad.clone()
                if "lora_A" in name:
                    slope[rank:] = 0
                gradients[name] = gradients.get(name, 0) + slope
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    for name, parameter in net.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5)


def test_every_rank_is_drawn_about_equally_often_and_a_step_always_draws_the_same() -> None:
    ranks = Ranks(RANKS, 3, torch.float32)
    rows = rows_of(toy_samples(12), None, "toy")[0]
    drawn = [row.rank for row in ranks.assign(rows, 5)]
    assert sorted(drawn) == [2] * 4 + [4] * 4 + [8] * 4
    assert [row.rank for row in ranks.assign(rows, 5)] == drawn
    assert [row.rank for row in ranks.assign(rows, 6)] != drawn


def test_cutting_keeps_the_first_ranks_and_their_scale(tiny: Model, make_context: Make) -> None:
    args = {"max_steps": 6, "learning_rate": 0.02}
    whole = run_pass("ElasticLoRA", tiny, make_context(), r=8, alpha=16, ranks=RANKS, training_args=args)
    assert whole.attributes["elastic_ranks"] == RANKS
    cut = run_pass("SelectRank", whole, make_context(), rank=4)
    assert "elastic_ranks" not in cut.attributes
    settings = json.loads((cut.folder / "adapter/adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)
    before = load_file(whole.folder / "adapter/adapter_model.safetensors")
    after = load_file(cut.folder / "adapter/adapter_model.safetensors")
    for name, tensor in after.items():
        kept = before[name][:4] if "lora_A" in name else before[name][:, :4]
        assert torch.equal(tensor, kept)
    merged = run_pass("MergeAdapterWeights", cut, make_context())
    ids = torch.tensor([list(b"aaa=")])
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(merged)(input_ids=ids).logits, load_model(cut)(input_ids=ids).logits, rtol=1e-4, atol=1e-4
        )


def test_only_ranks_that_were_trained_can_be_chosen() -> None:
    plan = make_pass("SelectRank").plan
    config = make_pass("SelectRank").Config(rank=16)
    with pytest.raises(ConfigError, match="no elastic adapter; put ElasticLoRA before it"):
        plan(ModelInfo("hf", {"adapter": "adapter"}), config, Accelerator())
    with pytest.raises(ConfigError, match="rank 16 was not trained; trained are 2, 4, 8"):
        plan(ModelInfo("hf", {"adapter": "adapter", "elastic_ranks": RANKS}), config, Accelerator())
