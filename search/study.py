"""The Optuna study: asks a sampler for points within an exact budget, and keeps every trial in a storage that survives.

One ask is one step under the study's lock: a trial of a dead worker is taken up first; else the next number is drawn,
as long as the budget lasts and the space has points. Trial numbers are 0 … max_trials − 1, no more and no fewer.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drupe.core.digests import canonical_json
from drupe.core.errors import ConfigError
from drupe.core.study import Goal, Objective, Outcome, Point, Space, StudySettings, Trial
from drupe.search.explain import summary
from drupe.search.picking import best, feasible, leading
from drupe.search.presence import Presence
from drupe.search.records import constraint_value, describe, differences, from_record, to_record
from drupe.search.samplers import Chosen, choose, find_sampler, next_params, seed_of
from drupe.search.space import Axis, axes_of, point_key, size
from drupe.search.specs import SamplerContext
from drupe.search.storage import Home, open_home, told_as_store_error

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from drupe.core.specs import StudySpec

__all__ = ["OptunaStudy"]

log = logging.getLogger(__name__)

_ATTEMPTS = 16
"""How often a sampler may repeat a known point before another one is taken for it."""
_COUNTED = 10_000
"""Up to this size a space's points are counted, so that it is known when it is exhausted."""


class OptunaStudy:
    """See core.study.Study. Safe to use from several threads, and from several processes on one storage."""

    def __init__(self, spec: StudySpec | None = None) -> None:
        self.spec = spec
        self._mutex = threading.RLock()
        self._presence: Presence | None = None
        self._outcomes: dict[int, Outcome] = {}
        self._seconds: dict[int, float] = {}
        self._keys: dict[str, int] = {}
        self._mine: dict[int, float] = {}
        self._closing = contextlib.ExitStack()

    # Opening

    def open(
        self,
        name: str,
        space: Space,
        goals: Sequence[Goal],
        objectives: Sequence[Objective],
        settings: StudySettings,
        folder: Path,
    ) -> None:
        """See Study.open. Raises ConfigError also where the search could never end."""
        self.name, self.space, self.settings, self.folder = name, space, settings, folder
        self.goals = tuple(goals)
        self.objectives = tuple(sorted(objectives, key=lambda o: o.priority))
        try:
            self._axes = axes_of(space)
        except ValueError as error:
            raise ConfigError(f"the search space can't be searched: {error}") from error
        self._size = size(space, _COUNTED)
        auto = settings.sampler.lower() == "auto"
        self._named: Chosen | None = None if auto else find_sampler(settings.sampler)
        if self._size == math.inf and settings.max_trials is None and settings.max_time is None:
            raise ConfigError(
                "search_strategy: this space has no end; set max_trials or max_time, or give its ranges a step"
            )
        self._home: Home = open_home(settings.storage, folder)
        self._storage = self._home.storage
        self._closing.callback(self._storage.remove_session)
        with self._home.lock.held():
            self._study_id = self._create_or_find(describe(space, goals, objectives))
        self._opened = time.monotonic()
        self._spent = sum(self._read_seconds()) / max(1, settings.workers)

    def _create_or_find(self, wanted: Mapping[str, Any]) -> int:
        from optuna.study import StudyDirection

        try:
            study_id: int = self._storage.get_study_id_from_name(self.name)
        except KeyError:
            words = {"lower": StudyDirection.MINIMIZE, "higher": StudyDirection.MAXIMIZE}
            # Without an objective the sampler is led by how far the goals are missed.
            directions = [words[o.direction] for o in self.objectives] or [StudyDirection.MINIMIZE]
            study_id = self._storage.create_new_study(directions, self.name)
            self._storage.set_study_user_attr(study_id, "definition", canonical_json(wanted))
            return study_id
        found = self._storage.get_study_user_attrs(study_id).get("definition")
        if found is None:
            if self._storage.get_n_trials(study_id):
                raise ConfigError(f"the study {self.name!r} in {self._home.url} was not made by Drupe; rename one")
            self._storage.set_study_user_attr(study_id, "definition", canonical_json(wanted))
            return study_id
        # Compared as JSON: tuples and whole floats read back as lists and ints.
        changed = differences(json.loads(found), json.loads(canonical_json(wanted)))
        if changed:
            raise ConfigError(
                f"the study {self.name!r} in {self._home.url} was made for another search: {'; '.join(changed)}. "
                "Go back to it, or search into another output folder: finished steps come from the store"
            )
        return study_id

    # Asking

    def ask(self) -> Trial | None:
        """See Study.ask. The trial of a worker that died is given first, under its own number."""
        with self._mutex, told_as_store_error(self._home.url), self._home.lock.held():
            trials = self._trials()
            self._note(trials)
            if self._over():
                return None
            abandoned = next((t for t in trials if self._abandoned(t)), None)
            if abandoned is not None:
                log.info("trial %d was left unfinished by a worker that is gone; it runs again", abandoned.number)
                return self._begin(abandoned)
            if self.settings.max_trials is not None and len(trials) >= self.settings.max_trials:
                return None
            if len(self._keys) >= self._size:
                return None
            number = len(trials)
            trial_id = self._storage.create_new_trial(self._study_id)
            frozen = self._storage.get_trial(trial_id)
            assert frozen.number == number, "two workers asked at the same moment, though the lock was held"
            return self._begin(frozen)

    def waiting(self) -> bool:
        """Whether trials of other, living workers still run: their outcome, or their death, may bring more to do."""
        with self._mutex, self._home.lock.held():
            running = [t for t in self._trials() if not t.state.is_finished() and t.number not in self._mine]
            return bool(running) and not self._over()

    def _over(self) -> bool:
        """Whether the time is spent, or the goals are met where that ends the search."""
        limit = self.settings.max_time
        if limit is not None and self._spent + time.monotonic() - self._opened >= limit:
            return True
        return (
            self.settings.stop_when_goals_met
            and bool(self.goals)
            and any(feasible(outcome, self.objectives) for outcome in self._outcomes.values())
        )

    def _abandoned(self, trial: FrozenTrial) -> bool:
        if trial.state.is_finished() or trial.number in self._mine:
            return False
        owner = trial.user_attrs.get("owner")
        return owner is None or not self._present().alive(owner)

    def _begin(self, frozen: FrozenTrial) -> Trial:
        """Give a trial its point, unless it has one, and make it this worker's."""
        number = frozen.number
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        self._storage.set_trial_user_attr(trial_id, "owner", self._present().name)
        text = frozen.user_attrs.get("point")
        if text is None:
            point, values = self._draw(frozen)
            text = point_key(point)
            for axis, value in values:
                distribution = axis.distribution()
                self._storage.set_trial_param(trial_id, axis.key, distribution.to_internal_repr(value), distribution)
            self._storage.set_trial_user_attr(trial_id, "point", text)
        known = self._keys.setdefault(text, number)
        self._mine[number] = time.monotonic()
        return Trial(number, self._point(text), self._outcomes.get(known) if known != number else None)

    def _draw(self, frozen: FrozenTrial) -> tuple[Point, list[tuple[Axis, Any]]]:
        """Draw the point of a trial. A known point is drawn again; where a sampler insists on it, a finite space gives
        its next free point, and in an endless one the repetition stands and is answered from the earlier trial."""
        first = self._first_points()
        if frozen.number < len(first):
            values = self._encode(first[frozen.number])
            if values is not None and point_key(self._decode(values)) not in self._keys:
                return self._decode(values), values
        import optuna

        chosen = self._sampler_now()
        directions = max(1, len(self.objectives))
        context = SamplerContext(0, self.space, directions, self._sampler_options(chosen))
        study = optuna.load_study(study_name=self.name, storage=self._storage, sampler=optuna.samplers.RandomSampler())
        values = []
        for attempt in range(1 if chosen.finite else _ATTEMPTS):
            seed = seed_of(self.settings.seed, frozen.number, attempt)
            sampler = chosen.make(SamplerContext(seed, context.space, directions, context.options))
            values = self._sample(study, sampler, frozen)
            if point_key(self._decode(values)) not in self._keys:
                return self._decode(values), values
        if self._size < math.inf:
            params = next_params(self.space, set(self._keys))
            values = [(axis, params[axis.key]) for axis in self._axes if axis.key in params]
        return self._decode(values), values

    def _sample(self, study: Any, sampler: BaseSampler, frozen: FrozenTrial) -> list[tuple[Axis, Any]]:
        """Ask a sampler for one value after the other, as far as each is active given those before it."""
        import copy

        frozen = copy.copy(frozen)
        frozen.params, frozen.distributions = {}, {}
        study.sampler = sampler
        sampler.before_trial(study, frozen)
        jointly = sampler.sample_relative(study, frozen, sampler.infer_relative_search_space(study, frozen))
        values: list[tuple[Axis, Any]] = []
        point: dict[str, Any] = {}
        for axis in self._axes:
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

    def _sampler_now(self) -> Chosen:
        if self._named is not None:
            return self._named
        costs = [self._outcomes[n].cost + self._outcomes[n].saved for n in sorted(self._outcomes)]
        return find_sampler(choose(self.space, self.settings, len(self.objectives), costs))

    def learns_from_pruned(self) -> bool:
        """Whether the sampler can do with trials that were cut short; others are given them as finished ones."""
        return bool(getattr(self._sampler_now().entry.spec, "pruned", False))

    def _sampler_options(self, chosen: Chosen) -> Mapping[str, Any]:
        """Return the options for the sampler. Those given beside "auto" are for whichever it chooses, so they are left
        out for the one that takes none."""
        return {} if self._named is None and chosen.finite else self.settings.options

    # Telling

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """See Study.tell. Raises ValueError for a trial that was told before."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        with self._mutex, told_as_store_error(self._home.url):
            number = trial.number
            if number in self._outcomes:
                raise ValueError(f"trial {number} was told before")
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
            seconds = time.monotonic() - self._mine.pop(number, time.monotonic())
            values = self._objective_values(outcome)
            state = TrialState.COMPLETE
            if outcome.state == "failed":
                state = TrialState.FAIL
            elif values is None or (outcome.state == "pruned" and self.learns_from_pruned()):
                state = TrialState.PRUNED
            try:
                self._constrain(trial_id, outcome, missing=outcome.state == "complete" and values is None)
                if outcome.error:
                    self._storage.set_trial_user_attr(trial_id, "error", outcome.error)
                self._storage.set_trial_user_attr(trial_id, "outcome", to_record(outcome, seconds))
                self._storage.set_trial_state_values(trial_id, state, values if state == TrialState.COMPLETE else None)
            except UpdateFinishedTrialError:
                log.warning(
                    "trial %d was taken for abandoned and finished by another worker, whose outcome stays", number
                )
                self._note(self._trials())
                return
            self._outcomes[number] = outcome
            self._seconds[number] = seconds

    def _constrain(self, trial_id: int, outcome: Outcome, *, missing: bool) -> None:
        """Record the constraints. Written through the storage, since a trial that runs again has those of its first
        run, which Trial.set_constraint would keep."""
        values = {name: constraint_value(v) for name, v in outcome.violations.items()}
        if missing:
            values["objectives measured"] = constraint_value(math.inf)
        for name, value in values.items():
            self._storage.set_trial_system_attr(trial_id, f"constraints:{name}", value)

    def _objective_values(self, outcome: Outcome) -> list[float] | None:
        """Return what the sampler optimizes, or None where an objective was not measured."""
        if outcome.state == "failed":
            return None
        if not self.objectives:
            return [math.fsum(max(0.0, constraint_value(v)) for v in outcome.violations.values())]
        values = []
        for objective in self.objectives:
            measured = outcome.measurements.get(objective.metric)
            if measured is None or not math.isfinite(measured.value):
                return None
            values.append(float(measured.value))
        return values

    # Results

    def finished(self) -> Sequence[tuple[Trial, Outcome]]:
        """See Study.finished."""
        with self._mutex, told_as_store_error(self._home.url):
            trials = self._trials()
            self._note(trials)
            points = {t.number: self._point(t.user_attrs["point"]) for t in trials if "point" in t.user_attrs}
            return [(Trial(n, points[n]), self._outcomes[n]) for n in sorted(self._outcomes) if n in points]

    def select(self, exclude: Sequence[int] = ()) -> int | None:
        """See Study.select: the best by priority; equals go by the next objective, then to the earlier trial."""
        return best(self.finished(), self.objectives, exclude)

    def explain(self) -> dict[str, Any]:
        """Say why the search came out as it did, as JSON data; see explain.summary."""
        return summary(self.finished(), self.goals, self.objectives)

    def leading(self, count: int) -> list[Point]:
        """Return the points of the best trials so far, feasible ones first, the others by how little they miss."""
        return [dict(trial.point) for trial in leading(self.finished(), self.objectives)[:count]]

    def warm_start(self, first: Sequence[Point]) -> int:
        """Have a study without trials try these points first, as far as they fit. Returns how many it starts from."""
        with self._mutex, told_as_store_error(self._home.url), self._home.lock.held():
            fitting = [dict(p) for p in first if self._encode(p) is not None]
            if fitting and not self._storage.get_n_trials(self._study_id):
                self._storage.set_study_user_attr(self._study_id, "first", canonical_json(fitting))
            return len(self._first_points())

    def keep_work(self, work: Mapping[str, Any]) -> None:
        """Keep what a process that joins needs to know; see drupe.core.joining."""
        # In the order as written: that of the passes is the order of their chain.
        text = json.dumps(work, ensure_ascii=False, allow_nan=False)
        with self._mutex, told_as_store_error(self._home.url), self._home.lock.held():
            if self._storage.get_study_user_attrs(self._study_id).get("work") != text:
                self._storage.set_study_user_attr(self._study_id, "work", text)

    def close(self) -> None:
        """See Study.close."""
        with self._mutex:
            self._closing.close()
            self._presence = None

    # What the storage holds

    def _trials(self) -> list[FrozenTrial]:
        return list(self._storage.get_all_trials(self._study_id, deepcopy=False))

    def _note(self, trials: Sequence[FrozenTrial]) -> None:
        for trial in trials:
            text = trial.user_attrs.get("point")
            if text is not None:
                self._keys.setdefault(text, trial.number)
            if trial.number not in self._outcomes and trial.state.is_finished() and "outcome" in trial.user_attrs:
                record = trial.user_attrs["outcome"]
                self._outcomes[trial.number] = from_record(record)
                self._seconds[trial.number] = record["seconds"]

    def _read_seconds(self) -> list[float]:
        self._note(self._trials())
        return list(self._seconds.values())

    def _present(self) -> Presence:
        """Return this worker's sign of life, from the first trial on: a study that is only read needs none."""
        if self._presence is None:
            folder = self._home.folder or self.folder
            self._presence = Presence(folder, self._storage, self._study_id, local=self._home.local)
            self._closing.callback(self._presence.close)
        return self._presence

    def _first_points(self) -> list[Point]:
        text = self._storage.get_study_user_attrs(self._study_id).get("first")
        return json.loads(text) if text else []

    def _point(self, text: str) -> Point:
        """Read a point; its dimensions in the order of the space, as a person would name them."""
        point = json.loads(text)
        return {axis.dimension.name: point[axis.dimension.name] for axis in self._axes if axis.dimension.name in point}

    def _encode(self, point: Point) -> list[tuple[Axis, Any]] | None:
        """Return a point's parameters, or None where it does not fit the space."""
        values = []
        for axis in self._axes:
            name = axis.dimension.name
            if not self.space.active(axis.dimension, point):
                continue
            try:
                values.append((axis, axis.encode(point[name])))
            except (KeyError, ValueError):
                return None
        return values

    def _decode(self, values: Sequence[tuple[Axis, Any]]) -> Point:
        return {axis.dimension.name: axis.decode(value) for axis, value in values}
