"""A store on this machine in front of one that several machines share: files come when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drupe.core.errors import DamagedFileError
from drupe.core.model import Model
from drupe.core.store.collect import blobs_of
from drupe.core.store.files import unique_name
from drupe.core.store.local import Store
from drupe.core.store.upstream import Upstream

__all__ = ["MirrorStore"]


class MirrorStore(Store):
    """A store below a folder that takes from and gives to an `Upstream`."""

    def __init__(self, root: Path, upstream: Upstream) -> None:
        super().__init__(root)
        self.upstream = upstream

    def get(self, key: str) -> Mapping[str, Any] | None:
        """See Store.get. A record from upstream is returned before its files are here."""
        record = super().get(key)
        if record is None and (record := self.upstream.record(key)) is not None:
            super().put(key, record)
        return record

    def put(self, key: str, record: Mapping[str, Any]) -> None:
        """See Store.put: the record is upstream, after its files, before it is here."""
        for digest in blobs_of(record):
            if super().has(digest):
                self.upstream.send(digest, self.blob_path(digest))
        self.upstream.put(key, record)
        super().put(key, record)

    @contextmanager
    def lock(self, key: str, cancelled: Callable[[], bool] | None = None) -> Iterator[None]:
        """Hold the lock of a key on this machine and its lease upstream."""
        with super().lock(key, cancelled), self.upstream.lease(key, cancelled):
            yield

    def locked(self, key: str) -> bool:
        """See Store.locked; a machine that does not renew its lease holds nothing."""
        return super().locked(key) or self.upstream.leased(key)

    def has(self, digest: str) -> bool:
        """Whether a blob is here or upstream."""
        return super().has(digest) or self.upstream.has(digest)

    def publish(self, model: Model, outputs: Path, verify: bool = False) -> None:
        """See Store.publish; files that are only upstream come first."""
        self._bring(digest for name, digest in model.files.items() if not (outputs / name).is_file())
        super().publish(model, outputs, verify)

    def read_bytes(self, digest: str) -> bytes:
        """See Store.read_bytes."""
        self._bring([digest])
        return super().read_bytes(digest)

    def stage(self, model: Model, folder: Path, *, hard_links: bool = True) -> Model:
        """See Store.stage."""
        self._bring(model.files.values())
        return super().stage(model, folder, hard_links=hard_links)

    def export(self, model: Model, folder: Path) -> None:
        """See Store.export."""
        self._bring(model.files.values())
        super().export(model, folder)

    def _bring(self, digests: Iterable[str]) -> None:
        """Fetch what is upstream only. Raises StoreError."""
        for digest in digests:
            if super().has(digest) or not self.upstream.has(digest):
                continue
            part = self.root / "tmp" / unique_name()
            try:
                self.upstream.fetch(digest, part)
                self.put_file(part, digest)
            except DamagedFileError:
                # Whoever asks next finds it absent, and does the step again.
                self.upstream.forget(digest)
                raise
            finally:
                part.unlink(missing_ok=True)
