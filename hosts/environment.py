"""PythonEnvironment: jobs in another Python environment of this machine, an existing one or one made from requirements.

It exists because some libraries can't share an environment (onnxruntime and onnxruntime-gpu, say). An environment that
is made from requirements is kept by their digest and used again.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from drupe.core.config import FileRef
from drupe.core.digests import digest_of
from drupe.core.errors import Fault, HostError
from drupe.core.hosts import Events, Host, HostDescription, JobOptions
from drupe.core.locks import file_lock
from drupe.core.machine import devices, fingerprint, gpu_names
from drupe.hosts.config import WorkerConfig, with_config
from drupe.hosts.interpreter import find_interpreter, interpreter_facts
from drupe.hosts.launch import launched, worker_command
from drupe.hosts.local import launched_environment
from drupe.hosts.oneshot import run_command
from drupe.hosts.pool import WorkerPool
from drupe.hosts.slots import Gpus, Slots

__all__ = ["EnvironmentConfig", "PythonEnvironment"]


class EnvironmentConfig(WorkerConfig):
    """Config of PythonEnvironment."""

    python_environment_path: FileRef | None = Field(
        None, description="An existing environment: its folder, its bin folder, or its interpreter."
    )
    requirements: list[str] | str | None = Field(
        None, description="Make an environment of these: requirement strings, or the path of a requirements file."
    )
    environment_variables: Mapping[str, str] = Field(
        default_factory=dict, description="Environment variables of the jobs (Olive's spelling of `environment`)."
    )
    prepend_to_path: list[str] = Field(default_factory=list, description="Folders put before PATH.")

    @model_validator(mode="after")
    def _one_of_two(self) -> EnvironmentConfig:
        if (self.python_environment_path is None) == (self.requirements is None):
            raise ValueError("give either python_environment_path or requirements")
        return self


class PythonEnvironment(Host):
    """Another Python environment of this machine."""

    Config = EnvironmentConfig

    def __init__(self, spec: Any, config: EnvironmentConfig, *, state_dir: Path) -> None:
        super().__init__(spec, config, state_dir=state_dir)
        self._pool: WorkerPool | None = None
        self._slots = Slots(config.slots)
        self._gpus = Gpus(gpu_names())

    def check(self) -> Sequence[Fault]:
        """Return what keeps jobs from running there, without making an environment."""
        if self.config.python_environment_path is None:
            return ()
        try:
            self._interpreter()
            self.describe()
        except HostError as error:
            return (Fault("python_environment_path", str(error), kind="needs"),)
        return ()

    def describe(self) -> HostDescription:
        """Describe the environment; asked once for each state of it. Raises HostError when drupe is not there."""
        interpreter = self._interpreter()
        facts = interpreter_facts(interpreter, self.state_dir, self._environment())
        drupe = facts["versions"].get("drupe")
        if drupe is None:
            raise HostError(
                f"drupe is not installed in the environment of {interpreter}; "
                f"install it: {interpreter} -m pip install drupe"
            )
        return HostDescription(
            versions=facts["versions"],
            devices=devices(),
            slots=self.config.slots or 1,
            python=facts["python"],
            drupe=drupe,
            machine=fingerprint(),
        )

    def run(self, job: Path, options: JobOptions, events: Events, cancelled: Callable[[], bool]) -> Mapping[str, Any]:
        """Run a job; see Host.run."""
        if self._pool is None:
            self._pool = WorkerPool([str(self._interpreter())], self._environment())
        options = with_config(options, self.config)
        with self._slots.take(cancelled), self._gpus.take(options.resources.gpus, cancelled) as gpus:
            if not launched(options, self.config.launcher_processes):
                return self._pool.run(job, options, events, cancelled, gpus=gpus)
            python = [str(self._interpreter())]
            command = worker_command(python, job, options, processes=self.config.launcher_processes)
            env = launched_environment({**self._environment(), **options.env}, gpus)
            return run_command(command, job, events, cancelled, timeout=options.timeout, env=env)

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()

    def _environment(self) -> dict[str, str]:
        own = {**self.config.environment, **self.config.environment_variables}
        path = os.pathsep.join([*self.config.prepend_to_path, own.get("PATH", os.environ.get("PATH", ""))])
        return {**own, "PATH": path, "PYTHONNOUSERSITE": "1"}

    @functools.cache  # noqa: B019 - a host lives as long as its run
    def _interpreter(self) -> Path:
        if self.config.python_environment_path is not None:
            return find_interpreter(Path(self.config.python_environment_path).expanduser())
        return self._made()

    def _made(self) -> Path:
        """Make the environment that the requirements describe, or find it."""
        requirements = self._requirements()
        folder = self.state_dir / f"env-{digest_of([requirements, sys.version])[:24]}"
        interpreter = folder / "bin" / "python"
        self.state_dir.mkdir(parents=True, exist_ok=True)
        if (folder / "complete").exists():
            return interpreter
        # Two drivers that want the same one wait for each other here.
        with file_lock(self.state_dir / f"{folder.name}.lock", "an environment"):
            if (folder / "complete").exists():
                return interpreter
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            wanted = [*requirements, *_ourselves(requirements)]
            done = subprocess.run(
                [interpreter, "-m", "pip", "install", "--quiet", "--no-input", *wanted],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
                raise HostError(
                    f"the environment for {', '.join(requirements)} can't be made: {lines[-1]}", done.stderr
                )
            (folder / "complete").touch()
        return interpreter

    def _requirements(self) -> list[str]:
        wanted = self.config.requirements
        if isinstance(wanted, str):
            try:
                lines = Path(wanted).expanduser().read_text(encoding="utf-8").splitlines()
            except OSError as error:
                message = f"the requirements file {wanted} can't be read: {error.strerror}"
                raise HostError(message, retry=False) from error
            wanted = [line.split("#")[0].strip() for line in lines]
        return [requirement for requirement in wanted or [] if requirement]


def _ourselves(requirements: Sequence[str]) -> list[str]:
    """Return the requirement that brings this very drupe along, unless the user says which one is to be there."""
    if any(re.match(r"drupe\b", requirement, re.IGNORECASE) for requirement in requirements):
        return []
    dist = importlib.metadata.distribution("drupe")
    origin = json.loads(dist.read_text("direct_url.json") or "{}")
    url = str(origin.get("url", ""))
    return [url.removeprefix("file://") if url.startswith("file://") else f"drupe=={dist.version}"]
