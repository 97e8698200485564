"""Whether the splits of a workflow leave anything to measure on: known before any work, whatever the data hold."""

from __future__ import annotations

from collections.abc import Mapping

from drupe.core.splits import check_split, empty_parts
from drupe.core.workflow.findings import join, shown
from drupe.core.workflow.model import DataEntry, Evaluator
from drupe.core.workflow.reading import Reading

__all__ = ["check_parts"]


def check_parts(
    data: Mapping[str, DataEntry], evaluator: Evaluator | None, reading: Reading, *, searching: bool
) -> None:
    """Find the data configs of the evaluator's metrics that have an empty part where one is needed.

    A search whose goals have a confidence selects on one part and certifies on another; all else is measured on both.
    """
    if evaluator is None:
        return
    certifies = searching and any(goal.confidence is not None for goal in evaluator.goals)
    for name in dict.fromkeys(metric.data for metric in evaluator.metrics if metric.data in data):
        split = data[str(name)].split
        if not split or check_split(split):
            continue
        lacking = [part for part in ("selection", "certification") if part in empty_parts(split)]
        if lacking and (certifies or len(lacking) == 2):
            why = "a goal has a confidence, so that one part selects and another certifies" if certifies else ""
            reading.findings.fault(
                join(join("data_configs", str(name)), "split"),
                f"{shown(dict(split))} leaves nothing for {' and '.join(lacking)}",
                'parts to measure on, such as {"selection": 0.5, "certification": "rest"}',
                why,
            )
