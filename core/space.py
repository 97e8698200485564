"""Builds the search space of a workflow: flows, alternatives and marked values, with the conditions between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from drupe.core.config import Choice
from drupe.core.errors import ConfigError, Fault
from drupe.core.study import Dimension, Point, Space
from drupe.core.workflow.markers import find_markers, range_of
from drupe.core.workflow.model import PassAlternative, Workflow

__all__ = ["FLOW", "Parameter", "SpaceMap", "build_space", "every_point", "first_values", "space_size", "walk"]

FLOW = "flow"
"""The dimension that chooses a flow."""
_MOST_CASES = 20_000


@dataclass(frozen=True)
class Parameter:
    """Where a dimension's value goes: an alternative of a pass, and a path inside its config."""

    dimension: str
    pass_name: str
    alternative: int
    path: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class SpaceMap:
    """A space and what its dimensions stand for."""

    space: Space
    parameters: tuple[Parameter, ...] = ()

    def values(self, pass_name: str, alternative: int, point: Point) -> dict[tuple[str, ...], Any]:
        """Return the point's values for the markers of an alternative; inactive ones are absent."""
        return {
            p.path: point[p.dimension]
            for p in self.parameters
            if p.pass_name == pass_name and p.alternative == alternative and p.dimension in point
        }


@dataclass
class _Draft:
    name: str
    marker: Mapping[str, Any]
    pass_name: str
    alternatives: list[int]
    path: tuple[str, ...]
    where: list[str] = field(default_factory=list)


def build_space(workflow: Workflow, declared: Mapping[str, Mapping[tuple[str, ...], Mapping[str, Any]]]) -> SpaceMap:
    """Return the space of a workflow.

    declared: alternative's path in the file → {field path: {other field: values}}: where a field has an effect at all.
    Raises ConfigError for conditions that go in a circle.
    """
    dimensions: list[Dimension] = []
    if len(workflow.flows) > 1:
        dimensions.append(Dimension(FLOW, Choice(*range(len(workflow.flows)))))
    drafts: list[_Draft] = []
    for name, entry in workflow.passes.items():
        flows = _flow_condition(workflow, name)
        if flows == {FLOW: []}:
            continue
        if len(entry.alternatives) > 1:
            dimensions.append(Dimension(name, Choice(*range(len(entry.alternatives))), flows))
        drafts.extend(_drafts(name, entry.alternatives))
    names = {dimension.name for dimension in dimensions} | {draft.name for draft in drafts}
    dimensions.extend(
        Dimension(draft.name, range_of(draft.marker), _conditions(draft, workflow, declared, names)) for draft in drafts
    )
    parameters = [
        Parameter(draft.name, draft.pass_name, alternative, draft.path, where)
        for draft in drafts
        for alternative, where in zip(draft.alternatives, draft.where, strict=True)
    ]
    return SpaceMap(Space(_in_order(dimensions)), tuple(parameters))


def _flow_condition(workflow: Workflow, name: str) -> dict[str, list[int]]:
    chosen = [index for index, flow in enumerate(workflow.flows) if name in flow]
    return {} if len(chosen) == len(workflow.flows) else {FLOW: chosen}


def _drafts(name: str, alternatives: Sequence[PassAlternative]) -> list[_Draft]:
    """One draft per searched parameter; alternatives that search the same values of the same name share it."""
    drafts: list[_Draft] = []
    for index, alternative in enumerate(alternatives):
        for path, marker in find_markers(alternative.config):
            where = ".".join([alternative.where, *path])
            same = next((d for d in drafts if d.path == path and d.marker == marker), None)
            if same is not None:
                same.alternatives.append(index)
                same.where.append(where)
            else:
                drafts.append(_Draft(".".join([name, *path]), marker, name, [index], path, [where]))
    for draft in drafts:
        if sum(1 for other in drafts if other.path == draft.path) > 1:
            # The same name with other values in another alternative is another dimension.
            draft.name = ".".join([f"{name}[{draft.alternatives[0]}]", *draft.path])
    return drafts


def _conditions(
    draft: _Draft,
    workflow: Workflow,
    declared: Mapping[str, Mapping[tuple[str, ...], Mapping[str, Any]]],
    names: set[str],
) -> dict[str, list[Any]]:
    conditions: dict[str, list[Any]] = dict(_flow_condition(workflow, draft.pass_name))
    entry = workflow.passes[draft.pass_name]
    if len(entry.alternatives) > 1:
        conditions[draft.pass_name] = list(draft.alternatives)
    for name, values in draft.marker.get("when", {}).items():
        own = f"{draft.pass_name}.{name}"
        full = name if name in names else own
        if full not in names:
            # A parameter of one alternative is known by the alternative's number as well.
            full = next((n for n in names if n.partition("[")[0] + n.partition("]")[2] in (name, own)), full)
        conditions[full] = _as_alternatives(full, values, workflow)
    alternative = entry.alternatives[draft.alternatives[0]]
    for other, values in declared.get(alternative.where, {}).get(draft.path, {}).items():
        sibling = ".".join([draft.pass_name, *draft.path[:-1], other])
        if sibling in names:
            conditions[sibling] = list(values)
            continue
        fixed: Any = alternative.config
        for part in (*draft.path[:-1], other):
            fixed = fixed.get(part) if isinstance(fixed, Mapping) else None
        if fixed is not None and fixed not in values:
            allowed = " or ".join(map(str, values))
            raise ConfigError(
                faults=[
                    Fault(
                        draft.where[0],
                        f"is searched, and has an effect only where {other} is {allowed}; {other} is {fixed}",
                        "one value, or another " + other,
                    )
                ]
            )
    return conditions


def _as_alternatives(name: str, values: Sequence[Any], workflow: Workflow) -> list[Any]:
    """A condition on a pass may name its alternatives by type."""
    entry = workflow.passes.get(name)
    if entry is None:
        return list(values)
    found: list[Any] = []
    for value in values:
        if isinstance(value, str):
            found.extend(i for i, a in enumerate(entry.alternatives) if a.type.lower() == value.lower())
        else:
            found.append(value)
    return found


def _in_order(dimensions: Sequence[Dimension]) -> tuple[Dimension, ...]:
    """Each dimension after those that its conditions name."""
    ordered: list[Dimension] = []
    waiting = list(dimensions)
    while waiting:
        known = {dimension.name for dimension in ordered}
        ready = [dimension for dimension in waiting if set(dimension.when) <= known]
        if not ready:
            names = ", ".join(dimension.name for dimension in waiting)
            raise ConfigError(
                faults=[Fault("passes", f"the conditions of {names} go in a circle", "conditions that start somewhere")]
            )
        ordered.extend(ready)
        waiting = [dimension for dimension in waiting if dimension not in ready]
    return tuple(ordered)


def first_values(dimension: Dimension) -> list[Any]:
    """Return the listed values of a dimension, or both ends of its range."""
    values = getattr(dimension.over, "values", None)
    if values is not None:
        return list(values)
    return [dimension.over.low, dimension.over.high]  # type: ignore[union-attr]


def every_point(space: Space) -> Iterator[dict[str, Any]]:
    """Every point of a space, in the order of its values; its ranges must have steps. See space_size."""
    return walk(space, _all_values)


def walk(space: Space, values: Callable[[Dimension], Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every point over some values of each dimension, in their order."""
    open_points: list[tuple[int, dict[str, Any]]] = [(0, {})]
    while open_points:
        index, point = open_points.pop()
        if index == len(space.dimensions):
            yield point
            continue
        dimension = space.dimensions[index]
        if not space.active(dimension, point):
            open_points.append((index + 1, point))
            continue
        open_points.extend((index + 1, {**point, dimension.name: value}) for value in reversed(values(dimension)))


def _all_values(dimension: Dimension) -> list[Any]:
    values = getattr(dimension.over, "values", None)
    if values is not None:
        return list(values)
    over: Any = dimension.over
    return [over.low + number * over.step for number in range(_count(dimension) or 0)]


def space_size(space: Space) -> int | None:
    """Return how many points a space has; None where it is infinite, or too tangled to count."""
    counts = {dimension.name: _count(dimension) for dimension in space.dimensions}
    deciding = {name for dimension in space.dimensions for name in dimension.when}
    cases: list[tuple[dict[str, Any], int]] = [({}, 1)]
    for dimension in space.dimensions:
        grown: list[tuple[dict[str, Any], int]] = []
        for point, factor in cases:
            count = counts[dimension.name]
            if not space.active(dimension, point):
                grown.append((point, factor))
            elif count is None:
                return None
            elif dimension.name in deciding:
                if not hasattr(dimension.over, "values"):
                    return None
                grown.extend(({**point, dimension.name: value}, factor) for value in dimension.over.values)
            else:
                grown.append((point, factor * count))
        if len(grown) > _MOST_CASES:
            return None
        cases = grown
    return sum(factor for _, factor in cases)


def _count(dimension: Dimension) -> int | None:
    over = dimension.over
    values = getattr(over, "values", None)
    if values is not None:
        return len(values)
    step = over.step  # type: ignore[union-attr]
    if step is None:
        return None
    return int((over.high - over.low) / step + 1e-9) + 1  # type: ignore[union-attr]
