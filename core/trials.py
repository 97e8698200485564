"""Runs one trial: a point of the space → a chain of steps → a model → measurements → an outcome for the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from drupe.core.data_checks import Checks
from drupe.core.engine import ChainResult, Engine
from drupe.core.errors import ConfigError, PassError
from drupe.core.executor import StepResult
from drupe.core.measuring import Measurer
from drupe.core.metrics import Measurement
from drupe.core.model import Model
from drupe.core.pictures import write_pictures
from drupe.core.plan import Plan
from drupe.core.racing import Raced, Racer
from drupe.core.results import Candidate, chain_json
from drupe.core.study import Goal, Outcome, Study, StudySettings, Trial
from drupe.core.workflow.model import Evaluator

__all__ = ["TrialRunner", "racing_runner"]


@dataclass(frozen=True)
class TrialRunner:
    """Runs the trials of one target.

    part: the split that candidates are chosen on. baseline: PASS_NAME means the model after that pass of the same
    chain; None means the input model. racer: cuts trials short that can't win; without one all are measured in full.
    checks: is shown what data the steps used.
    """

    engine: Engine
    measurer: Measurer
    plan: Plan
    target: str
    evaluator: Evaluator | None
    input_model: Model
    part: str
    racer: Racer | None = None
    checks: Checks | None = None

    @property
    def goals(self) -> Sequence[Goal]:
        """The evaluator's goals."""
        return self.evaluator.goals if self.evaluator else ()

    @property
    def relative(self) -> bool:
        """Whether a goal compares with the baseline."""
        return any(goal.kind != "threshold" for goal in self.goals)

    def run_chain(self, point: Mapping[str, Any]) -> ChainResult:
        """Run the chain of a point, or find it. Raises PassError, HostError, ConfigError, StoreError, Interrupted."""
        accelerator = self.engine.workflow.systems[self.target].accelerators[0]
        return self.engine.run_chain(self.plan.chain(point, self.target), self.input_model, accelerator)

    def baseline_model(self, chain: ChainResult) -> Model:
        """Return what relative goals compare with."""
        name = self.engine.workflow.baseline
        if name is None:
            return self.input_model
        for step in chain.steps:
            if step.name == name and step.model is not None:
                return step.model
        raise ConfigError(f"baseline names the pass {name!r}, which is not in this chain")

    def compare(self, chain: ChainResult, part: str) -> tuple[Model | None, dict[str, Measurement]]:
        """Return the baseline of a chain and its measurements, where goals are relative."""
        if self.evaluator is None or not self.relative:
            return None, {}
        baseline = self.baseline_model(chain)
        wanted = {self.evaluator.entry_name(goal.metric) for goal in self.goals if goal.kind != "threshold"}
        names = [m.name for m in self.evaluator.metrics if m.name in wanted or not wanted]
        compared, _, _ = self.measurer.measure(
            baseline, self.evaluator, self.target, part=part, reference=self.input_model, metrics=names
        )
        return baseline, compared

    def stored_chain(self, trial: Trial) -> ChainResult | None:
        """Return what the chain of a trial made, where the store has all of its steps."""
        model = self.input_model
        steps = []
        accelerator = self.engine.workflow.systems[self.target].accelerators[0]
        for plan in self.plan.chain(trial.point, self.target):
            step = self.engine.stored_pass(plan, model, accelerator)
            if step is None or step.model is None:
                return None
            steps.append(step)
            model = step.model
        return ChainResult(model, tuple(steps))

    def measure(
        self, chain: ChainResult, part: str
    ) -> tuple[dict[str, Measurement], dict[str, Measurement], dict[str, str], list[StepResult]]:
        """Measure a chain's model, and its baseline where goals are relative: (model's, baseline's, errors, steps)."""
        if self.evaluator is None:
            return {}, {}, {}, []
        baseline, compared = self.compare(chain, part)
        found, errors, steps = self.measurer.measure(
            chain.model, self.evaluator, self.target, part=part, baseline=baseline, reference=self.input_model
        )
        return found, compared, errors, steps

    def violations(self, found: Mapping[str, Measurement], compared: Mapping[str, Measurement]) -> dict[str, float]:
        """Return normalised slack per goal (≤ 0: met); a missing metric is an infinite violation."""
        from drupe.core.statistics.verdicts import violation

        return {
            f"{goal.metric} {goal.kind}": violation(goal, found.get(goal.metric), compared.get(goal.metric))
            for goal in self.goals
        }

    def run(self, trial: Trial) -> tuple[Outcome, Candidate]:
        """Run a trial. A failed pass or a chain that does not fit is an outcome; a failed host or store raises."""
        try:
            chain = self.run_chain(trial.point)
            raced = self._raced(trial, chain)
            self.check(trial, chain, raced.steps)
        except (PassError, ConfigError) as error:
            outcome = Outcome("failed", error=str(error))
            return outcome, Candidate(trial.number, trial.point, "failed", error=str(error))
        if raced.errors and not raced.found and raced.reason is None:
            # Without any value there is nothing to call it good by.
            told = "; ".join(f"{name}: {error}" for name, error in raced.errors.items())
            outcome = Outcome("failed", error=f"nothing could be measured: {told}", candidate=chain.model.digest)
            return outcome, self.describe(trial, outcome, chain, raced.errors)
        violations = self.violations(raced.found, raced.compared)
        if raced.reason is not None:
            # What was not measured before the cut is unknown, not broken.
            assert self.evaluator is not None
            name_of = self.evaluator.entry_name
            failed = {f"{g.metric} {g.kind}" for g in self.goals if name_of(g.metric) in raced.errors}
            known = {f"{g.metric} {g.kind}" for g in self.goals if g.metric in raced.found} | failed
            violations = {name: value for name, value in violations.items() if name in known}
        outcome = Outcome(
            "complete" if raced.reason is None else "pruned",
            measurements=raced.found,
            violations=violations,
            error=raced.reason,
            candidate=chain.model.digest,
            cost=chain.cost + sum(s.seconds for s in raced.steps if not s.cached),
            saved=chain.saved + sum(s.seconds for s in raced.steps if s.cached),
        )
        return outcome, self.describe(trial, outcome, chain, raced.errors)

    def check(self, trial: Trial, chain: ChainResult, measured: Sequence[StepResult]) -> None:
        """Have it checked what data a trial's steps used."""
        if self.checks is not None:
            self.checks.note(self.plan.chain(trial.point, self.target), chain.steps, self.evaluator, measured)

    def _raced(self, trial: Trial, chain: ChainResult) -> Raced:
        if self.racer is not None:
            return self.racer.measure(self, trial, chain)
        found, compared, errors, steps = self.measure(chain, self.part)
        return Raced(compared, found, errors, steps)

    def describe(
        self, trial: Trial, outcome: Outcome, chain: ChainResult | None, errors: Mapping[str, str]
    ) -> Candidate:
        """Return a trial as the manifest shows it."""
        configs = [step.config for step in self.plan.chain(trial.point, self.target)] if chain else []
        if chain:
            write_pictures(self.engine.workflow.output_dir, chain.steps)
        return Candidate(
            number=trial.number,
            point=dict(trial.point),
            state=outcome.state,
            model=outcome.candidate,
            chain=chain_json(chain.steps, configs) if chain else (),
            measurements=outcome.measurements,
            metric_errors=errors,
            violations=outcome.violations,
            error=outcome.error,
            cost=outcome.cost,
            saved=outcome.saved,
        )


def racing_runner(runner: TrialRunner, study: Study, settings: StudySettings | None) -> TrialRunner:
    """Return a runner that cuts the study's trials short, where the settings ask for it; else the same one."""
    if settings is None or settings.multi_fidelity is None or runner.evaluator is None:
        return runner
    early = getattr(study, "learns_from_pruned", lambda: True)
    racer = Racer(settings.multi_fidelity, study.finished, finalists=settings.finalists, early=early)
    return replace(runner, racer=racer)
