"""The store on a local or shared file system.

    blobs/ab/ab12…       a file's bytes by their sha256, read-only
    steps/ab/ab34….json  a step's record by its key
    checkpoints/KEY/     what a step keeps to go on after a kill; removed once the step is done
    drivers/…            the drivers that use the store, and their job folders
    locks/…              lock files: one a key, and the lock between writers and the collection of garbage
    tmp/                 what is being written

Everything is published by rename after a sync, so that a kill or a full disk at any moment leaves either the old state
or the new one. A record is written after its blobs, and a record whose blobs are gone counts as absent. Nothing that a
living driver may have touched is collected.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from drupe.core.digests import file_digest
from drupe.core.disk import store_errors
from drupe.core.errors import DamagedFileError, StoreError
from drupe.core.locks import file_lock, gated_lock, is_held
from drupe.core.model import Model
from drupe.core.stat_cache import cached_digest
from drupe.core.store.collect import Collected, blobs_of, collect
from drupe.core.store.drivers import Drivers
from drupe.core.store.files import (
    STAMP_NS,
    copy,
    move_in,
    remove,
    stamp,
    unique_name,
    write_durably,
)

__all__ = ["Store"]

_NO_LINK = (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.EACCES)


class Store:
    """A store below one folder. Safe to use from many threads and processes at once."""

    def __init__(self, root: Path) -> None:
        """Open the store, making its folders. Raises StoreError when that can't be done."""
        self.root = Path(root).absolute()
        with store_errors(f"the store {self.root} can't be opened"):
            for name in ("blobs", "steps", "checkpoints", "drivers", "locks/collecting", "tmp"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            self._drivers = Drivers(self.root / "drivers", self.root / "tmp")
            self._drivers.clean()

    # Records

    def get(self, key: str) -> Mapping[str, Any] | None:
        """Return a step's record, or None when it is absent or one of its blobs is; marks it as used."""
        self._register()
        path = self._record_path(key)
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"the record of step {key[:12]} can't be read: {error.strerror}") from error
        except ValueError:
            # Not by our hand: a record is renamed into place whole. The step is done again and the record replaced.
            return None
        with suppress(OSError):
            os.utime(path)
        if not all(self.has(digest) for digest in blobs_of(record)):
            return None
        return record

    def put(self, key: str, record: Mapping[str, Any]) -> None:
        """Write a step's record durably, and drop its checkpoint. Raises StoreError."""
        self._register()
        data = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
        with self._writing(), store_errors(f"the record of step {key[:12]} can't be written"):
            write_durably(data, self._record_path(key), self._temporary())
        remove(self.root / "checkpoints" / key)

    def records(self) -> Iterator[Mapping[str, Any]]:
        """Yield every record, each with "used" (seconds since the epoch) added."""
        for path in sorted((self.root / "steps").glob("*/*.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                yield {**record, "used": path.stat().st_mtime}
            except (OSError, ValueError):
                continue

    def lock(self, key: str, cancelled: Callable[[], bool] | None = None) -> AbstractContextManager[None]:
        """Hold the lock of a key, waiting for whoever has it. Raises Interrupted when `cancelled` says so meanwhile."""
        return file_lock(self.root / "locks" / key, f"step {key[:12]}", cancelled)

    def locked(self, key: str) -> bool:
        """Whether somebody holds the lock of a key."""
        return is_held(self.root / "locks" / key)

    # Blobs

    def has(self, digest: str) -> bool:
        """Whether a blob is there."""
        return self.blob_path(digest).exists()

    def blob_path(self, digest: str) -> Path:
        """Return where a blob lies, or would."""
        return self.root / "blobs" / digest[:2] / digest

    def publish(self, model: Model, outputs: Path, verify: bool = False) -> None:
        """Take the model's files that lie in `outputs` and are no blobs yet into the store, by rename where possible.

        verify: hash them first (they crossed a machine). Raises StoreError for a full disk, a file whose digest is not
        the one named, and a file that is neither in `outputs` nor a blob.
        """
        self._register()
        with store_errors("a step's files can't be stored"):
            for name, digest in model.files.items():
                if self._use(digest):
                    continue
                source = outputs / name
                if not source.is_file():
                    raise StoreError(f"the file {name} ({digest[:12]}) of a model is neither made nor stored")
                if verify and file_digest(source) != digest:
                    raise DamagedFileError(f"the file {name} arrived damaged: its sha256 is not {digest[:12]}…")
                self._take(source, digest)

    def put_file(self, source: Path, digest: str) -> None:
        """Move a file that crossed a machine into the store. Raises StoreError when it does not have that digest."""
        self._register()
        with store_errors("a blob can't be stored"):
            if self._use(digest):
                source.unlink(missing_ok=True)
                return
            if file_digest(source) != digest:
                raise DamagedFileError(f"a blob arrived damaged: its sha256 is not {digest[:12]}…")
            self._take(source, digest)

    def put_bytes(self, data: bytes) -> str:
        """Store bytes and return their digest."""
        self._register()
        digest = hashlib.sha256(data).hexdigest()
        with store_errors("a blob can't be stored"):
            if not self._use(digest):
                with self._writing():
                    write_durably(data, self.blob_path(digest), self._temporary(), read_only=True)
        return digest

    def read_bytes(self, digest: str) -> bytes:
        """Return a blob's bytes. Raises StoreError when it is absent."""
        with store_errors(f"the blob {digest[:12]} can't be read"):
            return self.blob_path(digest).read_bytes()

    def digest_file(self, path: Path) -> str:
        """Return the sha256 of a file outside the store, remembered by its stat. Raises StoreError."""
        with store_errors(f"{path} can't be read"):
            return cached_digest(path)

    def stage(self, model: Model, folder: Path, *, hard_links: bool = True) -> Model:
        """Lay the model's files out below `folder`, read-only, and return the model as staged there.

        They are hard links of the blobs, or, where those are not wanted or not possible, copies (reflinks where the
        file system can).
        """
        with store_errors("a model can't be staged"):
            for name, digest in model.files.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                source = self.blob_path(digest)
                if target.exists() or (hard_links and _linked(source, target)):
                    continue
                copy(source, target)
                stamp(target)
        return model.at(folder)

    def export(self, model: Model, folder: Path) -> None:
        """Lay the model's files out as the user's own, writable copies (reflinks where the file system can).

        An earlier export at `folder` is replaced whole. Raises StoreError.
        """
        part, old = (folder.with_name(f".{folder.name}.{what}-{unique_name()}") for what in ("part", "old"))
        with store_errors(f"the model can't be written to {folder}"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            for what in ("part", "old"):
                for leftover in folder.parent.glob(f".{folder.name}.{what}-*"):
                    remove(leftover)
            try:
                part.mkdir()
                for name, digest in model.files.items():
                    target = part / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    copy(self.blob_path(digest), target)
                with suppress(FileNotFoundError):
                    folder.replace(old)
                part.replace(folder)
            finally:
                remove(part)
                remove(old)

    def verify_inputs(self, model: Model, folder: Path) -> list[str]:
        """Return the staged files that were changed since they were staged, by stat; a changed blob is evicted.

        A hard link shares its inode with the blob, so a write through it shows at the blob itself.
        """
        changed = []
        for name, digest in model.files.items():
            staged, blob = folder / name, self.blob_path(digest)
            try:
                there, kept = staged.stat(), blob.stat()
            except OSError:
                changed.append(name)
                continue
            linked = (there.st_ino, there.st_dev) == (kept.st_ino, kept.st_dev)
            if there.st_mtime_ns == STAMP_NS and there.st_size == kept.st_size:
                if linked and there.st_mode & stat.S_IWUSR:
                    blob.chmod(0o444)
                continue
            if file_digest(staged) != digest:
                changed.append(name)
                if linked:
                    self.evict(digest)
            elif linked:
                stamp(blob)
        return changed

    def evict(self, digest: str) -> None:
        """Remove a blob that no longer holds what its name says."""
        self.blob_path(digest).unlink(missing_ok=True)

    # Folders

    def checkpoint_dir(self, key: str) -> Path:
        """Return the folder that a step keeps its progress in; it outlives retries and kills."""
        self._register()
        folder = self.root / "checkpoints" / key
        with store_errors("a checkpoint's folder can't be made"):
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)
        return folder

    def new_job_dir(self, name: str) -> Path:
        """Return a fresh folder for a job; it goes with the job, with this store, or after this process died."""
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:80]
        with store_errors("a job's folder can't be made"):
            folder = self._drivers.register() / f"{safe}-{unique_name().rpartition('-')[2]}"
            folder.mkdir()
        return folder

    def remove_job_dir(self, folder: Path) -> None:
        """Remove a job's folder."""
        remove(folder)

    def clear(self, path: Path) -> None:
        """Remove a file or folder of a job if it is there; never follows links out of it."""
        remove(path)

    # Housekeeping

    def sizes(self) -> dict[str, int]:
        """Return the blobs, digest → bytes."""
        found = {}
        for path in (self.root / "blobs").glob("*/*"):
            with suppress(FileNotFoundError):
                found[path.name] = path.stat().st_size
        return found

    def size(self) -> int:
        """Return the bytes that the blobs take."""
        return sum(self.sizes().values())

    def gc(self, max_bytes: int | None = None, older_than: float | None = None) -> Collected:
        """Remove records (the least recently used first) until the rest fits, then blobs that nobody refers to.

        older_than: seconds; with it, what was not used for longer goes. What a driver that runs now may have touched
        stays. Raises StoreError.
        """
        with self._collecting(), store_errors("the store can't be collected"):
            self._drivers.clean()
            return collect(self.root, max_bytes, older_than, self._drivers.oldest_other())

    def verify(self) -> list[str]:
        """Hash every blob in full; evict and name those that do not hold what their names say."""
        wrong = []
        for path in sorted((self.root / "blobs").glob("*/*")):
            with suppress(FileNotFoundError):
                if file_digest(path) != path.name:
                    wrong.append(path.name)
                    self.evict(path.name)
        return wrong

    # Inside

    def _register(self) -> None:
        with store_errors(f"the store {self.root} can't be used"):
            self._drivers.register()

    def _record_path(self, key: str) -> Path:
        return self.root / "steps" / key[:2] / f"{key}.json"

    def _temporary(self) -> Path:
        return self.root / "tmp" / unique_name()

    def _use(self, digest: str) -> bool:
        """Whether a blob is there; it counts as touched now, so that no collection takes it."""
        with self._writing():
            try:
                os.utime(self.blob_path(digest), ns=(time.time_ns(), STAMP_NS))
            except FileNotFoundError:
                return False
            except PermissionError:
                return True  # Another user's, on a shared folder; its last use is what the file system knows.
            return True

    def _take(self, source: Path, digest: str) -> None:
        source = source.resolve()
        temporary = self._temporary()
        try:
            try:
                source.replace(temporary)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                copy(source, temporary)
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            with self._writing():
                stamp(temporary)
                move_in(temporary, self.blob_path(digest))
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with gated_lock(self.root / "locks" / "collecting", "the store", exclusive=False):
            yield

    @contextmanager
    def _collecting(self) -> Iterator[None]:
        with gated_lock(self.root / "locks" / "collecting", "the store", exclusive=True):
            yield


def _linked(source: Path, target: Path) -> bool:
    """Make a hard link; False where there can be none."""
    try:
        os.link(source, target)
    except FileExistsError:
        return True
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False
    return True
