"""What a run can be expected to show and to take, before anything is spent: the power of each goal on the items at
hand, and the time by what the same kinds of steps took before in this store."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from drupe.core.config import Choice, FloatRange, IntRange, Ordered, Range
from drupe.core.digests import canonical_json
from drupe.core.engine import Engine
from drupe.core.errors import DrupeError
from drupe.core.measuring import Measurer
from drupe.core.model import Model
from drupe.core.plan import Plan, StepPlan
from drupe.core.registry import Registry
from drupe.core.space import space_size
from drupe.core.splits import PARTS
from drupe.core.statistics.power import items_for_power, power_text
from drupe.core.store import Store
from drupe.core.study import Goal, Point, Space
from drupe.core.workflow.model import DataEntry, MetricEntry, Workflow

__all__ = ["Forecast", "Power", "forecast_time", "goal_powers", "part_size"]

_MOST_TRIALS = 200
"""So many trials are looked at; more are taken to be like them."""


@dataclass(frozen=True)
class Power:
    """What the items that certify can show of a goal. items: None where their number is not known before loading."""

    goal: str
    items: int | None
    text: str


@dataclass(frozen=True)
class Forecast:
    """What a run would take. seconds: on one worker, as far as it is known. steps, stored: passes of all trials, and
    how many of them the store has. costs: seconds of one step by what it is. unknown: what never ran in this store."""

    seconds: float
    steps: int
    stored: int
    costs: Mapping[str, float] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One line for a person."""
        if self.steps and self.stored == self.steps and not self.costs and not self.unknown:
            return f"none: all {self.steps} steps and their measurements are in the store"
        if not self.costs:
            return "nothing is known yet: no step of this workflow has run in this store"
        parts = [f"{name} {_duration(seconds)}" for name, seconds in self.costs.items()]
        known = f"about {_duration(self.seconds)}: {self.stored} of {self.steps} steps are in the store"
        text = f"{known}; a step took {', '.join(parts)} before"
        return text + (f"; nothing is known yet of {', '.join(self.unknown)}" if self.unknown else "")


# Power


def goal_powers(workflow: Workflow, registry: Registry, part: str) -> list[Power]:
    """Return what each goal with a confidence can be expected to show; the others have no power to tell of.

    workflow: with the certification split that a run would use. part: the split that candidates are chosen on. Nothing
    is loaded but rows in files of this machine.
    """
    evaluator = workflow.evaluators.get(workflow.evaluator or "")
    if evaluator is None:
        return []
    # What certifies neither trains nor selects; where nothing is selected, all that does not train certifies.
    certifying = ("certification",) if part == "selection" else ("selection", "certification")
    entries = {f"{m.name}-{sub_type}": (m, sub_type) for m in evaluator.metrics for sub_type in m.sub_types}
    found = []
    for goal in evaluator.goals:
        entry, sub_type = entries.get(goal.metric, (None, ""))
        if goal.confidence is None or entry is None or entry.data is None:
            continue
        registered = registry.get("drupe_metrics", entry.type)
        metric = registry.resolve(registered)(registered.spec)
        config = metric.Config.model_validate(dict(entry.config))
        data = workflow.data[entry.data]
        items = part_size(data.split, certifying, partial(_count, workflow, registry, data))
        found.append(_power(goal, items, metric.sub_type(sub_type, config).proportion))
    return found


def _power(goal: Goal, items: int | None, proportion: bool) -> Power:
    if not proportion:
        return Power(goal.metric, items, f"{goal.metric}: no proportion, so its power is known after measuring only")
    if items is not None:
        text = power_text(goal, items)
        kind = goal.kind.replace("-", " ")
        return Power(goal.metric, items, text or f"{goal.metric}: the power of a {kind} is known after measuring only")
    text = f"{goal.metric}: how many items there are is known after loading only"
    if goal.kind.endswith("max-degradation") and goal.value > 0 and goal.confidence is not None:
        limit = goal.value / 100 if goal.kind.startswith("percent-") else goal.value
        text += f"; {items_for_power(limit, alpha=1 - goal.confidence):,} would certify a lossless model with 80%"
    return Power(goal.metric, None, text)


def part_size(split: Mapping[str, Any], parts: Sequence[str], count: Callable[[], int | None]) -> int | None:
    """Return how many items parts of a split have. count: called where the total is needed; gives it or None."""
    if not split:
        return count()
    named = {name: split[name] for name in PARTS if name in split}
    if "rest" not in named.values():
        unnamed = [name for name in ("train", "certification", "selection") if name not in named]
        named |= dict.fromkeys(unnamed[:1], "rest")
    sizes = [named[part] for part in parts if part in named]
    counts = [size for size in sizes if isinstance(size, int)]
    if len(counts) == len(sizes):
        return sum(counts)
    total = count()
    if total is None:
        return None
    absolute = {name: round(size * total) if isinstance(size, float) else size for name, size in named.items()}
    rest = max(0, total - sum(size for size in absolute.values() if size != "rest"))
    found: list[int] = [rest if absolute[name] == "rest" else absolute[name] for name in parts if name in absolute]
    return sum(found)


def _count(workflow: Workflow, registry: Registry, entry: DataEntry) -> int | None:
    registered = registry.get("drupe_data_containers", entry.type)
    container = registry.resolve(registered)(registered.spec)
    found: int | None = container.count(container.Config.model_validate(dict(entry.config)), workflow.folder)
    return found


# Time


def forecast_time(plan: Plan, store: Store | None, part: str) -> Forecast:
    """Return what a run of the plan would take for all of its targets.

    store: None where there is none yet. part: the split that candidates are chosen on.
    """
    records = list(store.records()) if store is not None else []
    if store is None or not records:
        return Forecast(0.0, 0, 0)
    engine = Engine(plan.workflow, plan.registry, store)
    try:
        return _Forecaster(plan, engine, _typical(records), part).forecast()
    finally:
        engine.close()


def _typical(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the median seconds of a step by pass type, and of a metric by "measure NAME"."""
    seconds: dict[str, list[float]] = {}
    for record in records:
        # A part of the samples is no whole measurement.
        if "positions" not in (record.get("measurement") or {}):
            name = f"measure {record['name']}" if record["kind"] == "measure" else record["type"]
            seconds.setdefault(name, []).append(record["seconds"])
    return {name: statistics.median(values) for name, values in seconds.items()}


class _Forecaster:
    def __init__(self, plan: Plan, engine: Engine, typical: Mapping[str, float], part: str) -> None:
        self._plan, self._engine, self._typical, self._part = plan, engine, typical, part
        self._measurer = Measurer(engine)
        self._seconds = 0.0
        self._steps = self._stored = 0
        self._costs: dict[str, float] = {}
        self._unknown: dict[str, None] = {}
        workflow = plan.workflow
        self._evaluator = workflow.evaluators.get(workflow.evaluator or "")

    def forecast(self) -> Forecast:
        source = self._source()
        points, scale = _points(self._plan)
        for target in self._plan.workflow.targets:
            # A step is done once, however many trials begin with it; the accelerator is part of some keys.
            done: dict[str, Model | None] = {}
            before = self._seconds
            for point in points:
                self._trial(point, target, source, done)
            self._seconds = before + (self._seconds - before) * scale
        # Passes before metrics, as they run.
        ordered = sorted(self._costs, key=lambda name: name.startswith("measure "))
        costs = {name.removeprefix("measure "): self._costs[name] for name in ordered}
        return Forecast(self._seconds, self._steps, self._stored, costs, tuple(self._unknown))

    def _source(self) -> Model | None:
        if not self._engine.host(self._plan.workflow.host).light:
            return None
        try:
            step = self._engine.stored_import()
        except DrupeError:
            return None
        return step.model if step else None

    def _trial(self, point: Point, target: str, source: Model | None, done: dict[str, Model | None]) -> None:
        try:
            steps = self._plan.chain(point, target)
        except DrupeError:
            # Such a trial fails before it costs anything.
            return
        model, prefix = source, ""
        for step in steps:
            prefix += canonical_json([step.type, dict(step.config), step.host])
            if prefix in done:
                model = done[prefix]
                continue
            model = self._found(step, model, target)
            self._steps += 1
            if model is None:
                self._charge(step.type)
            else:
                self._stored += 1
            done[prefix] = model
        if f"measured {prefix}" not in done:
            done[f"measured {prefix}"] = None
            for entry in self._evaluator.metrics if self._evaluator else ():
                if not self._is_measured(entry, model, target):
                    self._charge(f"measure {entry.name}")

    def _found(self, step: StepPlan, model: Model | None, target: str) -> Model | None:
        # A host that must be reached to say what is installed there is not asked for the sake of a plan.
        if model is None or not self._engine.host(step.host).light:
            return None
        try:
            accelerator = self._plan.workflow.systems[target].accelerators[0]
            found = self._engine.stored_pass(step, model, accelerator)
        except DrupeError:
            return None
        return found.model if found else None

    def _is_measured(self, entry: MetricEntry, model: Model | None, target: str) -> bool:
        if model is None or not self._engine.host(target).light:
            return False
        try:
            return self._measurer.stored(model, entry, target, part=self._part) is not None
        except DrupeError:
            return False

    def _charge(self, name: str) -> None:
        seconds = self._typical.get(name)
        if seconds is None:
            self._unknown[name.removeprefix("measure ")] = None
        else:
            self._seconds += seconds
            self._costs[name] = seconds


def _points(plan: Plan) -> tuple[list[Point], float]:
    """Return the points of the trials that a run would do, or some like them, and how many trials each stands for."""
    space = plan.space
    search = plan.workflow.search
    if search is None or not space.dimensions:
        return [{}], 1.0
    size = space_size(space)
    trials = min(size, search.max_trials) if size and search.max_trials else search.max_trials or size or _MOST_TRIALS
    if size is not None and trials == size <= _MOST_TRIALS:
        return list(_every(space)), 1.0
    draw = random.Random(search.seed)
    count = min(trials, _MOST_TRIALS)
    unique: dict[str, Point] = {}
    for _ in range(20 * count):
        point = _drawn(space, draw)
        unique.setdefault(canonical_json(point), point)
        if len(unique) == count:
            break
    return list(unique.values()), trials / len(unique)


def _every(space: Space) -> Iterator[Point]:
    points: Iterable[dict[str, Any]] = [{}]
    for dimension in space.dimensions:
        values = _values(dimension.over)
        points = [
            {**point, **extra}
            for point in points
            for extra in ([{dimension.name: v} for v in values] if space.active(dimension, point) else [{}])
        ]
    return islice(points, _MOST_TRIALS)


def _values(over: Range) -> list[Any]:
    match over:
        case Choice(values=values) | Ordered(values=values):
            return list(values)
        case IntRange(low=low, high=high, step=step):
            return list(range(low, high + 1, step or 1))
        case FloatRange(low=low, high=high, step=step):
            count = int((high - low) / step + 1e-9) + 1 if step else 1
            return [low + (step or 0.0) * index for index in range(count)]


def _drawn(space: Space, draw: random.Random) -> Point:
    point: dict[str, Any] = {}
    for dimension in space.dimensions:
        if space.active(dimension, point):
            point[dimension.name] = _one_of(dimension.over, draw)
    return point


def _one_of(over: Range, draw: random.Random) -> Any:
    match over:
        case Choice(values=values) | Ordered(values=values):
            return draw.choice(values)
        case IntRange(low=low, high=high, step=step):
            return draw.randrange(low, high + 1, step or 1)
        case FloatRange(low=low, high=high, step=step):
            return low + step * draw.randrange(int((high - low) / step + 1e-9) + 1) if step else draw.uniform(low, high)


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
