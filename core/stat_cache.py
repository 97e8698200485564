"""File digests that are remembered: a file whose size, times and inode are as before is not read again.

Records lie below the cache folder, one small file each, so that many processes may write at once. A record says nothing
of files that were changed within the clock's granularity, so a fresh file is hashed until it has settled.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from drupe.core.digests import file_digest
from drupe.core.introspect import cache_folder

__all__ = ["cached_digest", "path_identity"]

_SMALL = 64 * 1024
_SETTLED = 2.0


def cached_digest(path: Path) -> str:
    """Return the sha256 of a file, from the cache where its stat is unchanged. Raises OSError."""
    stat = path.stat()
    if stat.st_size <= _SMALL:
        return file_digest(path)
    mark = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    record = cache_folder() / "digests" / name[:2] / f"{name[2:]}.json"
    try:
        known = json.loads(record.read_text())
        if known["mark"] == mark:
            return str(known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # No record, or one that can't be read: hash.
    digest = file_digest(path)
    if time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED:
        _write(record, {"mark": mark, "digest": digest})
    return digest


def path_identity(path: Path) -> Any:
    """Return the digest of a file, or {relative path: digest} of a folder, hidden files left out. Raises OSError."""
    if path.is_dir():
        found: dict[str, str] = {}
        for folder, folders, files in os.walk(path, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if not name.startswith("."):
                    file = Path(folder) / name
                    found[file.relative_to(path).as_posix()] = cached_digest(file)
        return found
    return cached_digest(path)


def _write(record: Path, data: Any) -> None:
    temporary = record.with_name(f".{record.name}.{os.getpid()}")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(data))
        temporary.replace(record)
    except OSError:
        temporary.unlink(missing_ok=True)  # A cache that can't be written costs time, nothing else.
