"""Runs the trials of a study, several at a time: each worker asks for a trial, has it run, and asks again.

A trial whose next step another worker is at, of this process or of another one, would only wait for it. With several
workers such a trial is put aside and another one is taken meanwhile; it is run, under its own number, as soon as that
step is done. As many are put aside as there are workers (at least two): a sampler is best asked when it has learnt.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from drupe.core.errors import ConfigError, HostError, Interrupted
from drupe.core.measuring import Measurer
from drupe.core.model import Model
from drupe.core.results import TargetResult
from drupe.core.study import Study, StudySettings, Trial
from drupe.core.trials import TrialRunner

__all__ = ["TrialWorkers", "next_step", "timed_search"]

_POLL_SECONDS = 0.25


class TrialWorkers:
    """The workers of one study in this process, a thread each; the work itself is done where the hosts do it."""

    def __init__(
        self,
        study: Study,
        runner: TrialRunner,
        run: Callable[[Trial, threading.Lock], None],
        *,
        workers: int,
        cancelled: Callable[[], bool],
        stop: Callable[[], None],
        aside: bool,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """run: runs a trial and tells its outcome, holding the lock for the latter. stop: makes the trials of the other
        workers end when one of them could not go on. aside: whether trials that would wait are put aside. stopped:
        whether no more trials are to be begun; those that run are run to their end."""
        self._study = study
        self._runner = runner
        self._run = run
        self._workers = workers
        self._cancelled = cancelled
        self._stop = stop
        self._stopped = stopped
        # Even a single worker, of several processes, is to get another trial in place of one that waits.
        self._may_wait = max(2, workers) if aside else 0
        self._lock = threading.Lock()
        self._aside: list[Trial] = []
        self._claimed: dict[int, str] = {}
        self._failures: list[BaseException] = []

    def work(self) -> None:
        """Run trials until the study has no more. Raises what kept a worker from going on, Interrupted."""
        threads = [threading.Thread(target=self._work, name=f"trial-{n}", daemon=True) for n in range(1, self._workers)]
        for thread in threads:
            thread.start()
        self._work()
        for thread in threads:
            thread.join()
        if self._failures:
            raise next((f for f in self._failures if not isinstance(f, Interrupted)), self._failures[0])
        if self._cancelled():
            raise Interrupted("stopped by the user; the same command goes on from here")

    def _work(self) -> None:
        while not self._failures and not self._cancelled() and not self._stopped():
            try:
                with self._lock:
                    trial = self._take()
                    done = trial is None and not self._aside and not _waiting(self._study)
                if done:
                    return
                if trial is None:
                    time.sleep(_POLL_SECONDS)
                    continue
                try:
                    self._run(trial, self._lock)
                finally:
                    with self._lock:
                        self._claimed.pop(trial.number, None)
            except BaseException as error:
                self._failures.append(error)
                self._stop()
                return

    def _take(self) -> Trial | None:
        """Return a trial that can go on at once; None where there is none now. The lock is held."""
        for trial in self._aside:
            if not self._busy(trial):
                self._aside.remove(trial)
                return trial
        while len(self._aside) < max(1, self._may_wait):
            asked = self._study.ask()
            if asked is None or not self._may_wait or not self._busy(asked):
                return asked
            self._aside.append(asked)
        return None

    def _busy(self, trial: Trial) -> bool:
        """Whether another worker is at the next step of a trial; where none is, this one is taken to be from now on."""
        key = next_step(self._runner, trial.point) if trial.answered is None else None
        if key is None:
            return False
        if key in self._claimed.values() or self._runner.engine.store.locked(key):
            return True
        self._claimed[trial.number] = key
        return False


def next_step(runner: TrialRunner, point: Mapping[str, Any]) -> str | None:
    """Return the key of the first step of a point's chain that is not stored; None where all are, or none fits."""
    engine, model = runner.engine, runner.input_model
    accelerator = engine.workflow.systems[runner.target].accelerators[0]
    try:
        for step in runner.plan.chain(point, runner.target):
            key = engine.pass_key(step, model, accelerator)
            record = engine.store.get(key)
            if record is None:
                return key
            model = Model.from_json(record["model"])
    except (ConfigError, HostError):
        # What is wrong with this chain, or with its host, is told when it is run.
        return None
    return None


def _waiting(study: Study) -> bool:
    """Whether trials of other processes still run, as far as the study knows of such."""
    waiting: Callable[[], bool] | None = getattr(study, "waiting", None)
    return waiting is not None and waiting()


@contextmanager
def timed_search(measurer: Measurer, result: TargetResult, settings: StudySettings | None) -> Iterator[None]:
    """Note in `result` how long the trials took, and how much of that timed metrics had a machine alone."""
    if settings is None:
        yield
        return
    started, before = time.monotonic(), measurer.exclusive_seconds
    try:
        yield
    finally:
        seconds = time.monotonic() - started
        exclusive = measurer.exclusive_seconds - before
        result.search = {
            "workers": settings.workers,
            "seconds": round(seconds, 3),
            "exclusive_seconds": round(exclusive, 3),
            "exclusive_share": round(exclusive / seconds, 4) if seconds else 0.0,
        }
