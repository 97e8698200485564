"""What of a workflow's search space one target can be given: a trial is not spent on a chain that nothing serves there.

Where a workflow has several targets, a flow, an alternative or a value may fit only some of them. What fits a target in
no combination is left out of that target's space before the study is asked, and told.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from drupe.core.config import Choice, Ordered
from drupe.core.errors import ConfigError
from drupe.core.plan import MOST_CHECKS, MOST_TRIES, Plan, all_points, check_points, in_words
from drupe.core.study import Dimension, Point, Space

__all__ = ["LeftOut", "Refusals", "target_space"]


@dataclass(frozen=True)
class LeftOut:
    """A value of a dimension that a target is not given, and why."""

    target: str
    dimension: str
    value: Any
    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what} is left out for the target {self.target}: {self.why}"


class Refusals:
    """Which points make no chain that fits a target, and why; told once for each reason. See Space.refuses.

    tell: is given the message of a new reason.
    """

    def __init__(self, plan: Plan, target: str, tell: Callable[[str], None]) -> None:
        self._plan, self._target, self._tell = plan, target, tell
        self._reasons: dict[str, tuple[Mapping[str, object], int]] = {}

    def __call__(self, point: Point) -> bool:
        """Whether the chain of a point does not fit."""
        try:
            self._plan.chain(point, self._target)
        except ConfigError as error:
            self._note(point, _reason(error, self._target))
            return True
        return False

    @property
    def left_out(self) -> list[Mapping[str, object]]:
        """Each reason, an example, and how many of the points that were drawn it kept from being tried."""
        return [
            {"why": why, "example": dict(example), "points": count} for why, (example, count) in self._reasons.items()
        ]

    def _note(self, point: Point, why: str) -> None:
        example, count = self._reasons.get(why, (dict(point), 0))
        self._reasons[why] = (example, count + 1)
        if not count:
            values = ", ".join(f"{name}={value}" for name, value in point.items())
            self._tell(
                f"combinations such as {values} are left out for the target {self._target} and count as no trial: {why}"
            )


def _reason(error: ConfigError, target: str) -> str:
    text = error.faults[0].found if error.faults else str(error)
    return text.removesuffix(f" (target {target})")


def target_space(plan: Plan, target: str) -> tuple[Space, tuple[LeftOut, ...]]:
    """Return the space of a target, and what of the workflow's space it lacks.

    Dimensions that only matter for what is left out are gone as well. With one target nothing is left out: planning has
    refused what fits nowhere.
    """
    if len(plan.workflow.targets) < 2:
        return plan.space, ()
    kept: list[Dimension] = []
    left: list[LeftOut] = []
    for dimension in plan.space.dimensions:
        if not _reachable(dimension, kept):
            continue
        values = getattr(dimension.over, "values", None)
        if values is None:
            kept.append(dimension)
            continue
        reasons = {
            index: why for index, value in enumerate(values) if (why := _why_not(plan, target, dimension, value))
        }
        fitting = [value for index, value in enumerate(values) if index not in reasons]
        if not fitting:
            kept.append(dimension)
            continue
        left += [
            LeftOut(target, dimension.name, values[index], in_words(plan, dimension, values[index]), why)
            for index, why in reasons.items()
        ]
        over = Ordered(*fitting) if isinstance(dimension.over, Ordered) else Choice(*fitting)
        kept.append(replace(dimension, over=over) if reasons else dimension)
    return replace(plan.space, dimensions=tuple(kept)), tuple(left)


def _reachable(dimension: Dimension, kept: Sequence[Dimension]) -> bool:
    """Whether what is kept leaves a point in which the dimension is active."""
    known = {one.name: one for one in kept}
    for name, wanted in dimension.when.items():
        if name not in known:
            return False
        values = getattr(known[name].over, "values", None)
        if values is not None and not any(value in wanted for value in values):
            return False
    return True


def _why_not(plan: Plan, target: str, dimension: Dimension, value: Any) -> str | None:
    """Return why the value fits the target in no combination that is tried, or None where it fits in one."""
    fixed = {dimension.name: value}
    first: str | None = None
    for point in itertools.chain(
        itertools.islice(check_points(plan.space, fixed), MOST_CHECKS),
        itertools.islice(all_points(plan.space, fixed), MOST_TRIES),
    ):
        if dimension.name not in point:
            continue
        try:
            plan.chain(point, target)
        except ConfigError as error:
            first = first or _reason(error, target)
        else:
            return None
    return first
