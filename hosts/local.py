"""LocalSystem: jobs on this machine, in warm worker processes or, on request, in this very process."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from drupe.core.errors import HostError
from drupe.core.hosts import Events, Host, HostConfig, HostDescription, JobOptions
from drupe.core.machine import devices, fingerprint
from drupe.hosts.warm import WarmWorker

__all__ = ["LocalConfig", "LocalSystem", "WorkerConfig", "WorkerPool", "with_timeout"]


class WorkerConfig(HostConfig):
    """What every host with warm workers takes."""

    slots: int = Field(0, ge=0, description="How many jobs run at once; 0: as many as the search has workers.")
    threads: int | None = Field(None, ge=1, description="Threads of a job; default: all cores, shared by the slots.")
    resources: Mapping[str, Any] = Field(default_factory=dict, description="cpus, gpus, memory (bytes), threads.")
    timeout: float | None = Field(None, gt=0, description="Seconds after which a job is ended.")
    environment: Mapping[str, str] = Field(default_factory=dict, description="Environment variables of the jobs.")


class LocalConfig(WorkerConfig):
    """Config of LocalSystem."""

    in_process: bool = Field(
        False, description="Run jobs in Drupe's own process: quicker to start, but a crash takes the run along."
    )


class WorkerPool:
    """Warm workers, one a running job; one that died is replaced, one that is free is used again."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._command = command
        self._env = env
        self._free: list[WarmWorker] = []
        self._lock = threading.Lock()

    def run(self, job: Path, options: JobOptions, events: Events, cancelled: Callable[[], bool]) -> Mapping[str, Any]:
        """Run a job in a free worker. Raises HostError, StoreError, Interrupted."""
        with self._lock:
            worker = self._free.pop() if self._free else None
        if worker is None or not worker.alive:
            worker = WarmWorker(self._command, self._env)
        try:
            result = worker.run(
                job, events, cancelled, exclusive=options.exclusive, timeout=options.timeout, env=options.env
            )
        except BaseException:
            # What state it is in nobody knows.
            worker.kill()
            raise
        with self._lock:
            self._free.append(worker)
        return result

    def close(self) -> None:
        """End the free workers; busy ones end with their jobs."""
        with self._lock:
            workers, self._free = self._free, []
        for worker in workers:
            worker.close()


class LocalSystem(Host):
    """This machine."""

    Config = LocalConfig

    def __init__(self, spec: Any, config: LocalConfig, *, state_dir: Path) -> None:
        super().__init__(spec, config, state_dir=state_dir)
        self._pool = WorkerPool([sys.executable], dict(config.environment))
        self._in_process = threading.Lock()

    def describe(self) -> HostDescription:
        """Describe this machine; versions are those of this environment."""
        return _describe(self.config.slots or 1)

    def run(self, job: Path, options: JobOptions, events: Events, cancelled: Callable[[], bool]) -> Mapping[str, Any]:
        """Run a job; see Host.run."""
        if not self.config.in_process:
            return self._pool.run(job, with_timeout(options, self.config.timeout), events, cancelled)
        from drupe.core.worker import run_job

        # One at a time: thread counts and the log belong to the process.
        with self._in_process:
            kept = dict(os.environ)
            os.environ.update({**self.config.environment, **options.env})
            try:
                return run_job(job, events, cancelled, exclusive=options.exclusive)
            finally:
                os.environ.clear()
                os.environ.update(kept)

    def close(self) -> None:
        """End the workers."""
        self._pool.close()


def with_timeout(options: JobOptions, timeout: float | None) -> JobOptions:
    """Return options whose time-out is the host's where the job names none."""
    return replace(options, timeout=options.timeout or timeout)


class _Versions(Mapping[str, str]):
    """The versions of installed distributions, each looked up when asked for: listing all takes long."""

    def __getitem__(self, name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise KeyError(name) from None

    def __iter__(self) -> Any:
        return iter({dist.name.lower().replace("_", "-") for dist in importlib.metadata.distributions() if dist.name})

    def __len__(self) -> int:
        return sum(1 for _ in self)


@functools.cache
def _describe(slots: int) -> HostDescription:
    try:
        drupe = importlib.metadata.version("drupe")
    except importlib.metadata.PackageNotFoundError as error:
        raise HostError("drupe itself is not installed in this environment; pip install it") from error
    return HostDescription(
        versions=_Versions(),
        devices=devices(),
        slots=slots,
        python=platform.python_version(),
        drupe=drupe,
        machine=fingerprint(),
    )
