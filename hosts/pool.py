"""Warm workers, one a running job; one that died is replaced, one that is free is used again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drupe.core.hosts import Events, JobOptions
from drupe.hosts.warm import WarmWorker

__all__ = ["WorkerPool"]


class WorkerPool:
    """The warm workers of one interpreter. Safe to use from several threads."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        """command: what starts Python. env: added to this process's environment."""
        self._command = command
        self._env = env
        self._free: dict[tuple[str, ...], list[WarmWorker]] = {}
        self._lock = threading.Lock()
        self._closed = False

    def run(
        self,
        job: Path,
        options: JobOptions,
        events: Events,
        cancelled: Callable[[], bool],
        *,
        gpus: tuple[str, ...] = (),
    ) -> Mapping[str, Any]:
        """Run a job in a free worker. Raises HostError, StoreError, Interrupted.

        gpus: those that the job may see. A library that has once looked for GPUs does not look again, so a worker
        stays with the ones it began with.
        """
        with self._lock:
            free = self._free.get(gpus)
            worker = free.pop() if free else None
        if worker is not None and not worker.alive:
            worker.kill()
            worker = None
        if worker is None:
            visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
            worker = WarmWorker(self._command, {**self._env, **visible})
        try:
            result = worker.run(
                job, events, cancelled, exclusive=options.exclusive, timeout=options.timeout, env=options.env
            )
        except BaseException:
            # What state it is in nobody knows.
            worker.kill()
            raise
        with self._lock:
            if not (closed := self._closed):
                self._free.setdefault(gpus, []).append(worker)
        if closed:
            worker.close()
        return result

    def close(self) -> None:
        """End the free workers; busy ones end with their jobs."""
        with self._lock:
            workers = [worker for free in self._free.values() for worker in free]
            self._free, self._closed = {}, True
        for worker in workers:
            worker.close()
