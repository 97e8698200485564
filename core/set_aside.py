"""Trials that a host failed, after every retry: they are set aside, others go on, and the next run takes them up.

A host that fails FAILURES_IN_A_ROW trials, none having run there to its end between, is left alone: the target whose
trial that was stops, and the targets after it still have their turn.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from drupe.core.errors import HostError
from drupe.core.results import Candidate, TargetResult
from drupe.core.study import Study, Trial

__all__ = ["FAILURES_IN_A_ROW", "HostFailures", "SetAside", "stop"]

FAILURES_IN_A_ROW = 3
"""After so many trials in a row that the same host failed, its target stops."""


class HostFailures:
    """How many trials in a row each host has failed, over all targets of a run. Safe to use from several threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def failed(self, host: str) -> int:
        """Count a trial that the host failed; return how many that makes in a row."""
        with self._lock:
            self._counts[host] += 1
            return self._counts[host]

    def worked(self, candidate: Candidate, target: str) -> None:
        """Note that a trial came to its end on its hosts. One that failed, or came from the store, tells nothing."""
        if candidate.state != "failed" and candidate.cost > 0:
            with self._lock:
                for host in {target, *(step["host"] for step in candidate.chain)}:
                    self._counts.pop(host, None)


class SetAside:
    """Sets trials of one target aside, until one of its hosts has failed too many in a row."""

    def __init__(
        self, study: Study, result: TargetResult, failures: HostFailures, events: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._study, self._result, self._failures, self._events = study, result, failures, events

    @property
    def stopped(self) -> bool:
        """Whether no more trials are to be run."""
        return self._result.status == "stopped"

    def take(self, trial: Trial, error: HostError) -> None:
        """Set a trial aside: it stays unfinished in the study, for another process or for the next run."""
        release: Callable[[Trial], None] | None = getattr(self._study, "release", None)
        if release is not None:
            release(trial)
        entry = {"number": trial.number, "point": dict(trial.point), "host": error.host, "error": str(error)}
        self._result.set_aside = sorted([*self._result.set_aside, entry], key=lambda one: one["number"])
        self._events({"event": "trial set aside", "target": self._result.target, **entry})
        count = self._failures.failed(error.host)
        if count >= FAILURES_IN_A_ROW and not self.stopped:
            stop(self._result, error, f"{_named(error)} failed {count} trials in a row")

    def none_left(self) -> bool:
        """Whether nothing can be decided: the search was stopped, or its hosts failed every trial that there is."""
        if self._result.set_aside and not self._result.candidates and not self.stopped:
            last = self._result.set_aside[-1]
            error = HostError(last["error"], host=last["host"])
            stop(self._result, error, f"{_named(error)} failed every trial")
        return self.stopped


def stop(result: TargetResult, error: HostError, what: str = "") -> None:
    """Note that a target stops at a host's error. what: what the host did, for a person."""
    result.status = "stopped"
    result.message = f"{what or f'{_named(error)} failed'}, last with: {error}; the same command goes on from here"


def _named(error: HostError) -> str:
    return f"the host {error.host}" if error.host else "a host"
