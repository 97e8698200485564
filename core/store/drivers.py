"""The drivers that use a store: who lives, since when, and the job folders of each.

    drivers/ID/.lock    flock, held while the driver lives; the kernel releases it with the process
    drivers/ID/…        its job folders

A driver's folder is made under another name and renamed into place with its lock already held, so that nobody ever sees
a living driver's folder unlocked. Folders whose lock is free are a dead driver's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path

from drupe.core.store.files import unique_name

__all__ = ["Drivers"]

_LOCK = ".lock"
_LEFT_ALONE_SECONDS = 3600


class Drivers:
    """The drivers of one store, this process among them from its first `register` on."""

    def __init__(self, folder: Path, making: Path) -> None:
        """folder: where drivers have their folders. making: where one is made, on the same file system."""
        self._folder = folder
        self._making = making
        self._own: Path | None = None
        self._pid = 0
        self._lock = threading.Lock()

    def register(self) -> Path:
        """Return this driver's folder. Raises OSError."""
        with self._lock:
            if self._own is None or self._pid != os.getpid():
                name = unique_name()
                made = self._making / f"driver-{name}"
                made.mkdir()
                handle = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                fcntl.flock(handle, fcntl.LOCK_EX)
                own = self._folder / name
                made.rename(own)
                self._own, self._pid = own, os.getpid()
                weakref.finalize(self, _leave, own, handle, os.getpid())
            return self._own

    def clean(self) -> None:
        """Remove the folders of dead drivers, and what died while it was being made."""
        for folder in self._folder.iterdir():
            if folder != self._own and _is_dead(folder):
                shutil.rmtree(folder, ignore_errors=True)
        for folder in self._making.glob("driver-*"):
            with suppress(OSError):
                if time.time() - folder.stat().st_mtime > _LEFT_ALONE_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)

    def oldest_other(self) -> float | None:
        """Return since when the oldest other driver lives, or None when there is none."""
        since = []
        for folder in self._folder.iterdir():
            if folder != self._own and not _is_dead(folder):
                with suppress(OSError):
                    since.append((folder / _LOCK).stat().st_mtime)
        return min(since, default=None)


def _is_dead(folder: Path) -> bool:
    try:
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        # Its lock goes last when a folder is removed, so whoever removes it was stopped in between.
        return True
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _leave(own: Path, handle: int, pid: int) -> None:
    # A forked child that ends is not the driver that ends.
    if os.getpid() == pid:
        shutil.rmtree(own, ignore_errors=True)
        os.close(handle)
