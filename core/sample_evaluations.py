"""Counts the samples that candidates were measured on, beside what measuring all of them in full would have taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from drupe.core.results import Candidate

__all__ = ["sample_evaluations"]


def sample_evaluations(
    candidates: Sequence[Candidate], metrics: Sequence[str], entry_name: Callable[[str], str]
) -> dict[str, Any]:
    """Return how many sample evaluations the candidates took, and how many they would have taken in full.

    metrics: the names of the evaluator's entries that were measured on growing parts; entry_name: see Evaluator.
    Candidates that are the same model count once, and one whose metric failed does not count for it.
    """
    measured = in_full = cut = 0
    seen: set[str] = set()
    counts: list[tuple[Candidate, dict[str, int]]] = []
    totals: dict[str, int] = {}
    for c in candidates:
        if c.state == "failed" or c.model is None or c.model in seen:
            continue
        seen.add(c.model)
        found: dict[str, int] = {}
        for name, m in c.measurements.items():
            entry = entry_name(name)
            if entry in metrics:
                found[entry] = m.n
                totals[entry] = max(totals.get(entry, 0), m.of or m.n)
        counts.append((c, found))
    for c, found in counts:
        cut += c.state == "pruned"
        for entry, total in totals.items():
            if entry in found or c.state == "pruned":
                measured += found.get(entry, 0)
                in_full += total
    return {"measured": measured, "in_full": in_full, "cut_short": cut, "metrics": list(totals)}
