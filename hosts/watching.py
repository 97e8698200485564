"""What every host does while a job runs: pass on a cancellation, end what takes too long, follow the events."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from drupe.core.errors import HostError, Interrupted
from drupe.core.host_faults import HEARTBEAT, HEARTBEAT_SECONDS, log_tail
from drupe.core.hosts import Events

__all__ = ["EventFile", "Heartbeat", "Watch"]

_GRACE_SECONDS = 30


class Watch:
    """Watches one job. After a cancellation it has 30 seconds to reach a safe point; after a time-out it is ended."""

    def __init__(self, job: Path, cancelled: Callable[[], bool], timeout: float | None) -> None:
        self._job = job
        self._cancelled = cancelled
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout if timeout else None
        self._stop_by: float | None = None

    def look(self, ask_to_stop: Callable[[], None], end: Callable[[], None]) -> None:
        """Do what is due. To be called at least every half second. Raises Interrupted, HostError."""
        now = time.monotonic()
        if self._stop_by is None and self._cancelled():
            self._stop_by = now + _GRACE_SECONDS
            ask_to_stop()
        if self._stop_by is not None and now > self._stop_by:
            end()
            raise Interrupted("the job did not stop by itself and was ended")
        if self._deadline is not None and now > self._deadline:
            end()
            raise HostError(f"the job ran longer than its {self._timeout:g} s and was ended", log_tail(self._job))

    def extend(self, seconds: float) -> None:
        """Give the job more time: it was stopped meanwhile."""
        if self._deadline is not None:
            self._deadline += seconds

    @property
    def stopping(self) -> bool:
        """Whether the job was asked to stop."""
        return self._stop_by is not None


class Heartbeat:
    """Tells a worker that can't be tied to this process that somebody still waits for its job."""

    def __init__(self, job: Path) -> None:
        self._path = job / HEARTBEAT
        self._path.touch()
        self._last = time.monotonic()

    def beat(self) -> None:
        """To be called at least every few seconds."""
        if time.monotonic() - self._last > HEARTBEAT_SECONDS:
            self._last = time.monotonic()
            self._path.touch()


class EventFile:
    """Follows a job's events.jsonl."""

    def __init__(self, job: Path, events: Events) -> None:
        self._path = job / "events.jsonl"
        self._events = events
        self._read = 0

    def forward(self) -> None:
        """Pass on the events that are new; a line that is half written waits."""
        try:
            with self._path.open("rb") as handle:
                handle.seek(self._read)
                lines, end, _ = handle.read().rpartition(b"\n")
        except OSError:
            return
        self._read += len(lines) + len(end)
        for line in lines.splitlines():
            event: Mapping[str, Any] = json.loads(line)
            self._events(event)
