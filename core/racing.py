"""Measures a trial's model as far as it takes to know that it can't win: cheap metrics first, then accuracy on growing
parts of the samples, the same ones for every candidate. What may be dropped, and at what risk, is told in
`statistics.racing`; a candidate that is not dropped has been measured in full."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from drupe.core.engine import ChainResult
from drupe.core.executor import StepResult
from drupe.core.growing import Growing
from drupe.core.metrics import Measurement
from drupe.core.model import Model
from drupe.core.results import Candidate
from drupe.core.sample_evaluations import sample_evaluations
from drupe.core.statistics.goals import limit_of, violation
from drupe.core.statistics.racing import Decision, Look, chance_to_win, decide, stages
from drupe.core.study import Goal, MultiFidelity, Objective, Outcome, Trial
from drupe.core.workflow.model import Evaluator, MetricEntry

if TYPE_CHECKING:
    from drupe.core.trials import TrialRunner

__all__ = ["Raced", "Racer"]

Finished = Callable[[], Sequence[tuple[Trial, Outcome]]]


@dataclass
class Raced:
    """What is known of a trial's model. reason: why it was cut short; None: it was measured in full."""

    compared: Mapping[str, Measurement] = field(default_factory=dict)
    found: dict[str, Measurement] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    steps: list[StepResult] = field(default_factory=list)
    reason: str | None = None


class Racer:
    """Races the trials of one target against each other. Safe to use from several threads.

    finished: the study's trials so far. finalists: how many of the best must be measured in full. early: whether the
    sampler can do with trials whose accuracy was not measured at all; else each has at least the first look.
    """

    def __init__(
        self,
        settings: MultiFidelity,
        finished: Finished,
        *,
        finalists: int = 1,
        early: Callable[[], bool] = lambda: True,
    ) -> None:
        self._settings = settings
        self._finished = finished
        self._finalists = finalists
        self._early = early
        self._measured: dict[int, Mapping[str, Measurement]] = {}

    def measure(self, runner: TrialRunner, trial: Trial, chain: ChainResult) -> Raced:
        """Measure the model of a trial in full, or until it is known that it can't win."""
        raced = Raced()
        evaluator = runner.evaluator
        if evaluator is None:
            return raced
        baseline, raced.compared = runner.compare(chain, runner.part)
        race = _Race(self, runner, trial, chain, baseline, evaluator, raced)
        deciding = [m for m in evaluator.metrics if m.name in _deciding(evaluator)]
        growing = [m for m in deciding if runner.measurer.grows(m)]
        early = self._early() or not growing
        for group in _cheapest_first(runner, [m for m in deciding if m not in growing]):
            race.take(group)
            raced.reason = raced.reason or race.known_to_lose()
            if raced.reason and early:
                return raced
        race.grow(growing)
        if raced.reason is None:
            race.take([m for m in evaluator.metrics if m not in deciding])
            self._measured[trial.number] = dict(raced.found)
        return raced

    @property
    def settings(self) -> MultiFidelity:
        """How the race is run."""
        return self._settings

    def rivals(self, runner: TrialRunner, evaluator: Evaluator) -> Iterator[tuple[int, Mapping[str, Measurement]]]:
        """Yield the feasible trials measured in full whose samples are known: number and measurements, best first."""
        objectives = sorted(evaluator.objectives, key=lambda o: o.priority)
        done = [(t, o) for t, o in self._finished() if o.state == "complete" and t.answered is None]
        feasible = [(t, o) for t, o in done if all(v <= 0 for v in o.violations.values())]
        ranked = [(t, o) for t, o in feasible if all(objective.metric in o.measurements for objective in objectives)]
        for trial, outcome in sorted(ranked, key=lambda pair: _order(pair, objectives)):
            measured = self._measured.get(trial.number)
            if measured is None:
                measured = _with_rows(runner, trial, outcome, evaluator)
                self._measured[trial.number] = measured
            yield trial.number, measured

    @property
    def finalists(self) -> int:
        """How many of the best are measured in full."""
        return self._finalists

    def indifference(self, runner: TrialRunner, objective: Objective) -> float:
        """Return the margin of an objective: that of the settings for the one that it counts for, else 0."""
        return self._settings.indifference if objective == self._indifferent(runner) else 0.0

    def _indifferent(self, runner: TrialRunner) -> Objective | None:
        evaluator = runner.evaluator
        if evaluator is None:
            return None
        growing = {m.name for m in evaluator.metrics if runner.measurer.grows(m)}
        objectives = sorted(evaluator.objectives, key=lambda o: o.priority)
        return next((o for o in objectives if evaluator.entry_name(o.metric) in growing), None)

    def counts(self, runner: TrialRunner, candidates: Sequence[Candidate]) -> Mapping[str, Any]:
        """Return what `sample_evaluations` says of the trials of this race, and what its margin promises."""
        evaluator = runner.evaluator
        if evaluator is None:
            return {}
        names = [m.name for m in evaluator.metrics if runner.measurer.grows(m) and m.name in _deciding(evaluator)]
        counted = sample_evaluations(candidates, names, evaluator.entry_name)
        objective = self._indifferent(runner)
        if not self._settings.indifference or objective is None:
            return counted
        margin, sure = self._settings.indifference, 1 - self._settings.risk
        promise = f"with a probability of at least {sure:g}, the winner's {objective.metric} on all selection samples"
        among = "the best feasible one's"
        if any(o.priority < objective.priority for o in evaluator.objectives):
            among += " that equals it in the objectives before"
        return {**counted, "indifference": margin, "guarantee": f"{promise} is within {margin:g} of {among}"}


class _Race:
    """One trial's race."""

    def __init__(
        self,
        racer: Racer,
        runner: TrialRunner,
        trial: Trial,
        chain: ChainResult,
        baseline: Model | None,
        evaluator: Evaluator,
        raced: Raced,
    ) -> None:
        self._racer, self._runner, self._trial = racer, runner, trial
        self._chain, self._baseline, self._evaluator, self._raced = chain, baseline, evaluator, raced

    def take(self, entries: Sequence[MetricEntry]) -> None:
        """Measure metrics in full."""
        if entries:
            found, errors, steps = self._runner.measurer.measure(
                self._chain.model,
                self._evaluator,
                self._runner.target,
                part=self._runner.part,
                baseline=self._baseline,
                reference=self._runner.input_model,
                metrics=[m.name for m in entries],
            )
            self._raced.found.update(found)
            self._raced.errors.update(errors)
            self._raced.steps += steps

    def known_to_lose(self) -> str | None:
        """Say why what was measured in full rules the candidate out; None where it does not."""
        return self._broken() or self._decide({}, 1).reason or None

    def _broken(self) -> str | None:
        names = {self._evaluator.entry_name(name) for name, m in self._raced.found.items() if m.of is None} | set(
            self._raced.errors
        )
        for goal in self._evaluator.goals:
            if self._evaluator.entry_name(goal.metric) in names:
                measured = self._raced.found.get(goal.metric)
                if violation(goal, measured, self._raced.compared.get(goal.metric)) > 0:
                    return f"breaks {_goal_text(goal)}" + (
                        f": {measured.value:.4g} {measured.unit}".rstrip() if measured else ": it was not measured"
                    )
        return None

    def grow(self, entries: Sequence[MetricEntry]) -> None:
        """Measure on growing parts; stop where the candidate is out."""
        settings, raced = self._racer.settings, self._raced
        growing = [
            Growing(
                self._runner.measurer,
                entry,
                self._chain.model,
                self._runner.target,
                part=self._runner.part,
                baseline=self._baseline,
                reference=self._runner.input_model,
            )
            for entry in entries
        ]
        sizes = [settings.first]
        index = 0
        while any(not one.done for one in growing):
            for one in growing:
                one.grow(sizes[index])
            if index == 0:
                # How many samples there are is known after the first piece only.
                total = max((one.total or 0 for one in growing), default=0)
                sizes = [settings.first, *stages(total, settings.first, settings.growth)] if total else sizes
                sizes = sorted({min(size, total) for size in sizes}) if total else sizes
            index += 1
            for one in growing:
                raced.found.update(one.partial())
                if one.error is not None:
                    raced.errors[one.entry.name] = one.error
            if raced.reason or all(one.done for one in growing):
                break
            looks = {
                name: look
                for one in growing
                if not one.done
                for name in one.partial()
                if (look := one.look(name)) is not None
            }
            raced.reason = self._broken() or self._decide(looks, max(1, len(sizes) - 1)).reason or None
            if raced.reason:
                break
        for one in growing:
            raced.steps += one.steps
            raced.found.update(one.whole or {})

    def _decide(self, looks: Mapping[str, Look], number: int) -> Decision:
        """Decide on what was seen: the goals of growing metrics, then whether the best so far can be reached."""
        risk = self._racer.settings.risk
        goals = []
        for goal in self._evaluator.goals:
            if goal.metric in looks:
                reference = self._raced.compared.get(goal.metric)
                limit = limit_of(goal, reference.value if reference else None)
                if limit is not None:
                    goals.append((goal, looks[goal.metric], limit))
        decision = decide(goals, looks=number, risk=risk)
        if not decision.go_on:
            return decision
        objectives = sorted(self._evaluator.objectives, key=lambda o: o.priority)
        if objectives:
            rivals = self._racer.rivals(self._runner, self._evaluator)
            if self._racer.settings.keep == "front":
                return self._on_the_front(objectives, looks, list(rivals), risk / number)
            for place, (rival, measured) in enumerate(rivals, start=1):
                if place == self._racer.finalists:
                    return self._against(objectives, looks, rival, measured, number, risk)
        return Decision(True)

    def _against(
        self,
        objectives: Sequence[Objective],
        looks: Mapping[str, Look],
        rival: int,
        measured: Mapping[str, Measurement],
        number: int,
        risk: float,
    ) -> Decision:
        """Compare by priority, as the pick will: what is known decides, what is still growing is predicted."""
        for index, objective in enumerate(objectives):
            theirs = measured[objective.metric]
            ours = self._known(objective, looks)
            if ours is None:
                look = looks.get(objective.metric)
                if look is None or not theirs.rows:
                    return Decision(True)
                rest = objectives[index + 1 :]
                pair = (objective.direction, look, _whole(look, theirs))
                return decide(
                    (),
                    pair,
                    looks=number,
                    risk=risk,
                    tie_wins=self._wins_a_tie(rest, looks, measured, rival),
                    indifference=self._racer.indifference(self._runner, objective),
                )
            if ours.value != theirs.value:
                return self._told(objective, ours, theirs, rival)
        return Decision(True) if self._trial.number < rival else Decision(False, f"equals candidate {rival}", 0.0)

    def _wins_a_tie(
        self, rest: Sequence[Objective], looks: Mapping[str, Look], measured: Mapping[str, Measurement], rival: int
    ) -> bool:
        for objective in rest:
            ours = self._known(objective, looks)
            if ours is None:
                return True
            if ours.value != measured[objective.metric].value:
                return _better(objective, ours.value, measured[objective.metric].value)
        return self._trial.number < rival

    def _on_the_front(
        self,
        objectives: Sequence[Objective],
        looks: Mapping[str, Look],
        rivals: Sequence[tuple[int, Mapping[str, Measurement]]],
        share: float,
    ) -> Decision:
        """Drop only what one other candidate beats in every objective."""
        for rival, measured in rivals:
            known = [(o, ours) for o in objectives if (ours := self._known(o, looks)) is not None]
            if any(_better(o, ours.value, measured[o.metric].value) for o, ours in known):
                continue
            behind = any(ours.value != measured[o.metric].value for o, ours in known)
            chance = 0.0
            for objective in objectives:
                if self._known(objective, looks) is None:
                    look, theirs = looks.get(objective.metric), measured[objective.metric]
                    if look is None or not theirs.rows:
                        chance = 1.0
                        break
                    chance += chance_to_win(look, _whole(look, theirs), objective.direction, tie_wins=not behind)
            if chance < share and (behind or len(known) < len(objectives)):
                reason = f"candidate {rival} beats it in every objective (chance that it does not: {chance:.2g})"
                return Decision(False, reason, chance)
        return Decision(True)

    def _known(self, objective: Objective, looks: Mapping[str, Look]) -> Measurement | None:
        """Return the objective's value where it is final."""
        return None if objective.metric in looks else self._raced.found.get(objective.metric)

    def _told(self, objective: Objective, ours: Measurement, theirs: Measurement, rival: int) -> Decision:
        if _better(objective, ours.value, theirs.value):
            return Decision(True)
        text = f"{objective.metric} {ours.value:.4g} {ours.unit}".rstrip()
        return Decision(False, f"can't win: {text} where candidate {rival} has {theirs.value:.4g}", 0.0)


def _deciding(evaluator: Evaluator) -> set[str]:
    """Return the names of the entries whose values decide: those with a goal or an objective."""
    metrics = [goal.metric for goal in evaluator.goals] + [objective.metric for objective in evaluator.objectives]
    return {evaluator.entry_name(metric) for metric in metrics}


def _cheapest_first(runner: TrialRunner, entries: Sequence[MetricEntry]) -> Iterator[list[MetricEntry]]:
    """Yield what is read off files, then what needs a session, then what needs the machine alone."""
    for cost in (0, 1, 2):
        group = [m for m in entries if runner.measurer.cost(m) == cost]
        if group:
            yield group


def _with_rows(runner: TrialRunner, trial: Trial, outcome: Outcome, evaluator: Evaluator) -> Mapping[str, Measurement]:
    """Return an earlier trial's measurements with the samples behind them, as far as the store still has them."""
    found = dict(outcome.measurements)
    chain = runner.stored_chain(trial)
    for entry in evaluator.metrics if chain is not None else ():
        if runner.measurer.grows(entry):
            assert chain is not None
            stored = runner.measurer.stored(
                chain.model, entry, runner.target, part=runner.part, reference=runner.input_model
            )
            found |= stored or {}
    return found


def _order(pair: tuple[Trial, Outcome], objectives: Sequence[Objective]) -> tuple[float, ...]:
    trial, outcome = pair
    signed = [(1 if o.direction == "lower" else -1) * outcome.measurements[o.metric].value for o in objectives]
    return (*signed, trial.number)


def _whole(look: Look, measured: Measurement) -> Look:
    return Look(measured.rows, look.total, look.aggregate, look.proportion)


def _better(objective: Objective, ours: float, theirs: float) -> bool:
    return ours > theirs if objective.direction == "higher" else ours < theirs


def _goal_text(goal: Goal) -> str:
    return f"{goal.metric} {goal.kind} {goal.value:g}"
