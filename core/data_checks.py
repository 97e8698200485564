"""Warns of data that training, calibration and evaluation share, and of results that are too good to be true.

The worker reports which contents each step used, so that this is known from the first trial on; each warning is told
once, when it is found, and stands in the manifest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from drupe.core.config import references
from drupe.core.executor import StepResult
from drupe.core.metrics import Measurement
from drupe.core.plan import StepPlan
from drupe.core.registry import Registry
from drupe.core.specs import MetricSpec
from drupe.core.statistics.overlap import find_overlaps
from drupe.core.statistics.plausibility import implausible
from drupe.core.workflow.model import Evaluator

__all__ = ["Checks", "trains"]

_ROLES = {"train": "train", "evaluation": "certification", "all": "certification"}
_WORDS = {
    "train": "training",
    "calibration": "calibration",
    "selection": "selection",
    "certification": "evaluation",
}


class Checks:
    """What is noticed about the data and the results of one target. Safe to use from several threads."""

    def __init__(self, registry: Registry, events: Callable[[Mapping[str, Any]], None]) -> None:
        self._registry = registry
        self._events = events
        self._lock = threading.Lock()
        self._keys: dict[tuple[str, str], Sequence[str]] = {}
        self._seen: set[tuple[str, str]] = set()
        self.warnings: list[str] = []

    def note(
        self,
        plans: Sequence[StepPlan],
        steps: Sequence[StepResult],
        evaluator: Evaluator | None,
        measured: Sequence[StepResult],
    ) -> None:
        """Note which contents the steps of a chain and of its measuring used. New overlaps are told at once."""
        with self._lock:
            before = len(self._keys)
            for plan, step in zip(plans, steps, strict=True):
                for data, role in _taught_with(self._registry, plan).items():
                    self._take(step, data, lambda part, role=role: role)  # type: ignore[misc]
            untimed = {m.name: m.data for m in evaluator.metrics if not self._timed(m.type)} if evaluator else {}
            for step in measured:
                # Timings on known inputs flatter nobody.
                evaluating = untimed.get(step.name)
                if evaluating is not None:
                    self._take(step, evaluating, lambda part: _ROLES.get(part, part))
            if len(self._keys) > before:
                self._look()

    def judge(
        self,
        plans: Sequence[StepPlan],
        evaluator: Evaluator | None,
        found: Mapping[str, Measurement],
        baseline: Mapping[str, Measurement],
    ) -> None:
        """Warn of measurements of a candidate that are hard to believe."""
        learns = any(trains(self._registry, plan) for plan in plans)
        timed = {m.name for m in evaluator.metrics if self._timed(m.type)} if evaluator else set()
        for name, measured in found.items():
            own = evaluator.entry_name(name) if evaluator else ""
            text = implausible(measured, baseline.get(name), trained=learns, timed=own in timed)
            if text is not None:
                self._warn(f"implausible: {text}")

    def _timed(self, metric: str) -> bool:
        return cast(MetricSpec, self._registry.get("drupe_metrics", metric).spec).timed

    def _take(self, step: StepResult, data: str, role_of: Callable[[str], str]) -> None:
        for part, used in step.report.get("data", {}).get(data, {}).get("parts", {}).items():
            keys = used.get("content_keys")
            if keys:
                self._keys.setdefault((data, role_of(part)), keys)

    def _look(self) -> None:
        roles = {f"the {_WORDS[role]} data {data}": role for data, role in self._keys}
        keys = {f"the {_WORDS[role]} data {data}": keys for (data, role), keys in self._keys.items()}
        for overlap in find_overlaps(keys, roles):
            pair = (overlap.first, overlap.second)
            if pair not in self._seen:
                self._seen.add(pair)
                self._warn(overlap.text)

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            self._events({"event": "warning", "message": text})


def trains(registry: Registry, plan: StepPlan) -> bool:
    """Whether a step learns from data, rather than calibrating on it: a data field of its config says so by its name,
    which then begins with "train"."""
    return "train" in _taught_with(registry, plan).values()


def _taught_with(registry: Registry, plan: StepPlan) -> dict[str, str]:
    """Return data config → "train" or "calibration" for what a step reads."""
    kind = registry.resolve(registry.get("drupe_passes", plan.type)).Config
    found: dict[str, str] = {}
    for name in [name for name, what in references(kind).items() if what == "data"]:
        value = plan.config.get(name)
        # What watches a training decides when it ends, so the training learns from it.
        role = "train" if name.startswith(("train", "eval")) else "calibration"
        for data in [value] if isinstance(value, str) else value or ():
            if found.get(data) != "train":
                found[data] = role
    return found
