"""Draws the points of a study: what a sampler proposes, less what is known already and what fits nowhere.

A point that fits nowhere takes no trial's number: before a trial begins, it is known that a free point is left.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from drupe.core.errors import ConfigError
from drupe.core.study import Objective, Point, Space, StudySettings
from drupe.search.samplers import Chosen, choose, find_sampler, seed_of
from drupe.search.space import Axis, axes_of, drawn, point_key, points, size
from drupe.search.specs import SamplerContext

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

__all__ = ["Drawer", "Values"]

Values = list[tuple[Axis, Any]]
"""A point as its parameters."""
_ATTEMPTS = 16
"""How often a sampler may repeat a known point before another one is taken for it."""
_COUNTED = 10_000
"""Up to this size a space's points are counted, so that it is known when it is exhausted."""
_BLIND = 512
"""So many points of an endless space are drawn blindly to find one that fits; then nothing else is taken to fit."""


class Drawer:
    """Draws the points of one study. Raises ConfigError where the space can't be searched, or never to an end."""

    def __init__(self, space: Space, settings: StudySettings, objectives: Sequence[Objective]) -> None:
        self.space, self._settings = space, settings
        self._directions = max(1, len(objectives))
        self._objectives = len(objectives)
        try:
            self.axes = axes_of(space)
        except ValueError as error:
            raise ConfigError(f"the search space can't be searched: {error}") from error
        self._size = size(space, _COUNTED)
        auto = settings.sampler.lower() == "auto"
        self._named: Chosen | None = None if auto else find_sampler(settings.sampler)
        if self._size == math.inf and settings.max_trials is None and settings.max_time is None:
            raise ConfigError(
                "search_strategy: this space has no end; set max_trials or max_time, or give its ranges a step"
            )
        self._refused: dict[str, bool] = {}
        self._free: tuple[int, Point | None] = (-1, None)

    def check(self) -> None:
        """Raise ConfigError where the sampler that begins does not serve this space or takes none of its options."""
        chosen = self.sampler([])
        chosen.make(SamplerContext(0, self.space, self._directions, self._options(chosen)))

    def exhausted(self, known: Collection[str], number: int) -> bool:
        """Whether no free point is left for trial `number`. known: the keys of the points that have a trial."""
        if self.space.refuses is None:
            return len(known) >= self._size
        self._free = (number, self._find_free(known, number))
        return self._free[1] is None

    def sampler(self, costs: Sequence[float]) -> Chosen:
        """Return the sampler that serves now. costs: see `samplers.choose`."""
        if self._named is not None:
            return self._named
        return find_sampler(choose(self.space, self._settings, self._objectives, costs))

    def draw(
        self, study: Any, frozen: FrozenTrial, known: Collection[str], *, costs: Sequence[float], first: Sequence[Point]
    ) -> tuple[Point, Values]:
        """Draw the point of a trial. study: Optuna's. first: the points to begin with, by number.

        A point that is known or fits nowhere is drawn again; where a sampler insists on it, a finite space gives its
        next free point, and in an endless one the repetition stands and is answered from the earlier trial.
        """
        number = frozen.number
        if number < len(first):
            values = self.encode(first[number])
            if values is not None and self._usable(self.decode(values), known):
                return self.decode(values), values
        chosen = self.sampler(costs)
        options = self._options(chosen)
        values = []
        for attempt in range(1 if chosen.finite else _ATTEMPTS):
            seed = seed_of(self._settings.seed, number, attempt)
            sampler = chosen.make(SamplerContext(seed, self.space, self._directions, options))
            values = self._sample(study, sampler, frozen)
            if self._usable(self.decode(values), known):
                return self.decode(values), values
        free = self._free[1] if self._free[0] == number else self._find_free(known, number)
        if free is not None:
            values = self.encode(free) or values
        return self.decode(values), values

    def _usable(self, point: Point, known: Collection[str]) -> bool:
        key = point_key(point)
        return key not in known and not self._refuses(key, point)

    def _refuses(self, key: str, point: Point) -> bool:
        if self.space.refuses is None:
            return False
        if key not in self._refused:
            self._refused[key] = self.space.refuses(point)
        return self._refused[key]

    def _find_free(self, known: Collection[str], number: int) -> Point | None:
        """Return a point that no trial has and that fits; None where there is none, or none is found."""
        if self._size < math.inf:
            return next((point for point in points(self.space) if self._usable(point, known)), None)
        if self.space.refuses is None:
            return None
        source = random.Random(seed_of(self._settings.seed, number, _BLIND))
        blind = (drawn(self.space, self.axes, source) for _ in range(_BLIND))
        return next((point for point in blind if self._usable(point, known)), None)

    def _sample(self, study: Any, sampler: BaseSampler, frozen: FrozenTrial) -> Values:
        """Ask a sampler for one value after the other, as far as each is active given those before it."""
        import copy

        frozen = copy.copy(frozen)
        frozen.params, frozen.distributions = {}, {}
        study.sampler = sampler
        sampler.before_trial(study, frozen)
        jointly = sampler.sample_relative(study, frozen, sampler.infer_relative_search_space(study, frozen))
        values: Values = []
        point: dict[str, Any] = {}
        for axis in self.axes:
            if not self.space.active(axis.dimension, point):
                continue
            distribution = axis.distribution()
            value = jointly.get(axis.key)
            if axis.key not in jointly or not distribution._contains(distribution.to_internal_repr(value)):
                value = sampler.sample_independent(study, frozen, axis.key, distribution)
            values.append((axis, value))
            point[axis.dimension.name] = axis.decode(value)
            frozen.distributions = {**frozen.distributions, axis.key: distribution}
            frozen.params = {**frozen.params, axis.key: value}
        return values

    def _options(self, chosen: Chosen) -> Mapping[str, Any]:
        """Return the options for the sampler. Those given beside "auto" are for whichever it chooses, so they are left
        out for the one that takes none."""
        return {} if self._named is None and chosen.finite else self._settings.options

    # Points and parameters

    def encode(self, point: Point) -> Values | None:
        """Return a point's parameters, or None where it does not fit the space."""
        values = []
        for axis in self.axes:
            name = axis.dimension.name
            if not self.space.active(axis.dimension, point):
                continue
            try:
                values.append((axis, axis.encode(point[name])))
            except (KeyError, ValueError):
                return None
        return values

    def decode(self, values: Values) -> Point:
        """Return the point that parameters stand for."""
        return {axis.dimension.name: axis.decode(value) for axis, value in values}

    def read(self, text: str) -> Point:
        """Read a point; its dimensions in the order of the space, as a person would name them."""
        point = json.loads(text)
        return {axis.dimension.name: point[axis.dimension.name] for axis in self.axes if axis.dimension.name in point}
