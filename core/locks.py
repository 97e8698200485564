"""Locks between processes, on one machine or a shared file system: flock, which ends with the process that holds it."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from drupe.core.disk import store_errors
from drupe.core.errors import Interrupted, StoreError

__all__ = ["file_lock", "gated_lock", "is_held", "is_wanted", "remove_if_free"]

_FIRST_POLL = 0.005
_LAST_POLL = 0.1


@contextmanager
def file_lock(
    path: Path, what: str, cancelled: Callable[[], bool] | None = None, *, shared: bool = False
) -> Iterator[None]:
    """Hold the lock file `path`, waiting for whoever has it.

    Raises Interrupted when `cancelled` says so meanwhile, StoreError when locks don't work there.
    """
    handle = _take(path, what, cancelled, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def gated_lock(
    folder: Path, what: str, cancelled: Callable[[], bool] | None = None, *, exclusive: bool
) -> Iterator[None]:
    """Hold a lock that many may share or one has alone, on two files in `folder`.

    Who waits to have it alone holds the gate, so that nobody new shares it before.
    """
    if exclusive:
        with file_lock(folder / "gate", what, cancelled), file_lock(folder / "held", what, cancelled):
            yield
    else:
        with ExitStack() as held:
            with file_lock(folder / "gate", what, cancelled, shared=True):
                held.enter_context(file_lock(folder / "held", what, cancelled, shared=True))
            yield


def is_wanted(folder: Path) -> bool:
    """Whether somebody has, or waits for, the `gated_lock` of `folder` alone."""
    return is_held(folder / "gate")


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock file `path` alone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(handle)
    return False


def remove_if_free(path: Path) -> None:
    """Remove a lock file that nobody holds."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(handle)


def _take(path: Path, what: str, cancelled: Callable[[], bool] | None, mode: int) -> int:
    wait = _FIRST_POLL
    while True:
        with store_errors(f"{what} can't be locked ({path})"):
            handle = _open(path)
        try:
            fcntl.flock(handle, mode | fcntl.LOCK_NB)
            # A collection may have removed the file between opening and locking: such a lock keeps nobody out.
            if _is(path, handle):
                return handle
            os.close(handle)
            continue
        except OSError as error:
            os.close(handle)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise StoreError(f"{what} can't be locked: {error.strerror}; this file system has no flock") from error
        if cancelled is not None and cancelled():
            raise Interrupted(f"stopped while waiting for {what}, which another process is working on")
        time.sleep(wait)
        wait = min(wait * 1.5, _LAST_POLL)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        # Another user's: to read it is enough for a lock of this machine.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _is(path: Path, handle: int) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    held = os.fstat(handle)
    return (there.st_ino, there.st_dev) == (held.st_ino, held.st_dev)
