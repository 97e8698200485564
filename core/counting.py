"""How many combinations of a workflow's values fit a target, and why the others don't; counted before any work."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from drupe.core.plan import Plan, all_points
from drupe.core.space import every_point, space_size
from drupe.core.target_space import Refusals, target_space

__all__ = ["MOST_COUNTED", "Combinations", "count_combinations"]

MOST_COUNTED = 2048
"""Combinations of a target that are planned one by one; of a larger space a part is looked at, and nothing counted."""
_LOOKED_AT = 256


@dataclass(frozen=True)
class Combinations:
    """What a target's search space holds.

    points: its combinations; None: not countable. fit: those that make a chain that the target takes; None: not
    counted. refused: each reason with an example and how many of the `seen` combinations it concerns.
    """

    points: int | None
    fit: int | None
    seen: int
    refused: tuple[Mapping[str, object], ...] = ()

    @property
    def most_trials(self) -> int | None:
        """How many trials there can be at most; None: no end is known."""
        return self.points if self.fit is None else self.fit

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "points": self.points,
            "fit": self.fit,
            "seen": self.seen,
            "refused": [dict(one) for one in self.refused],
        }


def count_combinations(plan: Plan, target: str) -> Combinations:
    """Plan each combination of a target's space, or of one too large to count a part, and tell which fit."""
    space = target_space(plan, target)[0]
    size = space_size(space)
    refusals = Refusals(plan, target, lambda _: None)
    points: Iterator[Mapping[str, Any]]
    countable = size is not None and size <= MOST_COUNTED
    points = every_point(space) if countable else itertools.islice(all_points(space), _LOOKED_AT)
    seen = fitting = 0
    for point in points:
        seen += 1
        fitting += not refusals(point)
    return Combinations(size, fitting if countable else None, seen, tuple(refusals.left_out))
