"""The warm worker's side of its protocol: jobs one after the other in one process, imports kept.

It reads one JSON object a line from stdin, {"job": folder, "exclusive": bool, "locked": bool, "env": {…}} or
{"cancel": true}, and writes events a line to stdout, the last one of a job being {"event": "ended"}, with "fault" where
the machine failed the job. A timed job says {"event": "alone"}, waits for {"go": true}, measures, and says
{"event": "together"}: the machine's lock is held at the other end, which may stop this process while others measure.
When its input ends it ends too, with whatever it started.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from drupe.core.host_faults import fault_data
from drupe.core.worker import run_job

__all__ = ["serve"]


def serve() -> int:
    """Serve jobs until stdin ends."""
    _wake_when_orphaned()
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    commands = os.fdopen(os.dup(0), "r", encoding="utf-8")
    # Nothing that user code prints or reads may touch the protocol.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return _Serving(commands, protocol).run()


class _Serving:
    def __init__(self, commands: IO[str], protocol: IO[str]) -> None:
        self._protocol = protocol
        self._lock = threading.Lock()
        self._jobs: queue.Queue[Mapping[str, Any]] = queue.Queue()
        self._cancel = threading.Event()
        self._go = threading.Event()
        threading.Thread(target=self._listen, args=(commands,), daemon=True).start()

    def _listen(self, commands: IO[str]) -> None:
        with suppress(ValueError, OSError):
            for line in commands:
                command = json.loads(line)
                if command.get("cancel"):
                    self._cancel.set()
                elif command.get("go"):
                    self._go.set()
                else:
                    # Here, and not where the job starts: a cancellation may follow at once.
                    self._cancel.clear()
                    self._jobs.put(command)
        # The driver is gone, perhaps by a kill: nobody waits for what runs, and the next driver starts it from its
        # checkpoint. An idle worker ends the same way.
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(0)

    def _say(self, event: Mapping[str, Any]) -> None:
        with self._lock:
            self._protocol.write(json.dumps(event) + "\n")
            self._protocol.flush()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._go.clear()
        self._say({"event": "alone"})
        self._go.wait()
        try:
            yield
        finally:
            self._say({"event": "together"})

    def run(self) -> int:
        self._say({"event": "ready", "pid": os.getpid()})
        while True:
            self._run_one(self._jobs.get())

    def _run_one(self, command: Mapping[str, Any]) -> None:
        folder = Path(command["job"])
        kept, directory = dict(os.environ), Path.cwd()
        end: dict[str, Any] = {"event": "ended"}
        try:
            log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
            os.environ.update(command.get("env", {}))
            run_job(
                folder,
                self._say,
                self._cancel.is_set,
                exclusive=command.get("exclusive", False),
                locked=True,
                own_process=True,
                alone=None if command.get("locked", False) else self._alone,
            )
        except Exception as error:
            traceback.print_exc()
            end["fault"] = fault_data(error, folder)
        except SystemExit as error:
            end["fault"] = fault_data(RuntimeError(f"the job's code ended its process: {error}"), folder)
        # The next job must see neither this one's variables nor its directory.
        os.environ.clear()
        os.environ.update(kept)
        with suppress(OSError):
            os.chdir(directory)
        sys.stdout.flush()
        sys.stderr.flush()
        self._say(end)


def _wake_when_orphaned() -> None:
    """Have the kernel wake this process when its driver dies: one that was stopped for a timed job would stay so."""
    import ctypes

    set_death_signal = 1
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_death_signal, int(signal.SIGCONT), 0, 0, 0)
