"""Rehearses a workflow: the whole chain, hosts and metrics included, on a small stand-in of the model.

The stand-in has the architecture and the tokenizer of the input model, two layers and random weights, so that a fault
of any step shows up in seconds. Every value of every searched parameter is tried at least once, not every combination.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drupe.core.certification import with_certification_split
from drupe.core.config import Choice, FloatRange, IntRange, Ordered, Range
from drupe.core.engine import Engine
from drupe.core.errors import DrupeError, Interrupted
from drupe.core.measuring import Measurer
from drupe.core.plan import build_plan
from drupe.core.preflight import check_systems
from drupe.core.registry import Registry
from drupe.core.store import Store
from drupe.core.study import Point, Space
from drupe.core.target_space import target_space
from drupe.core.trials import TrialRunner
from drupe.core.workflow.model import Workflow

__all__ = ["Rehearsed", "covering_points", "rehearse"]

_SAMPLES = 4
_MOST_POINTS = 16


@dataclass(frozen=True)
class Rehearsed:
    """One point on one target: what went wrong, or nothing."""

    target: str
    point: Point
    seconds: float
    errors: tuple[str, ...]


def covering_points(space: Space, most: int = _MOST_POINTS) -> list[Point]:
    """Return few points that together hold every listed value and both ends of every range.

    At most `most` points; values beyond are left out, the first ones kept.
    """
    values = {dimension.name: _values(dimension.over) for dimension in space.dimensions}
    points: list[dict[str, Any]] = []
    for index in range(min(max((len(v) for v in values.values()), default=1), most)):
        # Forwards and backwards, so that the values of an alternative's own parameters meet that alternative.
        for shift in (0, 1):
            point: dict[str, Any] = {}
            for position, dimension in enumerate(space.dimensions):
                if space.active(dimension, point):
                    listed = values[dimension.name]
                    point[dimension.name] = listed[(index + shift * position) % len(listed)]
            if point not in points and len(points) < most:
                points.append(point)
    needed = {(name, repr(value)) for name, listed in values.items() for value in listed}
    kept: list[Point] = []
    for point in points:
        new = {(name, repr(value)) for name, value in point.items()} & needed
        if new or not kept:
            kept.append(point)
            needed -= new
    return kept


def _values(over: Range) -> list[Any]:
    match over:
        case IntRange(low=low, high=high) | FloatRange(low=low, high=high):
            return [low, high] if low != high else [low]
        case Choice(values=values) | Ordered(values=values):
            return list(values)


def rehearse(
    workflow: Workflow,
    registry: Registry,
    *,
    allow: frozenset[str] = frozenset(),
    events: Callable[[Mapping[str, Any]], None] = lambda event: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Rehearsed]:
    """Run the chains of the covering points on every target. Raises ConfigError, Interrupted.

    Nothing of it reaches the workflow's cache or output folder.
    """
    outcome: list[Rehearsed] = []
    with tempfile.TemporaryDirectory(prefix="drupe-rehearsal-") as scratch:
        workflow = with_certification_split(
            replace(workflow, cache_dir=Path(scratch) / "cache", output_dir=Path(scratch) / "out")
        )
        plan = build_plan(workflow, registry)
        store = Store(workflow.cache_dir)
        engine = Engine(workflow, registry, store, allow=allow, events=events, cancelled=cancelled, rehearsal=True)
        measurer = Measurer(engine)
        try:
            check_systems(engine, plan)
            source = engine.import_model().model
            assert source is not None
            for target in workflow.targets:
                evaluator = workflow.evaluators[workflow.evaluator] if workflow.evaluator else None
                runner = TrialRunner(engine, measurer, plan, target, evaluator, source, part="evaluation")
                outcome.extend(_one(runner, point) for point in covering_points(target_space(plan, target)[0]))
        finally:
            engine.close()
    return outcome


def _one(runner: TrialRunner, point: Point) -> Rehearsed:
    started = time.monotonic()
    errors: list[str] = []
    try:
        chain = runner.run_chain(point)
        if runner.evaluator is not None:
            _, failed, _ = runner.measurer.measure(
                chain.model,
                runner.evaluator,
                runner.target,
                part=runner.part,
                reference=runner.input_model,
                limit=_SAMPLES,
            )
            errors += [f"metric {name}: {error}" for name, error in failed.items()]
    except Interrupted:
        raise
    except DrupeError as error:
        errors.append(str(error))
    return Rehearsed(runner.target, point, time.monotonic() - started, tuple(errors))
