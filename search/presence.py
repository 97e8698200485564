"""Which workers of a study are alive, so that the trial of a dead one is run again.

On this machine (or over shared files) a worker holds a lock on a file of its own for as long as it lives. Over a
database that several machines use, it counts a heartbeat up; whoever sees no change for a while takes it for dead.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

__all__ = ["Presence"]

BEAT = 10.0
"""Seconds between heartbeats."""
GRACE = 60.0
"""Seconds without a heartbeat after which a worker is taken for dead."""


class Presence:
    """This worker's own sign of life, and what it sees of others'. `name` identifies it in the storage."""

    def __init__(self, folder: Path, storage: BaseStorage, study_id: int, *, local: bool) -> None:
        self.token = uuid.uuid4().hex[:16]
        self.name = f"{socket.gethostname()}:{os.getpid()}:{self.token}"
        self._folder = folder / "workers"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path = self._folder / f"{self.token}.alive"
        # Held open on purpose: the lock ends with the process.
        self._handle = self._path.open("w")
        fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._storage, self._study_id, self._local = storage, study_id, local
        self._seen: dict[str, tuple[Any, float]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if not local:
            self._beat(0)
            self._thread = threading.Thread(target=self._beats, name="heartbeat", daemon=True)
            self._thread.start()

    def alive(self, owner: str) -> bool:
        """Whether the worker of that name still runs, as far as can be told from here."""
        if owner == self.name:
            return True
        host, _, rest = owner.partition(":")
        token = rest.rpartition(":")[2]
        path = self._folder / f"{token}.alive"
        if path.exists():
            return not self._buried(path)
        if self._local or host == socket.gethostname():
            # It kept its file elsewhere (another output folder on this machine) or is gone: its process tells.
            return not self._local and _runs(rest.partition(":")[0])
        return self._beats_on(token)

    def close(self) -> None:
        """End this worker's sign of life."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self._handle.close()
        self._path.unlink(missing_ok=True)

    def _buried(self, path: Path) -> bool:
        try:
            with path.open("r") as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        path.unlink(missing_ok=True)
        return True

    def _beats_on(self, token: str) -> bool:
        beat = self._storage.get_study_user_attrs(self._study_id).get(f"beat:{token}")
        known = self._seen.get(token)
        if known is None or known[0] != beat:
            self._seen[token] = (beat, time.monotonic())
            return True
        return time.monotonic() - known[1] < GRACE

    def _beats(self) -> None:
        count = 0
        while not self._stop.wait(BEAT):
            count += 1
            try:
                self._beat(count)
            except Exception:
                # A database that is away for a moment is noticed where it matters, by ask and tell.
                continue

    def _beat(self, count: int) -> None:
        self._storage.set_study_user_attr(self._study_id, f"beat:{self.token}", count)


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError):
        return True
    return True
