"""LocalSystem: jobs on this machine, in warm worker processes or, on request, in this process or in a sandbox."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from drupe.core.errors import Fault, HostError
from drupe.core.hosts import Events, Host, HostDescription, JobOptions
from drupe.core.machine import devices, fingerprint, gpu_names, machine_lock
from drupe.hosts.config import WorkerConfig, with_config
from drupe.hosts.launch import launched, worker_command
from drupe.hosts.oneshot import run_command
from drupe.hosts.pool import WorkerPool
from drupe.hosts.slots import Gpus, Slots

__all__ = ["LocalConfig", "LocalSystem"]


class LocalConfig(WorkerConfig):
    """Config of LocalSystem."""

    in_process: bool = Field(
        False, description="Run jobs in Drupe's own process: quicker to start, but a crash takes the run along."
    )
    sandbox: Literal["bubblewrap"] | None = Field(
        None, description="Run each job in a sandbox: no network, nothing writable but its own folder."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> LocalConfig:
        if self.in_process and self.sandbox:
            raise ValueError("a job can't be in this process and in a sandbox; take in_process or sandbox away")
        return self


class LocalSystem(Host):
    """This machine."""

    Config = LocalConfig
    light = True

    def __init__(self, spec: Any, config: LocalConfig, *, state_dir: Path) -> None:
        super().__init__(spec, config, state_dir=state_dir)
        self._pool = WorkerPool([sys.executable], dict(config.environment))
        self._in_process = threading.Lock()
        self._slots = Slots(config.slots)
        self._gpus = Gpus(gpu_names())

    def check(self) -> Sequence[Fault]:
        """Return what keeps jobs from running: a sandbox that is not installed or not allowed here, too few GPUs."""
        faults = []
        if self.config.sandbox is not None:
            from drupe.hosts.bubblewrap import sandbox_fault

            found = sandbox_fault()
            if found:
                faults.append(Fault("sandbox", found, kind="needs"))
        wanted = (self.config.resources.gpus if self.config.resources else None) or 0
        if wanted > len(gpu_names()):
            found = f"{wanted:g} asked for; this machine has {len(gpu_names()) or 'none'}"
            faults.append(Fault("resources.gpus", found, kind="needs"))
        return faults

    def describe(self) -> HostDescription:
        """Describe this machine; versions are those of this environment."""
        return _describe(self.config.slots or 1)

    def run(self, job: Path, options: JobOptions, events: Events, cancelled: Callable[[], bool]) -> Mapping[str, Any]:
        """Run a job; see Host.run."""
        options = with_config(options, self.config)
        with self._slots.take(cancelled), self._gpus.take(options.resources.gpus, cancelled) as gpus:
            if self.config.sandbox is not None:
                return self._sandboxed(job, options, events, cancelled)
            if launched(options, self.config.launcher_processes):
                command = worker_command([sys.executable], job, options, processes=self.config.launcher_processes)
                env = launched_environment({**self.config.environment, **options.env}, gpus)
                return run_command(command, job, events, cancelled, timeout=options.timeout, env=env)
            if self.config.in_process:
                return self._here(job, options, events, cancelled)
            return self._pool.run(job, options, events, cancelled, gpus=gpus)

    def close(self) -> None:
        """End the workers."""
        self._pool.close()

    def _sandboxed(
        self, job: Path, options: JobOptions, events: Events, cancelled: Callable[[], bool]
    ) -> Mapping[str, Any]:
        from drupe.core.worker import LAUNCHED
        from drupe.hosts.bubblewrap import sandbox_command

        ranks = {LAUNCHED: "1"} if launched(options, self.config.launcher_processes) else {}
        command = sandbox_command(job, {**self.config.environment, **options.env, **ranks})
        command += worker_command([sys.executable], job, options, processes=self.config.launcher_processes, locked=True)
        # What runs in the sandbox is not trusted to leave the machine's lock alone.
        with machine_lock(options.exclusive, cancelled):
            return run_command(command, job, events, cancelled, timeout=options.timeout)

    def _here(self, job: Path, options: JobOptions, events: Events, cancelled: Callable[[], bool]) -> Mapping[str, Any]:
        from drupe.core.worker import run_job

        # One at a time: thread counts, variables and the log belong to the process.
        with self._in_process:
            kept = dict(os.environ)
            os.environ.update({**self.config.environment, **options.env})
            try:
                return run_job(job, events, cancelled, exclusive=options.exclusive)
            finally:
                os.environ.clear()
                os.environ.update(kept)


def launched_environment(env: Mapping[str, str], gpus: Sequence[str]) -> dict[str, str]:
    """Return the environment of a worker under a launcher."""
    from drupe.core.worker import LAUNCHED

    visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    return {**os.environ, **env, **visible, LAUNCHED: "1"}


class _Versions(Mapping[str, str]):
    """The versions of installed distributions, each looked up when asked for: listing all takes long."""

    def __getitem__(self, name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter({dist.name.lower().replace("_", "-") for dist in importlib.metadata.distributions() if dist.name})

    def __len__(self) -> int:
        return sum(1 for _ in self)


@functools.cache
def _describe(slots: int) -> HostDescription:
    try:
        drupe = importlib.metadata.version("drupe")
    except importlib.metadata.PackageNotFoundError as error:
        raise HostError("drupe itself is not installed in this environment; pip install it", retry=False) from error
    return HostDescription(
        versions=_Versions(),
        devices=devices(),
        slots=slots,
        python=platform.python_version(),
        drupe=drupe,
        machine=fingerprint(),
    )
