"""The store: content-addressed files and step records, on a local or shared file system.

    blobs/ab/ab12…      a file's bytes by their sha256, read-only
    steps/ab/ab34….json a step's record by its key
    checkpoints/KEY/    what a step keeps to go on after a kill; removed once the step is done
    jobs/…              job folders of running drivers, each with the lock of its driver
    locks/…             flock files: one a key, and one for collecting garbage
    tmp/                what is being written

Everything is published by rename after a sync, so that a kill or a full disk at any moment leaves either the old state
or the new one. A record is written after its blobs, and a record whose blobs are gone counts as absent. Locks are
flock, which the kernel releases with the process.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drupe.core.digests import file_digest
from drupe.core.errors import Interrupted, StoreError
from drupe.core.model import Model
from drupe.core.stat_cache import cached_digest

__all__ = ["Collected", "Store"]

_counter = itertools.count()
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Collected:
    """What a collection removed."""

    records: int
    blobs: int
    freed: int


class Store:
    """A store below one folder. Safe to use from many threads and processes at once."""

    def __init__(self, root: Path) -> None:
        """Open the store, making its folders. Raises StoreError when that can't be done."""
        self.root = Path(root).absolute()
        with _store_errors(f"the store {self.root} can't be opened"):
            for name in ("blobs", "steps", "checkpoints", "jobs", "locks", "tmp"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        self._clean_dead_jobs()

    # Records

    def get(self, key: str) -> Mapping[str, Any] | None:
        """Return a step's record, or None when it is absent or one of its blobs is; marks it as used."""
        path = self._record_path(key)
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            # Not by our hand: a record is renamed into place whole. The step is simply done again.
            path.unlink(missing_ok=True)
            return None
        if not all(self.has(digest) for digest in _blobs_of(record)):
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):
            os.utime(path)
        return record

    def put(self, key: str, record: Mapping[str, Any]) -> None:
        """Write a step's record durably, and drop its checkpoint. Raises StoreError."""
        data = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
        path = self._record_path(key)
        with self._writing(), _store_errors(f"the record of step {key[:12]} can't be written"):
            self._write_durably(path, data, mode=0o644)
        shutil.rmtree(self.root / "checkpoints" / key, ignore_errors=True)

    def records(self) -> Iterator[Mapping[str, Any]]:
        """Yield every record, each with "used" (seconds since the epoch) added."""
        for path in sorted((self.root / "steps").glob("*/*.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                yield {**record, "used": path.stat().st_mtime}
            except (OSError, ValueError):
                continue

    @contextmanager
    def lock(self, key: str, cancelled: Callable[[], bool] | None = None) -> Iterator[None]:
        """Hold the lock of a key, waiting for whoever has it. Raises Interrupted when `cancelled` says so meanwhile."""
        with (self.root / "locks" / key).open("a") as handle:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                        raise StoreError(f"the lock of step {key[:12]} can't be taken: {error}") from error
                if cancelled is not None and cancelled():
                    raise Interrupted("stopped while waiting for a step that another process is doing")
                time.sleep(_POLL_SECONDS)
            yield

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
        with self._writing(), _store_errors("a step's files can't be stored"):
            for name, digest in model.files.items():
                if self.has(digest):
                    continue
                source = outputs / name
                if not source.is_file():
                    raise StoreError(f"the file {name} ({digest[:12]}) of a model is neither made nor stored")
                if verify and file_digest(source) != digest:
                    raise StoreError(f"the file {name} arrived damaged: its sha256 is not {digest[:12]}…")
                self._take(source, digest)

    def put_bytes(self, data: bytes) -> str:
        """Store bytes and return their digest."""
        digest = hashlib.sha256(data).hexdigest()
        if not self.has(digest):
            with self._writing(), _store_errors("a blob can't be stored"):
                self._write_durably(self.blob_path(digest), data, mode=0o444)
        return digest

    def read_bytes(self, digest: str) -> bytes:
        """Return a blob's bytes. Raises StoreError when it is absent."""
        with _store_errors(f"the blob {digest[:12]} can't be read"):
            return self.blob_path(digest).read_bytes()

    def digest_file(self, path: Path) -> str:
        """Return the sha256 of a file outside the store, remembered by its stat. Raises StoreError."""
        with _store_errors(f"{path} can't be read"):
            return cached_digest(path)

    def stage(self, model: Model, folder: Path) -> Model:
        """Lay the model's files out below `folder`, read-only hard links, and return the model as staged there."""
        with _store_errors("a model can't be staged"):
            for name, digest in model.files.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                source = self.blob_path(digest)
                try:
                    os.link(source, target)
                except FileExistsError:
                    pass
                except OSError as error:
                    if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
                        raise
                    _copy(source, target)
                    target.chmod(0o444)
        return model.at(folder)

    def export(self, model: Model, folder: Path) -> None:
        """Lay the model's files out as the user's own, writable copies (reflinks where the file system can).

        An earlier export at `folder` is replaced whole. Raises StoreError.
        """
        part = folder.with_name(f".{folder.name}.part-{os.getpid()}")
        with _store_errors(f"the model can't be written to {folder}"):
            shutil.rmtree(part, ignore_errors=True)
            try:
                for name, digest in model.files.items():
                    target = part / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _copy(self.blob_path(digest), target)
                    target.chmod(0o644)
                part.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
                part.replace(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)

    def verify_inputs(self, model: Model, folder: Path) -> list[str]:
        """Return the staged files that were changed since they were staged, by stat; a changed blob is evicted.

        A hard link shares its inode with the blob, so a write through it shows at the blob itself.
        """
        changed = []
        for name, digest in model.files.items():
            staged = folder / name
            blob = self.blob_path(digest)
            try:
                there, kept = staged.stat(), blob.stat()
            except OSError:
                changed.append(name)
                continue
            linked = there.st_ino == kept.st_ino and there.st_dev == kept.st_dev
            touched = bool(there.st_mode & stat.S_IWUSR) or not linked or self._mark(blob) != self._known_mark(digest)
            if touched and file_digest(staged) != digest:
                changed.append(name)
                if linked:
                    self.evict(digest)
            elif touched and linked:
                blob.chmod(0o444)
                self._note_mark(digest)
        return changed

    def evict(self, digest: str) -> None:
        """Remove a blob that no longer holds what its name says."""
        self.blob_path(digest).unlink(missing_ok=True)
        self._mark_path(digest).unlink(missing_ok=True)

    # Folders

    def checkpoint_dir(self, key: str) -> Path:
        """Return the folder that a step keeps its progress in; it outlives retries and kills."""
        folder = self.root / "checkpoints" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def new_job_dir(self, name: str) -> Path:
        """Return a fresh folder for a job, locked for as long as this process lives."""
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:80]
        folder = self.root / "jobs" / f"{safe}-{os.getpid()}-{next(_counter)}-{time.time_ns():x}"
        with _store_errors("a job's folder can't be made"):
            folder.mkdir()
            (folder / ".driver").write_text(_process_mark(os.getpid()))
        return folder

    def remove_job_dir(self, folder: Path) -> None:
        """Remove a job's folder."""
        self.clear(folder)

    def clear(self, path: Path) -> None:
        """Remove a file or folder of a job if it is there; never follows links out of it."""
        if path.is_symlink() or path.is_file():
            path.unlink(missing_ok=True)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)

    # Housekeeping

    def size(self) -> int:
        """Return the bytes that the blobs take."""
        return sum(p.stat().st_size for p in (self.root / "blobs").glob("*/*"))

    def gc(self, max_bytes: int | None = None, older_than: float | None = None) -> Collected:
        """Remove records (the least recently used first) until the rest fits, then blobs that nobody refers to.

        older_than: seconds; records used more recently stay. Waits for writers, and keeps them waiting.
        """
        with self._collecting():
            paths = sorted((self.root / "steps").glob("*/*.json"), key=lambda p: p.stat().st_mtime)
            records = {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}
            uses: dict[str, int] = {}
            for record in records.values():
                for digest in _blobs_of(record):
                    uses[digest] = uses.get(digest, 0) + 1
            sizes = {p.name: p.stat().st_size for p in (self.root / "blobs").glob("*/*")}
            total = sum(sizes.get(digest, 0) for digest in uses)
            removed = 0
            now = time.time()
            for path, record in records.items():
                old = older_than is not None and now - path.stat().st_mtime > older_than
                full = max_bytes is not None and total > max_bytes
                if not (old or full):
                    continue
                path.unlink()
                removed += 1
                for digest in _blobs_of(record):
                    uses[digest] -= 1
                    if not uses[digest]:
                        total -= sizes.get(digest, 0)
            freed = blobs = 0
            for digest, size in sizes.items():
                if not uses.get(digest):
                    self.evict(digest)
                    blobs += 1
                    freed += size
            for leftover in (self.root / "tmp").iterdir():
                leftover.unlink(missing_ok=True)
        return Collected(removed, blobs, freed)

    def verify(self) -> list[str]:
        """Hash every blob in full; evict and name those that do not hold what their names say."""
        wrong = []
        for path in sorted((self.root / "blobs").glob("*/*")):
            if file_digest(path) != path.name:
                wrong.append(path.name)
                self.evict(path.name)
        return wrong

    # Inside

    def _record_path(self, key: str) -> Path:
        return self.root / "steps" / key[:2] / f"{key}.json"

    def _temporary(self) -> Path:
        return self.root / "tmp" / f"{os.getpid()}-{next(_counter)}-{time.time_ns():x}"

    def _write_durably(self, path: Path, data: bytes, mode: int) -> None:
        temporary = self._temporary()
        try:
            with temporary.open("wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.chmod(mode)
            self._move_in(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if path.parent.parent.name == "blobs":
            self._note_mark(path.name)

    def _take(self, source: Path, digest: str) -> None:
        path = self.blob_path(digest)
        temporary = self._temporary()
        try:
            if source.is_symlink():
                source = source.resolve()
            try:
                source.replace(temporary)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _copy(source, temporary)
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.chmod(0o444)
            self._move_in(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        self._note_mark(digest)

    def _move_in(self, temporary: Path, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        temporary.replace(path)
        _sync_folder(path.parent)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with (self.root / "locks" / "collecting").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield

    @contextmanager
    def _collecting(self) -> Iterator[None]:
        with (self.root / "locks" / "collecting").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _mark(self, path: Path) -> str:
        found = path.stat()
        return f"{found.st_size} {found.st_mtime_ns}"

    def _mark_path(self, digest: str) -> Path:
        return self.root / "marks" / digest[:2] / digest

    def _note_mark(self, digest: str) -> None:
        path = self._mark_path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._mark(self.blob_path(digest)))

    def _known_mark(self, digest: str) -> str | None:
        try:
            return self._mark_path(digest).read_text()
        except OSError:
            return None

    def _clean_dead_jobs(self) -> None:
        """Remove the job folders of drivers that are gone."""
        for folder in (self.root / "jobs").iterdir():
            try:
                mark = (folder / ".driver").read_text()
                pid = int(mark.split()[0])
            except (OSError, ValueError, IndexError):
                # Being made this very moment, or left by a kill in between: old ones go.
                with suppress(OSError):
                    if time.time() - folder.stat().st_mtime > 3600:
                        self.clear(folder)
                continue
            if _process_mark(pid) != mark:
                self.clear(folder)


def _blobs_of(record: Mapping[str, Any]) -> set[str]:
    model = record.get("model") or {}
    return {*model.get("files", {}).values(), *record.get("blobs", ())}


def _process_mark(pid: int) -> str:
    """Return "pid start-time", which no later process shares; only the pid where /proc tells nothing."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{pid} {fields[19]}"
    except (OSError, IndexError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return str(pid)


def _copy(source: Path, target: Path) -> None:
    """Copy a file, as a reflink where the file system can."""
    with source.open("rb") as reading, target.open("wb") as writing:
        try:
            fcntl.ioctl(writing.fileno(), 0x40049409, reading.fileno())  # FICLONE
        except OSError:
            shutil.copyfileobj(reading, writing, 8 * 1024 * 1024)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _store_errors(what: str) -> Iterator[None]:
    """Turn an OSError into a StoreError that says what could not be done, and what to do about a full disk."""
    try:
        yield
    except OSError as error:
        hint = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "; make room (drupe cache gc --max-size removes old steps) and run the same command again"
        raise StoreError(f"{what}: {error.strerror or error}{hint}") from error
