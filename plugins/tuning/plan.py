"""The memory plan: how many tokens go through the model at once, and how many layers recompute their activations.

Neither changes the result. The fastest plan whose forecast fits is taken; where memory runs out all the same, the next
smaller one goes on from where the step began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drupe.plugins.tuning.costs import Costs

__all__ = ["Plan", "choose", "plans"]


@dataclass(frozen=True)
class Plan:
    """budget: tokens of a pass. recompute: layers that recompute. memory: bytes; seconds: of a step; both forecast."""

    budget: int
    recompute: int
    memory: int
    seconds: float

    def to_json(self) -> dict[str, float]:
        """Return JSON data."""
        return {
            "tokens_per_pass": self.budget,
            "recomputing_layers": self.recompute,
            "peak_memory": self.memory,
            "seconds_per_step": round(self.seconds, 4),
        }


def plans(costs: Costs, micro_batch: int, step_tokens: int, *, grow: bool, recompute: bool | None) -> list[Plan]:
    """Return the plans there are, fastest first.

    micro_batch: tokens of the micro-batch that was asked for. step_tokens: of a whole step. grow: passes larger than
    the micro-batch may be taken (they fill a GPU better). recompute: all layers, none, or as it fits (None).
    """
    budgets = [micro_batch]
    while grow and budgets[-1] * 2 <= step_tokens:
        budgets.append(budgets[-1] * 2)
    if grow and budgets[-1] < step_tokens <= 2 * budgets[-1]:
        budgets.append(step_tokens)
    total = costs.layers
    counts = (
        [total if recompute else 0]
        if recompute is not None
        else sorted({0, total // 8, total // 4, 3 * total // 8, total // 2, 3 * total // 4, total})
    )
    found = []
    for budget in budgets:
        for count in counts:
            passes = -(-step_tokens // budget)
            # Larger products fill the chip more evenly: some tenths of a small pass are lost to its last wave.
            loss = 1 + 0.12 * min(1.0, 2048 / budget) if grow else 1.0
            seconds = passes * costs.seconds(min(budget, step_tokens), count) * loss
            found.append(Plan(budget, count, costs.memory(budget, count), seconds))
    return sorted(found, key=lambda plan: (plan.seconds, plan.memory))


def choose(found: Sequence[Plan], limit: int | None) -> list[Plan]:
    """Return the plans to try in turn: the fastest that fits `limit` bytes, then ever smaller ones.

    Where none fits, the smallest comes alone: a forecast may be wrong, and the device has the last word.
    """
    fitting = [plan for plan in found if limit is None or plan.memory <= limit]
    smallest = min(found, key=lambda plan: plan.memory)
    chain = [fitting[0]] if fitting else [smallest]
    # A plan that takes hardly less would fail where the one before it failed.
    least = 0.05 * (max(plan.memory for plan in found) - smallest.memory)
    for plan in found:
        if plan.memory < chain[-1].memory - least and plan.seconds >= chain[-1].seconds:
            chain.append(plan)
    return chain
