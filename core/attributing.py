"""Measures what lies between the input model and a run's winner, and says which pass changed a metric by how much."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drupe.core.certification import part_that_selects, with_certification_split
from drupe.core.engine import ChainResult, Engine
from drupe.core.errors import ConfigError, DrupeError
from drupe.core.measuring import Measurer, full_name
from drupe.core.metrics import Measurement
from drupe.core.model import Model
from drupe.core.plan import build_plan
from drupe.core.registry import Registry
from drupe.core.results import MANIFEST
from drupe.core.serving import find_runtime
from drupe.core.statistics.attribution import PassChange, changes_by_pass
from drupe.core.store import open_store
from drupe.core.study import Trial
from drupe.core.trials import TrialRunner
from drupe.core.workflow.model import MetricEntry, Workflow
from drupe.core.workflow.read import read_workflow

__all__ = ["Attribution", "attribute"]


@dataclass(frozen=True)
class Attribution:
    """What the passes of one candidate did to one metric. skipped: passes whose models no runtime serves here; the next
    pass is charged for both."""

    target: str
    candidate: int
    metric: str
    changes: Sequence[PassChange]
    skipped: Sequence[str] = ()


def attribute(
    output: Path,
    registry: Registry,
    *,
    allow: frozenset[str] = frozenset(),
    events: Callable[[Mapping[str, Any]], None] = lambda event: None,
) -> list[Attribution]:
    """Measure the models of the winners' chains on the samples that certified, and compare each with the one before.

    Without a winner the candidate that came nearest is looked at. What was measured before comes from the store, and
    what is measured now goes there. Raises ConfigError where the folder is no output folder, or the store has lost
    the steps.
    """
    path = output / MANIFEST
    if not path.is_file():
        raise ConfigError(f"{output} holds no {MANIFEST}; name the output folder of a run")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    source = (output / manifest["workflow_file"]).resolve()
    if not source.is_file():
        raise ConfigError(f"the workflow file {source} is gone, so nothing can be measured")
    overrides = {key: manifest["workflow"][key] for key in ("cache_dir",) if key in manifest["workflow"]}
    workflow = with_certification_split(read_workflow(source, registry, allow=allow, overrides=overrides))
    if workflow.evaluator is None:
        raise ConfigError(f"{source.name} has no evaluator, so there is no metric to look at")
    engine = Engine(workflow, registry, open_store(workflow.cache_dir, workflow.store_url), allow=allow, events=events)
    try:
        return [
            found
            for target in workflow.targets
            if target in manifest["targets"]
            for found in _of_target(engine, workflow, registry, target, manifest["targets"][target])
        ]
    finally:
        engine.close()


def _of_target(
    engine: Engine, workflow: Workflow, registry: Registry, target: str, result: Mapping[str, Any]
) -> list[Attribution]:
    candidate = _candidate(result)
    if candidate is None:
        return []
    plan = build_plan(workflow, registry)
    evaluator = workflow.evaluators[workflow.evaluator or ""]
    part = part_that_selects(plan)
    step = engine.stored_import()
    if step is None or step.model is None:
        raise ConfigError("the store has lost the input model; run the workflow again, or name its cache_dir")
    runner = TrialRunner(engine, Measurer(engine), plan, target, evaluator, step.model, part)
    chain = runner.stored_chain(Trial(candidate["number"], candidate["point"]))
    if chain is None:
        raise ConfigError(f"the store has lost steps of candidate {candidate['number']}; run the workflow again")
    names = {evaluator.entry_name(goal.metric) for goal in evaluator.goals}
    names |= {evaluator.entry_name(objective.metric) for objective in evaluator.objectives}
    # Where nothing was selected, everything held out has been measured already.
    measured_on = "certification" if part == "selection" else part
    return [
        found
        for entry in evaluator.metrics
        if entry.name in names and runner.measurer.grows(entry)
        for found in _of_metric(runner, chain, entry, candidate["number"], measured_on)
    ]


def _candidate(result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    complete: list[Mapping[str, Any]] = [c for c in result["candidates"] if c["state"] == "complete"]
    winner = next((c for c in complete if c["number"] == result["winner"]), None)
    if winner is not None or not complete:
        return winner

    def missed(candidate: Mapping[str, Any]) -> float:
        return sum(float("inf") if v is None else max(v, 0.0) for v in candidate["violations"].values())

    return min(complete, key=missed)


def _of_metric(
    runner: TrialRunner, chain: ChainResult, entry: MetricEntry, number: int, part: str
) -> list[Attribution]:
    stages: list[tuple[str, Mapping[str, Measurement]]] = []
    skipped: list[str] = []
    models = [("", runner.input_model)] + [(s.name, s.model) for s in chain.steps if s.model is not None]
    for name, model in models:
        found = _measured(runner, entry, model, part)
        if found:
            stages.append((name, found))
        else:
            skipped.append(name or "the input model")
    metric, config = runner.measurer.metric(entry)
    results = []
    for sub_type in entry.sub_types:
        full = full_name(entry, sub_type)
        values = [(name, found[full]) for name, found in stages if full in found]
        if len(values) > 1:
            changes = changes_by_pass(
                values[0][1],
                values[1:],
                lambda rows, sub_type=sub_type: metric.aggregate(rows, sub_type, config),  # type: ignore[misc]
                seed=runner.engine.workflow.seed,
            )
            results.append(Attribution(runner.target, number, full, changes, tuple(skipped)))
    return results


def _measured(runner: TrialRunner, entry: MetricEntry, model: Model, part: str) -> Mapping[str, Measurement]:
    system = runner.engine.workflow.systems[runner.target]
    try:
        find_runtime(runner.engine.registry, model.kind, system.accelerators[0], system.runtime)
        assert runner.evaluator is not None
        found, _, _ = runner.measurer.measure(
            model, runner.evaluator, runner.target, part=part, reference=runner.input_model, metrics=[entry.name]
        )
    except DrupeError:
        return {}
    return found
