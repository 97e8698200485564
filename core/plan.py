"""Plans a workflow: the search space, and the chain of steps that a point of it stands for, checked before any work."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from drupe.core.accelerators import Accelerator
from drupe.core.chaining import Planned, way_out
from drupe.core.digests import canonical_json
from drupe.core.errors import ConfigError, Fault, PluginError
from drupe.core.model import ModelInfo
from drupe.core.passes import Pass
from drupe.core.placing import host_of
from drupe.core.registry import Registry
from drupe.core.space import FLOW, SpaceMap, build_space, first_values, walk
from drupe.core.specs import MetricSpec
from drupe.core.study import Dimension, Point, Space
from drupe.core.workflow.markers import replaced
from drupe.core.workflow.model import PassAlternative, Workflow

__all__ = ["MOST_CHECKS", "MOST_TRIES", "Plan", "StepPlan", "all_points", "build_plan", "check_points", "in_words"]

MOST_CHECKS = 512
"""Points that are checked per target before work starts; others of a larger plan are checked when they are tried."""
MOST_TRIES = 128
"""Points that are tried to find one where a value fits that does not fit beside the first values of the others."""


@dataclass(frozen=True)
class StepPlan:
    """A pass of a chain. name: in the workflow. type: the registered pass. config: JSON data after defaults. host: the
    name of the system that it runs on. where: its path in the file."""

    name: str
    type: str
    config: Mapping[str, Any]
    host: str
    where: str


@dataclass
class Plan:
    """What a workflow can do: a space, and for each point and target a chain of steps that fits."""

    workflow: Workflow
    registry: Registry
    map: SpaceMap
    _passes: dict[str, Pass] = field(default_factory=dict)
    _configs: dict[tuple[str, str], Any] = field(default_factory=dict)
    _start: ModelInfo | None = None

    @property
    def space(self) -> Space:
        """The dimensions: "pass.param", "pass" (which alternative) and "flow" (which chain)."""
        return self.map.space

    def chain(self, point: Point, target: str) -> tuple[StepPlan, ...]:
        """Return the steps of a point on a target. Raises ConfigError naming the step where they don't fit together."""
        steps = self.steps(point, target)
        self.result(steps, target)
        return tuple(step for step, _ in steps)

    def steps(self, point: Point, target: str | None = None) -> list[tuple[StepPlan, Any]]:
        """Return the steps of a point, each with its Config. Raises ConfigError for values that don't go together.

        target: for which they are, where it is to be known on which system each runs; the first otherwise.
        """
        found = []
        flow = self.workflow.flows[point.get(FLOW, 0)]
        for name in flow:
            index = point.get(name, 0)
            alternative = self.workflow.passes[name].alternatives[index]
            values = replaced(alternative.config, self.map.values(name, index, point))
            config = self._config(alternative, values)
            dumped = self._dumped(alternative, config)
            entry = self.registry.find("drupe_passes", alternative.type)
            host = host_of(self.workflow, alternative, entry, target or self.workflow.targets[0])
            found.append((StepPlan(name, alternative.type, dumped, host, alternative.where), config))
        return found

    def result(self, steps: list[tuple[StepPlan, Any]], target: str) -> ModelInfo:
        """Return what is known of the model that steps make for a target. Raises ConfigError naming the step."""
        system = self.workflow.systems[target]
        accelerator = system.accelerators[0]
        info = self._input()
        before: list[Planned] = []
        for step, config in steps:
            planned = (step.name, self._pass(step.type), config, info)
            try:
                info = planned[1].plan(info, config, accelerator)
            except ConfigError as error:
                hint = way_out(self.registry, before, planned, accelerator)
                found = _on(str(error), target, self.workflow)
                raise ConfigError(faults=[Fault(step.where, found, "", hint)]) from error
            before.append(planned)
        self._check_evaluator(info, target)
        self._check_runtime(info, target, accelerator)
        return info

    def _check_evaluator(self, info: ModelInfo, target: str) -> None:
        evaluator = self.workflow.evaluators.get(self.workflow.evaluator or "")
        if evaluator is None or not evaluator.kinds or info.kind in evaluator.kinds:
            return
        message = f"{evaluator.type} measures {' and '.join(evaluator.kinds)} models; the passes end with {info.kind}"
        hint = "leave type out: then every model is measured by the runtime that opens it"
        where = f"evaluators.{evaluator.name}.type"
        raise ConfigError(faults=[Fault(where, _on(message, target, self.workflow), "", hint)])

    def _check_runtime(self, info: ModelInfo, target: str, accelerator: Accelerator) -> None:
        from drupe.core.serving import find_runtime

        if not self._measured_by_running():
            return
        name = self.workflow.systems[target].runtime
        try:
            find_runtime(self.registry, info.kind, accelerator, name)
        except (ConfigError, PluginError) as error:
            hint = "the evaluator measures there: leave it out, or end with a model that an installed runtime can open"
            kind = "fault" if name or "several" in str(error) else "missing"
            raise ConfigError(faults=[Fault(f"systems.{target}", str(error), "", hint, kind)]) from error

    def _measured_by_running(self) -> bool:
        evaluator = self.workflow.evaluators.get(self.workflow.evaluator or "")
        for metric in evaluator.metrics if evaluator else ():
            entry = self.registry.find("drupe_metrics", metric.type)
            if entry is not None and cast(MetricSpec, entry.spec).needs is not None:
                return True
        return False

    def _pass(self, type_name: str) -> Pass:
        if type_name not in self._passes:
            self._passes[type_name] = self.registry.create("drupe_passes", type_name)
        return self._passes[type_name]

    def _config(self, alternative: PassAlternative, values: Mapping[str, Any]) -> BaseModel:
        key = (alternative.where, canonical_json(values))
        if key not in self._configs:
            try:
                self._configs[key] = self._pass(alternative.type).Config.model_validate(dict(values))
            except ValidationError as error:
                raise ConfigError(faults=_faults_of(error, alternative.where)) from error
        return cast(BaseModel, self._configs[key])

    def _dumped(self, alternative: PassAlternative, config: BaseModel) -> dict[str, Any]:
        try:
            return config.model_dump(mode="json")
        except PydanticSerializationError as error:
            entry = self.registry.get("drupe_passes", alternative.type)
            raise ConfigError(
                faults=[
                    Fault(
                        alternative.where,
                        f"a parameter of {entry.spec.name} of {entry.plugin} can't be written as JSON: {error}",
                        "parameters, defaults as well, that are JSON: the config travels to hosts",
                    )
                ]
            ) from error

    def _input(self) -> ModelInfo:
        if self._start is None:
            if not self.workflow.model_kind:
                # Public files leave it open for tools that fill it in.
                hint = "write a model's reference there, such as {type: HfModel, model_path: FOLDER}"
                raise ConfigError(faults=[Fault("input_model", "a place holder", "a model", hint)])
            kind = self.registry.create("drupe_model_kinds", self.workflow.model_kind)
            values = {key: value for key, value in self.workflow.input_model.items() if key != "type"}
            try:
                config = kind.Config.model_validate(values)
            except ValidationError as error:
                raise ConfigError(faults=_faults_of(error, "input_model")) from error
            try:
                self._start = kind.info(config, self.workflow.folder)
            except ConfigError as error:
                raise ConfigError(faults=error.faults or [Fault("input_model", str(error))]) from error
        return self._start


def build_plan(workflow: Workflow, registry: Registry) -> Plan:
    """Return the plan of a workflow that was read without faults.

    Every flow, every alternative and every listed value must fit on some target, and every target must have a chain
    that fits. Raises ConfigError, with every such fault, before any work.
    """
    if left_open := _left_open(workflow):
        raise ConfigError(faults=left_open)
    plan = Plan(workflow, registry, build_space(workflow, _declared(workflow, registry)))
    _check(plan)
    return plan


def _left_open(workflow: Workflow) -> list[Fault]:
    """Passes whose type is still to be filled in, as public files leave it for tools."""
    alternatives = [item for entry in workflow.passes.values() for item in entry.alternatives]
    hint = "write the name of a pass there; drupe passes lists them"
    return [Fault(f"{a.where}.type", "a place holder", "a pass", hint) for a in alternatives if not a.type]


def _faults_of(error: ValidationError, where: str) -> list[Fault]:
    """What reading does not tell: a value still to be filled in, searched values that don't go together."""
    return [Fault(".".join([where, *map(str, e["loc"])]), str(e["msg"])) for e in error.errors(include_url=False)]


def _declared(workflow: Workflow, registry: Registry) -> dict[str, dict[tuple[str, ...], Mapping[str, Any]]]:
    """Where fields have an effect at all, as the Configs say it."""
    found: dict[str, dict[tuple[str, ...], Mapping[str, Any]]] = {}
    for entry in workflow.passes.values():
        for alternative in entry.alternatives:
            config = registry.resolve(registry.get("drupe_passes", alternative.type)).Config
            for name, info in config.model_fields.items():
                extra = info.json_schema_extra
                when = extra.get("drupe_search", {}).get("when") if isinstance(extra, dict) else None
                if when:
                    found.setdefault(alternative.where, {})[(name,)] = when
    return found


def _check(plan: Plan) -> None:
    fits: set[tuple[str, str]] = set()
    failed: dict[tuple[str, str], tuple[Dimension, Any, ConfigError]] = {}
    faults: list[Fault] = []
    for target in plan.workflow.targets:
        errors: list[ConfigError] = []
        found = False
        for point in itertools.islice(check_points(plan.space), MOST_CHECKS):
            try:
                plan.chain(point, target)
            except ConfigError as error:
                errors.append(error)
                for dimension in plan.space.dimensions:
                    if dimension.name in point:
                        value = point[dimension.name]
                        failed.setdefault(_id(dimension, value), (dimension, value, error))
            else:
                found = True
                fits.update(_id(d, point[d.name]) for d in plan.space.dimensions if d.name in point)
        if not found and not any(_fits(plan, p, target) for p in itertools.islice(all_points(plan.space), MOST_TRIES)):
            faults.extend(fault for reason in errors[:1] for fault in reason.faults)
    if not faults:
        for key, (dimension, value, reason) in failed.items():
            if key not in fits and not _fits_somewhere(plan, dimension, value):
                first = reason.faults[0] if reason.faults else Fault("", str(reason))
                text = f"{in_words(plan, dimension, value)} fits nowhere: {first.found}"
                faults.append(Fault(_where(plan, dimension), text, first.expected, first.hint))
    if faults:
        raise ConfigError(faults=list(dict.fromkeys(faults)))


def _id(dimension: Dimension, value: Any) -> tuple[str, str]:
    return dimension.name, canonical_json(value)


def check_points(space: Space, fixed: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Points for a check: every choice of flow and alternatives with the first value of each parameter, and each
    further value once beside them. fixed: dimensions that have one value in all of them."""
    structure = {d.name for d in space.dimensions if d.name == FLOW or "." not in d.name}
    kept = dict(fixed or {})
    bases = list(itertools.islice(_walk(space, structure, kept), MOST_CHECKS))
    yield from bases
    for dimension in space.dimensions:
        if dimension.name not in structure and dimension.name not in kept:
            for base in bases:
                if dimension.name in base:
                    for value in first_values(dimension)[1:]:
                        yield next(_walk(space, set(), {**kept, **_only(base, structure), dimension.name: value}))


def _only(point: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in point.items() if name in names}


def _walk(space: Space, free: set[str], fixed: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every point over the free dimensions; the others have their fixed or first value."""

    def values(dimension: Dimension) -> list[Any]:
        if dimension.name in fixed:
            return [fixed[dimension.name]]
        listed = first_values(dimension)
        return listed if dimension.name in free else listed[:1]

    return walk(space, values)


def all_points(space: Space, fixed: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Every point over the listed values and the ends of ranges. fixed: dimensions that have one value in all."""
    return _walk(space, {dimension.name for dimension in space.dimensions}, fixed or {})


def _fits(plan: Plan, point: Point, target: str) -> bool:
    try:
        plan.chain(point, target)
    except ConfigError:
        return False
    return True


def _fits_somewhere(plan: Plan, dimension: Dimension, value: Any) -> bool:
    points = [
        p for p in itertools.islice(all_points(plan.space, {dimension.name: value}), MOST_TRIES) if dimension.name in p
    ]
    return any(_fits(plan, point, target) for point in points for target in plan.workflow.targets)


def _where(plan: Plan, dimension: Dimension) -> str:
    if dimension.name == FLOW:
        return "pass_flows"
    places = [parameter.where for parameter in plan.map.parameters if parameter.dimension == dimension.name]
    return places[0] if places else f"passes.{dimension.name}"


def in_words(plan: Plan, dimension: Dimension, value: Any) -> str:
    """Return what a value of a dimension stands for, as a message names it."""
    if dimension.name == FLOW:
        return f"the flow {' → '.join(plan.workflow.flows[value])}"
    if dimension.name in plan.workflow.passes and isinstance(value, int):
        return f"the alternative {plan.workflow.passes[dimension.name].alternatives[value].type}"
    return f"the value {value!r}"


def _on(message: str, target: str, workflow: Workflow) -> str:
    return f"{message} (target {target})" if len(workflow.targets) > 1 else message
