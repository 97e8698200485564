"""The store: content-addressed files and step records, on a local or shared file system, or below a URL."""

from __future__ import annotations

from pathlib import Path

from drupe.core.store.collect import Collected
from drupe.core.store.local import Store

__all__ = ["Collected", "Store", "open_store"]


def open_store(folder: Path, url: str | None = None) -> Store:
    """Open the store below a folder; url: the store that it is in front of, shared by several machines.

    Raises StoreError, ConfigError.
    """
    if url is None:
        return Store(folder)
    from drupe.core.store.mirror import MirrorStore
    from drupe.core.store.upstream import Upstream

    return MirrorStore(folder, Upstream(url))
