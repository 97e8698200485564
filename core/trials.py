"""Runs one trial: a point of the space → a chain of steps → a model → measurements → an outcome for the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drupe.core.engine import ChainResult, Engine
from drupe.core.errors import ConfigError, PassError
from drupe.core.executor import StepResult
from drupe.core.measuring import Measurer
from drupe.core.metrics import Measurement
from drupe.core.model import Model
from drupe.core.plan import Plan
from drupe.core.results import Candidate, chain_json
from drupe.core.study import Goal, Outcome, Trial
from drupe.core.workflow.model import Evaluator

__all__ = ["TrialRunner"]


@dataclass(frozen=True)
class TrialRunner:
    """Runs the trials of one target.

    part: the split that candidates are chosen on. baseline: PASS_NAME means the model after that pass of the same
    chain; None means the input model.
    """

    engine: Engine
    measurer: Measurer
    plan: Plan
    target: str
    evaluator: Evaluator | None
    input_model: Model
    part: str

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

    def measure(
        self, chain: ChainResult, part: str
    ) -> tuple[dict[str, Measurement], dict[str, Measurement], dict[str, str], list[StepResult]]:
        """Measure a chain's model, and its baseline where goals are relative: (model's, baseline's, errors, steps)."""
        if self.evaluator is None:
            return {}, {}, {}, []
        baseline = self.baseline_model(chain) if self.relative else None
        compared: dict[str, Measurement] = {}
        if baseline is not None:
            wanted = {goal.metric.rpartition("-")[0] for goal in self.goals if goal.kind != "threshold"}
            names = [m.name for m in self.evaluator.metrics if m.name in wanted or not wanted]
            compared, _, _ = self.measurer.measure(
                baseline, self.evaluator, self.target, part=part, reference=self.input_model, metrics=names
            )
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
            found, compared, errors, steps = self.measure(chain, self.part)
        except (PassError, ConfigError) as error:
            outcome = Outcome("failed", error=str(error))
            return outcome, Candidate(trial.number, trial.point, "failed", error=str(error))
        cost = chain.cost + sum(s.seconds for s in steps if not s.cached)
        saved = chain.saved + sum(s.seconds for s in steps if s.cached)
        outcome = Outcome(
            "complete",
            measurements=found,
            violations=self.violations(found, compared),
            candidate=chain.model.digest,
            cost=cost,
            saved=saved,
        )
        return outcome, self.describe(trial, outcome, chain, errors)

    def describe(
        self, trial: Trial, outcome: Outcome, chain: ChainResult | None, errors: Mapping[str, str]
    ) -> Candidate:
        """Return a trial as the manifest shows it."""
        configs = [step.config for step in self.plan.chain(trial.point, self.target)] if chain else []
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
