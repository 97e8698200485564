"""Layouts of fixed size, the memory plan, the forecast, and what happens when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drupe.core.context import JobContext
from drupe.core.model import Model
from drupe.plugins.huggingface.loading import load_model
from drupe.plugins.tuning import adapters
from drupe.plugins.tuning.batches import Layout, pack, padded
from drupe.plugins.tuning.config import LoRAConfig
from drupe.plugins.tuning.costs import Costs
from drupe.plugins.tuning.fused import fuse
from drupe.plugins.tuning.graphs import GraphAccumulator
from drupe.plugins.tuning.layers import Layers
from drupe.plugins.tuning.loop import Trainer
from drupe.plugins.tuning.network import Network
from drupe.plugins.tuning.plan import choose, plans
from drupe.plugins.tuning.rows import Row, rows_of
from drupe.plugins.tuning.static import filled, size_for

from .conftest import run_pass, toy_samples
from .test_rows_and_batches import row

Make = Callable[..., JobContext]
COSTS = Costs(
    layers=8, tokens=2048, static=1000, kept=100, entry=10, spike=20, head=50, forward=0.4, layer=1.0, rest=0.5
)


def rows() -> list[Row]:
    return rows_of(toy_samples(7), None, "toy")[0]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=12))
def test_a_filled_layout_holds_the_same_rows_and_fits_its_size(lengths: list[int]) -> None:
    layout = pack([row(number, length) for number, length in enumerate(lengths)])
    budget, longest = sum(lengths) + 7, max(lengths)
    size = size_for(layout, budget, longest)
    full = filled(layout, size, 0)
    assert full.input_ids.shape == (size.batch, size.width)
    assert full.position_ids.shape == full.input_ids.shape
    assert full.rows[: len(lengths)] == layout.rows
    assert len(full.rows) == size.rows
    assert sum(length for _, length in full.rows) == size.width
    assert all(length <= size.longest for _, length in full.rows)
    assert full.predict.size == full.targets.size == size.answers
    assert (full.targets[layout.targets.size :] == -100).all()


def test_few_sizes_serve_many_steps() -> None:
    sizes = {size_for(pack([row(i, 5 + (i * step) % 30) for i in range(16)]), 600, 40) for step in range(50)}
    assert len(sizes) <= 8


@pytest.mark.parametrize("packing", [True, False])
def test_filling_up_changes_neither_loss_nor_gradients(tiny: Model, packing: bool) -> None:
    results = []
    for fill in (False, True):
        peft_model = adapters.attach(load_model(tiny), LoRAConfig(train_data_config="toy", r=4), 0)
        torch.manual_seed(1)
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        fuse(peft_model.train())
        network = Network.of(peft_model, torch.device("cpu"), rows(), packing, 0.0)
        layout = pack(rows()) if packing else padded(rows(), 0)
        if fill:
            loss = GraphAccumulator(network, 300, 12, capture=False)(layout, 0.5)
        else:
            loss = network.loss(layout) * 0.5
            loss.backward()
        results.append((float(loss.detach()), [p.grad for p in peft_model.parameters() if p.requires_grad]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_recomputing_layers_are_as_many_as_asked_for_and_spread(tiny: Model, count: int) -> None:
    layers = Layers(load_model(tiny), random=False)
    layers.layers = [None] * 8
    layers.recompute(count)
    chosen = [number for number, again in enumerate(layers._recompute) if again]
    assert len(chosen) == count
    assert all(after - before <= -(-8 // count) for before, after in pairwise(chosen))


def test_more_memory_buys_speed_and_less_memory_costs_it() -> None:
    found = plans(COSTS, 2048, 8192, grow=True, recompute=None)
    fastest, smallest = found[0], min(found, key=lambda plan: plan.memory)
    assert (fastest.budget, fastest.recompute) == (8192, 0)
    assert (smallest.budget, smallest.recompute) == (2048, 8)
    for limit in range(smallest.memory, fastest.memory + 1, 50):
        chain = choose(found, limit)
        assert chain[0].memory <= limit
        assert all(plan.seconds >= chain[0].seconds for plan in found if plan.memory <= limit)


def test_every_further_plan_of_the_chain_takes_less_memory() -> None:
    chain = choose(plans(COSTS, 2048, 8192, grow=True, recompute=None), None)
    assert len(chain) > 2
    assert all(after.memory < before.memory for before, after in pairwise(chain))


def test_a_limit_that_nothing_fits_leaves_the_smallest_plan() -> None:
    chain = choose(plans(COSTS, 2048, 8192, grow=True, recompute=None), 10)
    assert [(plan.budget, plan.recompute) for plan in chain] == [(2048, 8)]


def test_recomputing_can_be_demanded_and_forbidden() -> None:
    assert {plan.recompute for plan in plans(COSTS, 2048, 8192, grow=False, recompute=True)} == {8}
    assert {plan.recompute for plan in plans(COSTS, 2048, 8192, grow=False, recompute=False)} == {0}


def test_running_out_of_memory_takes_a_smaller_plan_and_loses_nothing(
    tiny: Model, make_context: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = {"max_steps": 6, "learning_rate": 0.01}
    calm = make_context()
    run_pass("LoRA", tiny, calm, training_args=args)
    plain, calls = Trainer.plain, [0]

    def cramped(self: Trainer, layout: Layout, scale: float) -> Any:
        result = plain(self, layout, scale)
        calls[0] += 1
        if calls[0] == 3:
            # After the backward pass: its gradients must not be counted twice.
            raise torch.OutOfMemoryError("no memory left")
        return result

    monkeypatch.setattr(Trainer, "plain", cramped)
    tight = make_context()
    run_pass("LoRA", tiny, tight, training_args=args)
    losses = [[step["loss"] for step in c.report["curves"]["steps"]] for c in (calm, tight)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert any("memory ran out" in note for note in tight.report["tuning"]["notes"])


def test_running_out_of_memory_with_nothing_left_to_try_is_an_error(
    tiny: Model, make_context: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Trainer, layout: Layout, scale: float) -> Any:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(Trainer, "plain", never)
    with pytest.raises(torch.OutOfMemoryError):
        run_pass("LoRA", tiny, make_context(), memory="smallest")


def test_the_forecast_stands_beside_what_was_measured(tiny: Model, make_context: Make) -> None:
    context = make_context()
    run_pass("LoRA", tiny, context, training_args={"max_steps": 20})
    facts = context.report["tuning"]
    assert facts["forecast"]["peak_memory"] == pytest.approx(facts["measured"]["peak_memory"], rel=0.15)
    assert facts["forecast"]["training_seconds"] > 0
    assert facts["forecast"]["plan"]["recomputing_layers"] == 0
