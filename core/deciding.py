"""The end of a study: pick the best trial, judge it on data that nothing was selected on, hand the model over.

A model that breaks a limit is never handed out: an earlier run's winner is withdrawn, a candidate that could not be
certified goes to `undecided/`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from drupe.core.engine import ChainResult
from drupe.core.executor import StepResult
from drupe.core.measuring import full_name
from drupe.core.metrics import Measurement
from drupe.core.model import Model
from drupe.core.registry import Registry
from drupe.core.results import Candidate, TargetResult
from drupe.core.specs import MetricSpec
from drupe.core.statistics.verdicts import Verdict, judge
from drupe.core.store import Store
from drupe.core.study import Goal, Study, Trial
from drupe.core.trials import TrialRunner
from drupe.core.workflow.model import Evaluator, MetricEntry, Workflow

__all__ = ["Decider", "nearest"]


@dataclass
class _Judged:
    """A finalist, measured on the data that certifies. verdicts: share of alpha → a verdict per goal."""

    number: int
    model: Model
    found: Mapping[str, Measurement]
    compared: Mapping[str, Measurement]
    verdicts: Callable[[float], list[Verdict]]
    share: float = 1.0

    def holds(self, share: float) -> bool:
        """Whether every goal holds when each may spend that share of its alpha."""
        return all(verdict.status in ("PASS", "MET") for verdict in self.verdicts(share))


def _holm_winner(judged: Sequence[_Judged], finalists: int) -> _Judged | None:
    """Return the first finalist that holds at Holm's first share, 1/finalists; all get it noted."""
    for one in judged:
        one.share = 1 / finalists
    return next((one for one in judged if one.holds(one.share)), None)


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
        explain = getattr(study, "explain", None)
        if explain is not None:
            result.explanation = explain()
        if all(c.state == "failed" for c in result.candidates):
            result.status = "failed"
            first = next((c.error for c in result.candidates if c.error), "no error was told")
            result.message = f"every trial failed; first: {first}" if result.candidates else self._none_ran()
            self._withdraw(result)
            return
        number = study.select()
        if number is None:
            result.status = "infeasible"
            result.message = nearest(result.candidates, runner.goals)
            self._withdraw(result)
            return
        finalists = self._workflow.search.finalists if certify and self._workflow.search else 1
        judged: list[_Judged] = []
        while number is not None and len(judged) < finalists:
            judged.append(self._judge_finalist(study, runner, result, number, certify=certify))
            # The shares are known once all finalists are; a step that holds at the smallest one needs no more.
            winner = _holm_winner(judged, finalists)
            if winner is not None:
                break
            number = study.select(exclude=[one.number for one in judged])
        else:
            winner = _holm_winner(judged, len(judged))
        chosen = winner or judged[0]
        self._conclude(chosen, runner, result)
        if result.winner is not None:
            passed_over = {one.number for one in judged if one is not chosen}
            result.candidates = _why_lost(result.candidates, chosen.number, passed_over)

    def _none_ran(self) -> str:
        limit = self._workflow.search.max_time if self._workflow.search else None
        spent = f": the {limit:g} s of max_time were over before the first one began" if limit else ""
        return f"no trial was run{spent}"

    def _judge_finalist(
        self, study: Study, runner: TrialRunner, result: TargetResult, number: int, *, certify: bool
    ) -> _Judged:
        trial = next(trial for trial, _ in study.finished() if trial.number == number)
        chain = runner.run_chain(trial.point)
        part = "certification" if certify else runner.part
        if certify:
            self._events({"event": "certifying", "number": number, "target": runner.target, "part": part})
        found, compared, errors, steps = runner.measure(chain, part)
        # A trial of an earlier run was not looked at in this one.
        selecting = runner.measure(chain, runner.part)[3] if certify else []
        self._check(runner, result, trial, chain, [*steps, *selecting], found, compared)
        for name, error in errors.items():
            self._events({"event": "warning", "message": f"metric {name} of candidate {number}: {error}"})

        def verdicts(share: float) -> list[Verdict]:
            return [self._judge(goal, runner.evaluator, found, compared, share) for goal in runner.goals]

        return _Judged(number, chain.model, found, compared, verdicts)

    def _check(
        self,
        runner: TrialRunner,
        result: TargetResult,
        trial: Trial,
        chain: ChainResult,
        steps: Sequence[StepResult],
        found: Mapping[str, Measurement],
        compared: Mapping[str, Measurement],
    ) -> None:
        """Look at a finalist's data and results; what is noticed is told by the run and in the manifest."""
        if runner.checks is None:
            return
        runner.check(trial, chain, steps)
        plans = runner.plan.chain(trial.point, runner.target)
        runner.checks.judge(plans, runner.evaluator, found, {**result.baseline, **compared})
        result.warnings = list(runner.checks.warnings)

    def _conclude(self, judged: _Judged, runner: TrialRunner, result: TargetResult) -> None:
        number = judged.number
        verdicts = judged.verdicts(judged.share)
        result.certified = judged.found
        result.baseline = judged.compared or result.baseline
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
            self._hand_over(judged.model, result, "undecided")
        else:
            result.status = "certified" if "PASS" in by_status else "met"
            result.winner = number
            result.message = _how_met(verdicts)
            self._hand_over(judged.model, result, "model")

    def _judge(
        self,
        goal: Goal,
        evaluator: Evaluator | None,
        found: Mapping[str, Any],
        compared: Mapping[str, Any],
        share: float,
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
            alpha_share=share,
            seed=self._workflow.seed,
        )

    def _hand_over(self, model: Model, result: TargetResult, name: str) -> None:
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
    # What was cut short was seen on a part of the samples; of a goal that it was not measured for, nothing is known.
    measured_ones = [c for c in candidates if c.state != "failed" and (c.state == "complete" or c.violations)]
    if not measured_ones:
        return "no trial was completed"
    best = min(
        measured_ones,
        key=lambda c: (
            sum(max(v, 0.0) for v in c.violations.values()),
            sum(f"{goal.metric} {goal.kind}" not in c.violations for goal in goals),
        ),
    )
    if not best.violations:
        return "no trial could be selected"
    name, slack = max(best.violations.items(), key=lambda item: item[1])
    metric, _, kind = name.partition(" ")
    goal = next(g for g in goals if g.metric == metric and g.kind == kind)
    measured = best.measurements.get(metric)
    if measured is None:
        told = [error for entry, error in best.metric_errors.items() if metric.startswith(f"{entry}-")]
        reason = told[0] if told else "it was not measured"
        return f"nearest: candidate {best.number}, whose {metric} is missing: {reason}"
    seen = f" (on {measured.n} of {measured.of} samples)" if measured.of else ""
    return (
        f"nearest: candidate {best.number} with {metric} = {measured.value:.6g} {measured.unit}".rstrip()
        + f"{seen}; the goal {kind} {goal.value:g} blocks it ({slack:.1%} off the limit)"
    )


def _why_lost(candidates: Sequence[Candidate], winner: int, passed_over: Collection[int]) -> list[Candidate]:
    noted = []
    for c in candidates:
        if c.number == winner:
            reason = None
        elif c.number in passed_over:
            reason = "was a finalist, and its goals could not be certified"
        elif c.state == "failed":
            reason = f"failed: {c.error}"
        elif c.state == "pruned":
            reason = f"cut short: {c.error}"
        elif not c.feasible:
            reason = "breaks " + ", ".join(name for name, slack in c.violations.items() if slack > 0)
        else:
            reason = f"meets the goals; candidate {winner} is better on the objectives"
        noted.append(replace(c, lost_because=reason))
    return noted
