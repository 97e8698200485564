"""Counts of sample evaluations."""

from __future__ import annotations

from drupe.core.metrics import Measurement
from drupe.core.results import Candidate
from drupe.core.sample_evaluations import sample_evaluations
from drupe.core.workflow.model import Evaluator, MetricEntry


def candidate(number: int, state: str, name: str, seen: int, total: int | None) -> Candidate:
    rows = {str(index): (1.0,) for index in range(seen)}
    measured = Measurement(name, 1.0, "", "higher", rows=rows, n=seen, of=total)
    return Candidate(number, {}, state, model=f"model {number}", measurements={name: measured})


def test_names_with_hyphens_on_either_side_are_counted() -> None:
    evaluator = Evaluator("e", (MetricEntry("short-answers", "accuracy", ("arc-easy-acc",)),))
    name = "short-answers-arc-easy-acc"
    candidates = [candidate(0, "complete", name, 100, None), candidate(1, "pruned", name, 16, 100)]
    counts = sample_evaluations(candidates, ["short-answers"], evaluator.entry_name)
    assert counts == {"measured": 116, "in_full": 200, "cut_short": 1, "metrics": ["short-answers"]}
