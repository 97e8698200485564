"""What the store does with files: durable writes by rename, copies, folder syncs."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["STAMP_NS", "copy", "move_in", "remove", "stamp", "unique_name", "write_durably"]

STAMP_NS = 946_684_800_000_000_000
"""The modification time of every blob, the first second of 2000: a write through any hard link of it shows."""
_FICLONE = 0x40049409
_counter = itertools.count()


def unique_name() -> str:
    """Return a name that no other thread or process of any machine gives."""
    return f"{os.uname().nodename}-{os.getpid()}-{next(_counter)}-{time.time_ns():x}"


def write_durably(data: bytes, path: Path, temporary: Path, *, read_only: bool = False) -> None:
    """Write a file through a temporary one of the same file system: synced, then renamed. Raises OSError."""
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        if read_only:
            stamp(temporary)
        move_in(temporary, path)
    finally:
        _forget(temporary)


def stamp(path: Path) -> None:
    """Mark a file as a blob: read-only, and with the time that tells whether it was written to since."""
    path.chmod(0o444)
    os.utime(path, ns=(time.time_ns(), STAMP_NS))


def move_in(temporary: Path, path: Path) -> None:
    """Rename a synced file into place, durably, making the folder that holds it."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        _sync(path.parent.parent)
    temporary.replace(path)
    _sync(path.parent)


def copy(source: Path, target: Path) -> None:
    """Copy a file's bytes, as a reflink where the file system can."""
    with source.open("rb") as reading, target.open("wb") as writing:
        try:
            fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
        except OSError:
            shutil.copyfileobj(reading, writing, 8 * 1024 * 1024)


def remove(path: Path) -> None:
    """Remove a file, link or folder if it is there; never follows links out of it."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)


def _forget(temporary: Path) -> None:
    # What is left behind here is removed with the folder of temporary files.
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
