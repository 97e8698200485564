"""Which part of the data selects candidates, and which part certifies the winner."""

from __future__ import annotations

from dataclasses import replace

from drupe.core.plan import Plan
from drupe.core.workflow.model import Evaluator, Workflow

__all__ = ["SELECTION", "part_that_selects", "with_certification_split"]

SELECTION = "selection"
_EVERYTHING_HELD_OUT = "evaluation"


def with_certification_split(workflow: Workflow) -> Workflow:
    """Give data that only evaluates, and has no split of its own, halves to select and to certify on."""
    evaluator = workflow.evaluators.get(workflow.evaluator or "")
    if workflow.search is None or not _wants_confidence(evaluator):
        return workflow
    assert evaluator is not None
    evaluating = {metric.data for metric in evaluator.metrics if metric.data}
    trained = {
        value
        for entry in workflow.passes.values()
        for alternative in entry.alternatives
        for value in alternative.config.values()
        if isinstance(value, str) and value in workflow.data
    }
    half = {"selection": 0.5, "certification": 0.5, "seed": workflow.seed}
    data = {
        name: replace(entry, split=half) if name in evaluating - trained and not entry.split else entry
        for name, entry in workflow.data.items()
    }
    return replace(workflow, data=data)


def part_that_selects(plan: Plan) -> str:
    """Return the split that candidates are chosen on: everything held out, unless some of it must certify."""
    workflow = plan.workflow
    searching = bool(plan.space.dimensions) and workflow.search is not None
    certify = searching and _wants_confidence(workflow.evaluators.get(workflow.evaluator or ""))
    return SELECTION if certify else _EVERYTHING_HELD_OUT


def _wants_confidence(evaluator: Evaluator | None) -> bool:
    return evaluator is not None and any(goal.confidence is not None for goal in evaluator.goals)
