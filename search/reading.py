"""Reads a study that a run left, or is still at, without taking part in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drupe.core.errors import ConfigError
from drupe.core.study import Goal, Objective, Outcome, Trial
from drupe.search.records import from_record
from drupe.search.storage import JOURNAL, Home, open_home

__all__ = ["StudyView", "find_home", "read_studies", "read_study", "read_work"]


@dataclass(frozen=True)
class StudyView:
    """A study as it stands. finished: trials and outcomes by number. running: numbers of trials that were not told.
    set_aside: numbers of those that their hosts failed; the next run takes them up."""

    name: str
    goals: tuple[Goal, ...]
    objectives: tuple[Objective, ...]
    finished: tuple[tuple[Trial, Outcome], ...]
    running: tuple[int, ...] = ()
    set_aside: tuple[int, ...] = ()
    seconds: float = 0.0
    space: Sequence[dict[str, Any]] = field(default_factory=tuple)

    def outcome(self, number: int) -> Outcome:
        """Return the outcome of a trial. Raises KeyError."""
        return next((o for t, o in self.finished if t.number == number), None) or _absent(number)

    def trial(self, number: int) -> Trial:
        """Return a finished trial. Raises KeyError."""
        return next((t for t, _ in self.finished if t.number == number), None) or _absent(number)


def find_home(where: str) -> Home:
    """Open the storage that `where` names: an output folder, a study folder or file, or a URL.

    Raises ConfigError where there is none.
    """
    if "://" in where:
        return open_home(where, Path.cwd())
    path = Path(where)
    for candidate in (path / "study" / JOURNAL, path / JOURNAL, path):
        if candidate.is_file():
            return open_home(f"journal://{candidate.absolute()}", candidate.parent)
    raise ConfigError(
        f"{where}: no study here; expected an output folder with study/{JOURNAL}, a journal file, or a storage URL"
    )


def read_studies(home: Home) -> list[StudyView]:
    """Return every study of a storage that Drupe made, the latest last."""
    return [_read(home, study) for study in _ours(home)]


def read_study(home: Home, name: str | None = None) -> StudyView:
    """Return the study of that name, or whose name begins so; without a name the latest.

    Raises ConfigError where there is none, or more than one.
    """
    ours = _ours(home)
    if not ours:
        raise ConfigError(f"{home.url} holds no study yet")
    if name is None:
        return _read(home, ours[-1])
    exact = [s for s in ours if s.study_name == name] or [s for s in ours if s.study_name.startswith(name)]
    if len(exact) != 1:
        names = ", ".join(s.study_name for s in ours)
        raise ConfigError(f"{len(exact)} studies are named {name!r}; {home.url} holds: {names}")
    return _read(home, exact[0])


def read_work(home: Home, name: str) -> tuple[str, dict[str, Any]]:
    """Return the whole name of a study and what its driver left for processes that join. Raises ConfigError."""
    view = read_study(home, name)
    text = next(s for s in _ours(home) if s.study_name == view.name).user_attrs.get("work")
    if text is None:
        raise ConfigError(f"the study {view.name} has no driver that can be joined; start one with `drupe run` first")
    work: dict[str, Any] = json.loads(text)
    return view.name, work


def _ours(home: Home) -> list[Any]:
    studies = sorted(home.storage.get_all_studies(), key=lambda s: s._study_id)
    return [study for study in studies if "definition" in study.user_attrs]


def _read(home: Home, study: Any) -> StudyView:
    definition = json.loads(study.user_attrs["definition"])
    finished, seconds = [], 0.0
    running: list[int] = []
    aside: list[int] = []
    for trial in home.storage.get_all_trials(study._study_id, deepcopy=False):
        record = trial.user_attrs.get("outcome")
        if not trial.state.is_finished() or record is None:
            (aside if trial.user_attrs.get("owner") == "" else running).append(trial.number)
            continue
        finished.append((Trial(trial.number, json.loads(trial.user_attrs["point"])), from_record(record)))
        seconds += record["seconds"]
    return StudyView(
        study.study_name,
        tuple(Goal(*goal) for goal in definition["goals"]),
        tuple(Objective(*objective) for objective in definition["objectives"]),
        tuple(finished),
        tuple(running),
        tuple(aside),
        seconds,
        tuple(definition["space"]),
    )


def _absent(number: int) -> Any:
    raise KeyError(number)
