"""Garbage collection of a store: which records, blobs and checkpoints go.

What was touched since the oldest living driver began stays, since that driver may be about to use it. A blob's change
time tells: publishing it again and linking it into a job both renew that.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drupe.core.locks import remove_if_free
from drupe.core.store.files import remove

__all__ = ["Collected", "blobs_of", "collect"]

_STALE_SECONDS = 24 * 3600
"""Unfinished writes and the checkpoints of unfinished steps: how long they may still be of use, at least."""


@dataclass(frozen=True)
class Collected:
    """What a collection removed. freed, left: bytes of blobs and checkpoints."""

    records: int
    blobs: int
    freed: int
    left: int = 0


@dataclass
class _Item:
    """Something with a last use: a record or a checkpoint."""

    path: Path
    used: float
    blobs: frozenset[str] = frozenset()
    size: int = 0


def blobs_of(record: Mapping[str, Any]) -> frozenset[str]:
    """Return the digests that a record needs."""
    model = record.get("model") or {}
    return frozenset((*model.get("files", {}).values(), *record.get("blobs", ())))


def collect(root: Path, max_bytes: int | None, older_than: float | None, since: float | None) -> Collected:
    """Collect the store at root, whose writers wait meanwhile. since: when the oldest living driver began."""
    now = time.time()
    sizes, touched = _blobs(root)
    items = _records(root) + _checkpoints(root, now)
    uses = Counter(digest for item in items for digest in item.blobs)
    total = sum(sizes.get(digest, 0) for digest in uses) + sum(item.size for item in items)
    removed = freed = 0
    for item in sorted(items, key=lambda item: item.used):
        if since is not None and item.used >= since:
            continue
        old = older_than is not None and now - item.used > older_than
        if not old and (max_bytes is None or total <= max_bytes):
            continue
        remove(item.path)
        removed += bool(item.blobs) or not item.size
        freed += item.size
        total -= item.size
        for digest in item.blobs:
            uses[digest] -= 1
            if not uses[digest]:
                total -= sizes.get(digest, 0)
    blobs = 0
    for digest, size in sizes.items():
        if uses[digest] > 0 or (since is not None and touched[digest] >= since):
            continue
        (root / "blobs" / digest[:2] / digest).unlink(missing_ok=True)
        blobs += 1
        freed += size
    _sweep(root, now)
    left = sum(sizes.values()) + sum(item.size for item in items) - freed
    return Collected(removed, blobs, freed, left)


def _blobs(root: Path) -> tuple[dict[str, int], dict[str, float]]:
    sizes: dict[str, int] = {}
    touched: dict[str, float] = {}
    for path in (root / "blobs").glob("*/*"):
        with suppress(FileNotFoundError):
            found = path.stat()
            sizes[path.name], touched[path.name] = found.st_size, found.st_ctime
    return sizes, touched


def _records(root: Path) -> list[_Item]:
    items = []
    for path in (root / "steps").glob("*/*.json"):
        with suppress(FileNotFoundError):
            used = path.stat().st_mtime
            try:
                items.append(_Item(path, used, blobs_of(json.loads(path.read_text(encoding="utf-8")))))
            except ValueError:
                remove(path)
    return items


def _checkpoints(root: Path, now: float) -> list[_Item]:
    items = []
    for folder in (root / "checkpoints").iterdir():
        key = folder.name
        try:
            files = [path.stat() for path in folder.rglob("*") if path.is_file()]
            used = max([folder.stat().st_mtime, *(file.st_mtime for file in files)])
        except FileNotFoundError:
            continue  # Its step was finished this very moment.
        if (root / "steps" / key[:2] / f"{key}.json").exists():
            remove(folder)
        elif now - used > _STALE_SECONDS:
            items.append(_Item(folder, used, size=sum(file.st_size for file in files)))
    return items


def _sweep(root: Path, now: float) -> None:
    """Remove unfinished writes and the locks of steps that nobody is doing."""
    for leftover in (root / "tmp").iterdir():
        with suppress(FileNotFoundError):
            # Not its modification time, which a file that is about to be published no longer has.
            if now - leftover.stat().st_ctime > _STALE_SECONDS:
                remove(leftover)
    for path in (root / "locks").iterdir():
        if path.is_file():
            remove_if_free(path)
