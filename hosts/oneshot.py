"""Runs one job in a process of its own: under a launcher, in a sandbox, or wherever a command leads to."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from drupe.core.errors import HostError
from drupe.core.host_faults import CANCEL, forget_attempt, log_tail, read_fault
from drupe.core.hosts import Events
from drupe.core.job import read_result
from drupe.hosts.launch import missing_launcher
from drupe.hosts.watching import EventFile, Watch

__all__ = ["ended_how", "result_of", "run_command"]

_POLL_SECONDS = 0.05


def run_command(
    command: Sequence[str],
    job: Path,
    events: Events,
    cancelled: Callable[[], bool],
    *,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
) -> Mapping[str, Any]:
    """Run the command that runs the staged job, and return the job's result. Raises HostError, StoreError, Interrupted.

    env: the whole environment of the command.
    """
    forget_attempt(job)
    with (job / "log.txt").open("ab") as log:
        try:
            process = subprocess.Popen(
                command,
                # Held open as long as this process lives: the worker is on this leash.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=dict(env) if env is not None else None,
                start_new_session=True,
            )
        except OSError as error:
            raise HostError(f"{command[0]} can't be started: {error.strerror}", retry=False) from error
    follow, watch = EventFile(job, events), Watch(job, cancelled, timeout)
    try:
        while process.poll() is None:
            follow.forward()
            watch.look((job / CANCEL).touch, lambda: _signal(process, signal.SIGKILL))
            with suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_SECONDS)
    finally:
        _signal(process, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
    follow.forward()
    return result_of(job, ended_how(process.returncode))


def result_of(job: Path, how: str) -> Mapping[str, Any]:
    """Return the result of a job whose process has ended, or raise what it ended with. how: the process's end."""
    fault = read_fault(job)
    if fault is not None:
        raise fault
    # Under a launcher the failure of one rank ends the first one before it can write a result.
    for folder in (job, *sorted((job / "ranks").glob("*"))):
        result = read_result(folder)
        if result is not None and (folder == job or result["status"] != "done"):
            return result
    tail = log_tail(job)
    missing = missing_launcher(tail)
    if missing is not None:
        raise HostError(missing, tail, retry=False)
    raise HostError(f"the worker died ({how})", tail)


def ended_how(code: int | None) -> str:
    """Say how a process ended."""
    if code is None:
        return "it does not answer"
    if code < 0:
        name = signal.Signals(-code).name
        return f"{name}, most likely out of memory" if name == "SIGKILL" else name
    return f"exit code {code}"


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
