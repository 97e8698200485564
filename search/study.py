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
from drupe.search.drawing import Drawer, Values
from drupe.search.explain import summary
from drupe.search.picking import best, feasible, leading
from drupe.search.presence import Presence
from drupe.search.records import constraint_value, describe, differences, from_record, to_record
from drupe.search.space import point_key
from drupe.search.storage import Home, open_home, told_as_store_error

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from drupe.core.specs import StudySpec

__all__ = ["OptunaStudy"]

log = logging.getLogger(__name__)


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
        self._drawer = Drawer(space, settings, self.objectives)
        self._home: Home = open_home(settings.storage, folder)
        self._storage = self._home.storage
        self._closing.callback(self._storage.remove_session)
        with self._home.lock.held():
            self._study_id = self._create_or_find(describe(space, goals, objectives))
        self._opened = time.monotonic()
        self._spent = sum(self._read_seconds()) / max(1, settings.workers)

    def check(self, space: Space, objectives: Sequence[Objective], settings: StudySettings) -> None:
        """See Study.check."""
        Drawer(space, settings, objectives).check()

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
            number = len(trials)
            if self._drawer.exhausted(self._keys, number):
                return None
            trial_id = self._storage.create_new_trial(self._study_id)
            frozen = self._storage.get_trial(trial_id)
            assert frozen.number == number, "two workers asked at the same moment, though the lock was held"
            return self._begin(frozen)

    def waiting(self) -> bool:
        """Whether trials of other, living workers still run: their outcome, or their death, may bring more to do."""
        with self._mutex, self._home.lock.held():
            running = [t for t in self._trials() if not t.state.is_finished() and self._elsewhere(t)]
            return bool(running) and not self._over()

    def _elsewhere(self, trial: FrozenTrial) -> bool:
        """Whether a trial is another worker's, as one may be that was released here."""
        if trial.number not in self._mine:
            return True
        owner = trial.user_attrs.get("owner")
        return bool(owner) and owner != self._present().name and self._present().alive(owner)

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
        return not owner or not self._present().alive(owner)

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
        return Trial(number, self._drawer.read(text), self._outcomes.get(known) if known != number else None)

    def _draw(self, frozen: FrozenTrial) -> tuple[Point, Values]:
        import optuna

        study = optuna.load_study(study_name=self.name, storage=self._storage, sampler=optuna.samplers.RandomSampler())
        return self._drawer.draw(study, frozen, self._keys, costs=self._costs(), first=self._first_points())

    def _costs(self) -> list[float]:
        return [self._outcomes[n].cost + self._outcomes[n].saved for n in sorted(self._outcomes)]

    def learns_from_pruned(self) -> bool:
        """Whether the sampler can do with trials that were cut short; others are given them as finished ones."""
        return bool(getattr(self._drawer.sampler(self._costs()).entry.spec, "pruned", False))

    def release(self, trial: Trial) -> None:
        """See Study.release."""
        with self._mutex, told_as_store_error(self._home.url), self._home.lock.held():
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
            self._storage.set_trial_user_attr(trial_id, "owner", "")

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
            points = {t.number: self._drawer.read(t.user_attrs["point"]) for t in trials if "point" in t.user_attrs}
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
            fitting = [dict(p) for p in first if self._drawer.encode(p) is not None]
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
