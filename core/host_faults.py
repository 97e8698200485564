"""How a worker tells its host that the machine failed the job: JOB/host_error.json, and the same data on a wire."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe.core.disk import is_full
from drupe.core.errors import DrupeError, HostError, StoreError
from drupe.core.job import SCHEMA, write_json

__all__ = [
    "CANCEL",
    "HEARTBEAT",
    "HEARTBEAT_SECONDS",
    "fault_data",
    "fault_error",
    "forget_attempt",
    "log_tail",
    "read_fault",
    "write_fault",
]

CANCEL = "cancel"
"""The file in a job's folder by which a host asks a worker to stop that it can't send a signal to."""
HEARTBEAT = "heartbeat"
"""The file in a job's folder that a host touches while it waits, where a worker can't be tied to it otherwise."""
HEARTBEAT_SECONDS = 15
_FILE = "host_error.json"
_TAIL_LINES = 20
_TAIL_BYTES = 16 * 1024


def forget_attempt(job: Path) -> None:
    """Remove what an earlier attempt at a job said of its end, before the job is tried again."""
    for name in (_FILE, "result.json", "events.jsonl", CANCEL):
        (job / name).unlink(missing_ok=True)


def log_tail(job: Path, lines: int = _TAIL_LINES) -> str:
    """Return the last lines of a job's log, without reading the rest of it."""
    try:
        with (job / "log.txt").open("rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - _TAIL_BYTES))
            text = handle.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def fault_data(error: BaseException, job: Path | None = None) -> dict[str, Any]:
    """Return an error as JSON data; `fault_error` makes it an error again."""
    tail = getattr(error, "log_tail", "") or (log_tail(job) if job else "")
    if isinstance(error, OSError) and is_full(error):
        error = StoreError(f"{error.strerror}; make room and run the same command again")
    return {
        "schema": SCHEMA,
        "type": "StoreError" if isinstance(error, StoreError) else "HostError",
        "message": str(error) if isinstance(error, DrupeError) else f"{type(error).__name__}: {error}",
        "log_tail": tail,
        "retry": getattr(error, "retry", True),
    }


def fault_error(data: Mapping[str, Any]) -> HostError | StoreError:
    """Return the error that `fault_data` was given, as HostError or StoreError."""
    if data["type"] == "StoreError":
        return StoreError(data["message"])
    return HostError(data["message"], data.get("log_tail", ""), retry=data.get("retry", True))


def write_fault(job: Path, error: BaseException) -> None:
    """Write an error into a job's folder. Raises OSError."""
    write_json(job / _FILE, fault_data(error, job), durable=False)


def read_fault(job: Path) -> HostError | StoreError | None:
    """Return the error that a worker wrote into its job's folder, if any."""
    try:
        return fault_error(json.loads((job / _FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError):
        return None
