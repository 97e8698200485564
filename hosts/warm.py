"""A warm worker process: started once, given jobs one after the other, ended with its driver.

It runs in a process group of its own, so that Ctrl-C reaches the driver only, which then asks the worker to stop at a
safe point. The machine's lock is held at this end: while a timed job measures, the process of any other job is stopped.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from drupe.core.errors import HostError, Interrupted
from drupe.core.host_faults import fault_error, forget_attempt, log_tail, read_fault
from drupe.core.hosts import Events
from drupe.core.job import read_result
from drupe.core.machine import MachineShare
from drupe.hosts.oneshot import ended_how
from drupe.hosts.pipes import close_input, let_go
from drupe.hosts.watching import Watch

__all__ = ["WarmWorker"]

_POLL_SECONDS = 0.1
_START_SECONDS = 120
_TAIL_LINES = 20
_LONGEST_PAUSE = 600
"""Seconds. No timed job takes longer, unless it waits for something that the stopped job holds."""


class WarmWorker:
    """One worker process. Not for several threads at once; a pool gives each job its own."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """command: what starts Python there, to which the worker's arguments are added. Raises HostError."""
        self._messages: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
        try:
            self._process = subprocess.Popen(
                [*command, "-m", "drupe.core.worker", "--serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                # Threads that wait by spinning starve each other where something else runs on the machine too.
                env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **(env or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise HostError(f"no worker can be started with {command[0]}: {error.strerror}") from error
        self._errors: list[str] = []
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()
        self._draining = threading.Thread(target=self._drain, daemon=True)
        self._draining.start()
        first = self._next(_START_SECONDS)
        if first is None or first.get("event") != "ready":
            raise self._not_started(command[0])

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def run(
        self,
        job: Path,
        events: Events,
        cancelled: Callable[[], bool],
        *,
        exclusive: bool = False,
        locked: bool = False,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Mapping[str, Any]:
        """Run a staged job and return its result. Raises HostError, StoreError, Interrupted.

        After a cancellation the worker has 30 seconds to reach a safe point; after a time-out it is killed.
        """
        forget_attempt(job)
        with MachineShare(cancelled) as share:
            if not locked:
                share.take()
            self._send({"job": str(job), "exclusive": exclusive, "locked": locked, "env": dict(env or {})})
            return self._follow(job, events, Watch(job, cancelled, timeout), share)

    def _follow(self, job: Path, events: Events, watch: Watch, share: MachineShare) -> Mapping[str, Any]:
        paused = 0.0
        while True:
            watch.look(lambda: self._send({"cancel": True}), self.kill)
            if share.wanted():
                paused += self._pause(share, watch)
            try:
                message = self._messages.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if message is None:
                raise read_fault(job) or HostError(f"the worker died ({self._how_it_ended()})", log_tail(job))
            if message["event"] == "alone":
                share.take(exclusive=True)
                self._send({"go": True})
                continue
            if message["event"] == "together":
                paused += self._pause(share, watch)
                continue
            if message["event"] != "ended":
                events(message)
                continue
            if "fault" in message:
                raise fault_error(message["fault"])
            result = read_result(job)
            if result is None:
                raise HostError("the worker ended the job without a result", log_tail(job))
            return {**result, "seconds": max(0.0, result["seconds"] - paused)} if "seconds" in result else result

    def _pause(self, share: MachineShare, watch: Watch) -> float:
        """Stop the process until no timed job has or wants the machine; return for how many seconds."""
        started = time.monotonic()
        share.give_up()
        self._signal(signal.SIGSTOP)
        try:
            share.take(until=lambda: time.monotonic() - started > _LONGEST_PAUSE)
        except Interrupted:
            # Cancelled, which the next look sees to; or the timed job waits for this one, and is disturbed instead.
            share.give_up()
        finally:
            self._signal(signal.SIGCONT)
        seconds = time.monotonic() - started
        watch.extend(seconds)
        return seconds

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End the process and what it started; let go of the pipes to it."""
        self._signal(signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        let_go(self._process, self._listening, self._draining)

    def close(self) -> None:
        """Let the process end: it does when its input does."""
        close_input(self._process)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        # What it started and left behind would keep the pipes open.
        self.kill()

    def _send(self, command: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise HostError(f"the worker is gone ({self._how_it_ended()})") from error

    def _next(self, seconds: float) -> Mapping[str, Any] | None:
        try:
            return self._messages.get(timeout=seconds)
        except queue.Empty:
            return None

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            try:
                for line in lines:
                    self._messages.put(json.loads(line))
            except ValueError:
                # Something in that environment writes to the worker's output: it can't be understood any more.
                self.kill()
        self._messages.put(None)

    def _drain(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self._errors.append(line.rstrip())
                del self._errors[:-200]

    def _not_started(self, python: str) -> HostError:
        """End what did not get ready, and say what it said last: mostly that something can't be imported there."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        ended = f"ended before it was ready ({self._how_it_ended()})" if not self.alive else "did not answer"
        self.kill()
        self._draining.join(2)
        said = [line for line in self._errors if line.strip()][-_TAIL_LINES:]
        last = f": {said[-1].strip()}" if said else ""
        return HostError(f"the worker started with {python} {ended}{last}", "\n".join(said))

    def _how_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        return ended_how(self._process.returncode)
