"""The end of a study: pick the best trial, judge it on data that nothing was selected on, hand the model over.

A model that breaks a limit is never handed out: an earlier run's winner is withdrawn, a candidate that could not be
certified goes to `undecided/`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from drupe.core.measuring import full_name
from drupe.core.model import Model
from drupe.core.registry import Registry
from drupe.core.results import Candidate, TargetResult
from drupe.core.specs import MetricSpec
from drupe.core.statistics.verdicts import Verdict, judge
from drupe.core.store import Store
from drupe.core.study import Goal, Study
from drupe.core.trials import TrialRunner
from drupe.core.workflow.model import Evaluator, MetricEntry, Workflow

__all__ = ["Decider", "nearest"]


class Decider:
    """Decides for the targets of one workflow."""

    def __init__(
        self, store: Store, workflow: Workflow, registry: Registry, events: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._store = store
        self._workflow = workflow
        self._registry = registry
        self._events = events

    def decide(self, study: Study, runner: TrialRunner, result: TargetResult, *, certify: bool) -> None:
        """Fill in status, winner, verdicts and message of `result`, and hand the model over where there is a winner.

        certify: the search used the selection split, so the verdict is taken on the certification split.
        """
        if all(c.state == "failed" for c in result.candidates):
            result.status = "failed"
            first = next((c.error for c in result.candidates if c.error), "no trial was run")
            result.message = f"every trial failed; first: {first}"
            self._withdraw(result)
            return
        number = study.select()
        if number is None:
            result.status = "infeasible"
            result.message = nearest(result.candidates, runner.goals)
            self._withdraw(result)
            return
        trial = next(trial for trial, _ in study.finished() if trial.number == number)
        chain = runner.run_chain(trial.point)
        part = "certification" if certify else runner.part
        if certify:
            self._events({"event": "certifying", "number": number, "target": runner.target, "part": part})
        found, compared, errors, _ = runner.measure(chain, part)
        for name, error in errors.items():
            self._events({"event": "warning", "message": f"metric {name} of candidate {number}: {error}"})
        result.certified = found
        result.baseline = compared or result.baseline
        verdicts = [self._judge(goal, runner.evaluator, found, compared) for goal in runner.goals]
        result.verdicts = [verdict.to_json() for verdict in verdicts]
        by_status = {verdict.status: verdict for verdict in reversed(verdicts)}
        broken = by_status.get("FAIL") or by_status.get("NOT_MET")
        if broken is not None:
            result.status = "infeasible"
            result.message = f"candidate {number} did not hold where it was certified: {broken.text}"
            self._withdraw(result)
        elif "UNDECIDED" in by_status:
            result.status = "undecided"
            result.message = f"candidate {number} could not be certified: {by_status['UNDECIDED'].text}"
            self._withdraw(result)
            self._hand_over(chain.model, result, "undecided")
        else:
            result.status = "certified" if "PASS" in by_status else "met"
            result.winner = number
            result.message = _how_met(verdicts)
            self._hand_over(chain.model, result, "model")
            result.candidates = _why_lost(result.candidates, number)

    def _judge(
        self, goal: Goal, evaluator: Evaluator | None, found: Mapping[str, Any], compared: Mapping[str, Any]
    ) -> Verdict:
        entry, sub_type = _metric_of(goal, evaluator)
        registered = self._registry.get("drupe_metrics", entry.type)
        metric = self._registry.resolve(registered)(registered.spec)
        config = metric.Config.model_validate(dict(entry.config))
        spec = cast(MetricSpec, registered.spec)
        return judge(
            goal,
            found.get(goal.metric),
            compared.get(goal.metric),
            aggregate=lambda rows: metric.aggregate(rows, sub_type, config),
            # What a metric reads off the files is a fact, not an estimate.
            exact=spec.needs is None and not spec.timed,
            seed=self._workflow.seed,
        )

    def _hand_over(self, model: Model, result: TargetResult, name: str) -> None:
        if self._workflow.options.get("no_artifacts"):
            return
        folder = self._workflow.output_dir / result.target / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._store.export(model, folder)
        result.artifact = model.to_json()
        if name == "model":
            result.model_dir = folder.relative_to(self._workflow.output_dir).as_posix()
            shutil.rmtree(folder.parent / "undecided", ignore_errors=True)

    def _withdraw(self, result: TargetResult) -> None:
        for name in ("model", "undecided"):
            shutil.rmtree(self._workflow.output_dir / result.target / name, ignore_errors=True)


def _metric_of(goal: Goal, evaluator: Evaluator | None) -> tuple[MetricEntry, str]:
    assert evaluator is not None
    for entry in evaluator.metrics:
        for sub_type in entry.sub_types:
            if full_name(entry, sub_type) == goal.metric:
                return entry, sub_type
    raise KeyError(goal.metric)


def _how_met(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "no goals were set"
    if any(verdict.status == "PASS" for verdict in verdicts):
        return "every goal with a confidence holds"
    return "every goal is met by the point estimates, not certified"


def nearest(candidates: Sequence[Candidate], goals: Sequence[Goal]) -> str:
    """Say which candidate came nearest to the goals, and which goal blocked it."""
    complete = [c for c in candidates if c.state == "complete"]
    if not complete:
        return "no trial was completed"
    best = min(complete, key=lambda c: sum(max(v, 0.0) for v in c.violations.values()))
    if not best.violations:
        return "no trial could be selected"
    name, slack = max(best.violations.items(), key=lambda item: item[1])
    metric, _, kind = name.partition(" ")
    goal = next(g for g in goals if g.metric == metric and g.kind == kind)
    measured = best.measurements.get(metric)
    if measured is None:
        reason = best.metric_errors.get(metric.rpartition("-")[0], "it was not measured")
        return f"nearest: candidate {best.number}, whose {metric} is missing: {reason}"
    return (
        f"nearest: candidate {best.number} with {metric} = {measured.value:.6g} {measured.unit}".rstrip()
        + f"; the goal {kind} {goal.value:g} blocks it ({slack:.1%} off the limit)"
    )


def _why_lost(candidates: Sequence[Candidate], winner: int) -> list[Candidate]:
    noted = []
    for c in candidates:
        if c.number == winner:
            reason = None
        elif c.state == "failed":
            reason = f"failed: {c.error}"
        elif not c.feasible:
            reason = "breaks " + ", ".join(name for name, slack in c.violations.items() if slack > 0)
        else:
            reason = f"meets the goals; candidate {winner} is better on the objectives"
        noted.append(replace(c, lost_because=reason))
    return noted
