"""The search space as Optuna sees it: one parameter for each dimension, finite spaces counted and walked lazily."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from drupe.core.config import Choice, FloatRange, IntRange, Ordered, Range
from drupe.core.digests import canonical_json
from drupe.core.study import Dimension, Point, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["Axis", "axes_of", "definition", "drawn", "fits", "point_key", "points", "size", "values_of"]


@dataclass(frozen=True)
class Axis:
    """A dimension and its Optuna parameter. key: the parameter's name, the dimension's own unless it occurs twice."""

    dimension: Dimension
    key: str

    def distribution(self) -> BaseDistribution:
        """Return the parameter's distribution. Ordered values become their positions, so that a sampler sees order."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        match self.dimension.over:
            case IntRange(low, high, log, step):
                return IntDistribution(
                    low, high if log else high - (high - low) % step, log=log, step=1 if log else step
                )
            case FloatRange(low, high, log, step):
                if isinstance(steps := values_of(self.dimension.over), _Steps):
                    return FloatDistribution(low, steps.end, step=step)
                return FloatDistribution(low, high, log=log)
            case Ordered(values):
                return IntDistribution(0, len(values) - 1)
            case Choice(values):
                return CategoricalDistribution([_plain(value, values) for value in values])

    def decode(self, value: Any) -> Any:
        """Return the value of the dimension for a value of the parameter."""
        match self.dimension.over:
            case Ordered(values):
                return values[int(value)]
            case Choice(values):
                return values[[_plain(v, values) for v in values].index(value)]
            case IntRange():
                return int(value)
            case FloatRange():
                steps = values_of(self.dimension.over)
                return steps.nearest(value) if isinstance(steps, _Steps) else float(value)

    def encode(self, value: Any) -> Any:
        """Return the value of the parameter for a value of the dimension. Raises ValueError for a foreign value."""
        match self.dimension.over:
            case Ordered(values):
                return _position(value, values)
            case Choice(values):
                return _plain(values[_position(value, values)], values)
            case _:
                if not fits(self.dimension.over, value):
                    raise ValueError(f"{value!r} is outside {self.dimension.name}")
                return value


def axes_of(space: Space) -> tuple[Axis, ...]:
    """Return the axes of a space, each after those it depends on. Raises ValueError where a condition can't be met."""
    waiting = list(space.dimensions)
    names = {d.name for d in waiting}
    ordered: list[Axis] = []
    counts: dict[str, int] = {}
    while waiting:
        open_names = {d.name for d in waiting}
        ready = [d for d in waiting if not (set(d.when) & open_names) and set(d.when) <= names]
        if not ready:
            raise ValueError(
                "these dimensions depend on each other or on one that does not exist: "
                + ", ".join(sorted(d.name for d in waiting))
            )
        for dimension in ready:
            counts[dimension.name] = counts.get(dimension.name, 0) + 1
            # Alternatives of one pass may each search a parameter of the same name over another range.
            copy = counts[dimension.name]
            ordered.append(Axis(dimension, dimension.name if copy == 1 else f"{dimension.name}#{copy}"))
        waiting = [d for d in waiting if d not in ready]
    return tuple(ordered)


def values_of(over: Range) -> Sequence[Any] | None:
    """Return the values of a finite range, lazily where they are numbers; None for a continuum."""
    match over:
        case Ordered(values) | Choice(values):
            return values
        case IntRange(low, high, log, step):
            return range(low, high + 1, 1 if log else step)
        case FloatRange(low, high, log, step):
            if low == high:
                return (low,)
            if log or not step:
                return None
            return _Steps(low, high, step, math.floor((high - low) / step + 1e-9) + 1)


class _Steps(Sequence[float]):
    """low, low + step, …, counted in decimals as a person writes them: the third step from 0.1 is 0.3."""

    def __init__(self, low: float, high: float, step: float, count: int) -> None:
        self._low, self._step, self._count = Decimal(str(low)), Decimal(str(step)), count
        self._high = high

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not -self._count <= index < self._count:
            raise IndexError(index)
        # A range that ends a rounding short of its last step ends there.
        return min(float(self._low + (index % self._count) * self._step), self._high)

    @property
    def end(self) -> float:
        """The last step as it is counted, which may lie a rounding above the range: Optuna wants whole steps."""
        return float(self._low + (self._count - 1) * self._step)

    def nearest(self, value: float) -> float:
        """Return the step that a value is, up to rounding."""
        index = round((value - float(self._low)) / float(self._step))
        return float(self[min(max(index, 0), self._count - 1)])


def points(space: Space) -> Iterator[Point]:
    """Yield the points of a finite space in order, the last dimension changing fastest; nothing is kept in memory.

    Raises ValueError for a continuum.
    """
    axes = axes_of(space)
    for axis in axes:
        if values_of(axis.dimension.over) is None:
            raise ValueError(f"{axis.dimension.name} is continuous: its points can't be listed")
    return _extend(space, axes, 0, {})


def _extend(space: Space, axes: Sequence[Axis], index: int, point: dict[str, Any]) -> Iterator[Point]:
    if index == len(axes):
        yield dict(point)
        return
    dimension = axes[index].dimension
    if not space.active(dimension, point):
        yield from _extend(space, axes, index + 1, point)
        return
    for value in values_of(dimension.over) or ():
        yield from _extend(space, axes, index + 1, {**point, dimension.name: value})


def drawn(space: Space, axes: Sequence[Axis], source: random.Random) -> Point:
    """Return a point drawn blindly, each value of an axis as likely as any other. axes: the space's, in order."""
    point: dict[str, Any] = {}
    for axis in axes:
        if space.active(axis.dimension, point):
            point[axis.dimension.name] = _any_of(axis.dimension.over, source)
    return point


def _any_of(over: Range, source: random.Random) -> Any:
    values = values_of(over)
    if values is not None and not (isinstance(over, IntRange) and over.log):
        return values[source.randrange(len(values))]
    assert isinstance(over, (IntRange, FloatRange))
    if not over.log:
        return source.uniform(over.low, over.high)
    value = math.exp(source.uniform(math.log(over.low), math.log(over.high)))
    return round(value) if isinstance(over, IntRange) else min(max(value, over.low), over.high)


def size(space: Space, at_most: int) -> float:
    """Return how many points the space has; infinity for a continuum, and where there are more than `at_most`."""
    axes = axes_of(space)
    if any(values_of(axis.dimension.over) is None for axis in axes):
        return math.inf
    if not any(axis.dimension.when for axis in axes):
        total = math.prod(len(values_of(axis.dimension.over) or ()) for axis in axes)
        return total if total <= at_most else math.inf
    counted = sum(1 for _ in itertools.islice(points(space), at_most + 1))
    return counted if counted <= at_most else math.inf


def fits(over: Range, value: Any) -> bool:
    """Whether a value lies in a range."""
    match over:
        case IntRange(low, high):
            return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        case FloatRange(low, high):
            return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
        case Ordered(values) | Choice(values):
            return any(_same(value, v) for v in values)


def point_key(point: Point) -> str:
    """Return a text that equal points share."""
    return canonical_json(dict(point))


def definition(space: Space) -> list[dict[str, Any]]:
    """Return the space as JSON data: what a resumed study must agree with."""
    found = []
    for dimension in space.dimensions:
        over = dimension.over
        data: dict[str, Any] = {"name": dimension.name, "range": type(over).__name__}
        match over:
            case Ordered(values) | Choice(values):
                data["values"] = list(values)
            case IntRange(low, high, log, step) | FloatRange(low, high, log, step):
                data |= {"low": low, "high": high, "log": log, "step": step}
        if dimension.when:
            data["when"] = {name: list(values) for name, values in dimension.when.items()}
        found.append(data)
    return found


def _plain(value: Any, values: Sequence[Any]) -> Any:
    """Return a choice as Optuna and its dashboard take it: itself, or its JSON where that would not do.

    1, 1.0 and True are equal to Optuna, so where two of them meet all choices are written as JSON.
    """
    simple = all(v is None or isinstance(v, (bool, int, float, str)) for v in values)
    if simple and len(set(values)) == len(values):
        return value
    return canonical_json(value)


def _position(value: Any, values: Sequence[Any]) -> int:
    for index, candidate in enumerate(values):
        if _same(candidate, value):
            return index
    raise ValueError(f"{value!r} is none of {list(values)}")


def _same(a: Any, b: Any) -> bool:
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)
