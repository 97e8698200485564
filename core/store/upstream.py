"""A store below a URL that fsspec knows (s3://…, memory://…, file://…): what several machines share.

    URL/blobs/ab/ab12…       a file's bytes by their sha256
    URL/steps/ab/ab34….json  a step's record by its key, written after its blobs
    URL/leases/KEY           who is doing a step, and until when

Object stores have no locks. A lease is taken for a minute and renewed; whoever finds one that has run out takes it
over. So the promise is one result for a step, possibly computed twice. Clocks should agree to some seconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from drupe.core.errors import ConfigError, Interrupted, StoreError
from drupe.core.store.collect import Collected, blobs_of
from drupe.core.store.files import unique_name

__all__ = ["Upstream"]

_log = logging.getLogger("drupe.store")

_WHOLE = ("memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss")
"""Where a file appears whole or not at all; elsewhere it is written under another name and renamed."""
_LEASE_SECONDS = 60.0
_POLL_SECONDS = 0.5
_creating = threading.Lock()
"""fsspec looks whether a file is there and then writes it; between threads of one process this makes it one step."""
_YOUNG_SECONDS = 24 * 3600
"""What nobody refers to may belong to a step whose record is about to be written."""


class Upstream:
    """A store below a URL. Safe to use from several threads."""

    def __init__(self, url: str, *, lease_seconds: float = _LEASE_SECONDS) -> None:
        """Raises ConfigError for a URL that can't be used here."""
        import fsspec

        self.url = url
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"the store {url} can't be opened: {error}") from error
        self._protocols = {self._fs.protocol} if isinstance(self._fs.protocol, str) else set(self._fs.protocol)
        self._owner = unique_name()
        self._lease_seconds = lease_seconds
        self._known: set[str] = set()
        self._listed = False
        self._lock = threading.Lock()

    def has(self, digest: str) -> bool:
        """Whether a blob is there: one list at first, then a question for each that is not on it."""
        with self._lock:
            if not self._listed:
                self._known = {path.rpartition("/")[2] for path in self._find("blobs")}
                self._listed = True
            if digest in self._known:
                return True
        with self._errors(f"the store {self.url} can't be read"):
            self._fs.invalidate_cache()
            there = bool(self._fs.exists(self._blob(digest)))
        if there:
            with self._lock:
                self._known.add(digest)
        return there

    def fetch(self, digest: str, path: Path) -> None:
        """Copy a blob to a local file, which is yet to be hashed. Raises StoreError."""
        with self._errors(f"the blob {digest[:12]} can't be fetched"):
            self._fs.get_file(self._blob(digest), str(path))

    def send(self, digest: str, path: Path) -> None:
        """Copy a local file there unless it is there. Raises StoreError."""
        if self.has(digest):
            return
        with self._errors(f"the blob {digest[:12]} can't be sent"):
            self._write(self._blob(digest), lambda place: self._fs.put_file(str(path), place))
        with self._lock:
            self._known.add(digest)

    def forget(self, digest: str) -> None:
        """Remove a blob that is not what its name says."""
        with self._lock:
            self._known.discard(digest)
        with self._errors(f"the blob {digest[:12]} can't be removed"), suppress(FileNotFoundError):
            self._fs.rm_file(self._blob(digest))

    def record(self, key: str) -> dict[str, Any] | None:
        """Return a step's record, or None."""
        with self._errors(f"the record of step {key[:12]} can't be read"):
            try:
                record: dict[str, Any] = json.loads(self._fs.cat_file(self._record(key)))
            except (FileNotFoundError, ValueError):
                return None
        return record if all(self.has(digest) for digest in blobs_of(record)) else None

    def put(self, key: str, record: Mapping[str, Any]) -> None:
        """Write a step's record, whose blobs are there. Raises StoreError."""
        data = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
        with self._errors(f"the record of step {key[:12]} can't be written"):
            self._write(self._record(key), lambda place: self._fs.pipe_file(place, data))

    @contextmanager
    def lease(self, key: str, cancelled: Callable[[], bool] | None = None) -> Iterator[None]:
        """Hold the lease of a key, waiting for whoever has it. Raises Interrupted, StoreError."""
        while not self._take(key):
            if cancelled is not None and cancelled():
                raise Interrupted(f"stopped while waiting for step {key[:12]}, which another machine is working on")
            time.sleep(_POLL_SECONDS)
        done = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(key, done), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            done.set()
            renewing.join()
            try:
                if self._holder(key)[0] == self._owner:
                    self._fs.rm_file(self._lease(key))
            except Exception as error:
                # The step is done and stored; the lease runs out by itself.
                _log.warning("the lease of step %s can't be given back: %s", key[:12], error)

    def leased(self, key: str) -> bool:
        """Whether somebody holds the lease of a key. Raises StoreError."""
        holder, expires = self._holder(key)
        return holder is not None and time.time() < expires

    def records(self) -> Iterator[Mapping[str, Any]]:
        """Yield every record, each with "used": when it was written."""
        for path in self._find("steps"):
            with self._errors(f"the record {path} can't be read"):
                try:
                    record = {**json.loads(self._fs.cat_file(path)), "used": self._modified(path)}
                except (FileNotFoundError, ValueError):
                    continue
            yield record

    def sizes(self) -> dict[str, int]:
        """Return the blobs, digest → bytes."""
        self._fs.invalidate_cache()
        with self._errors(f"the store {self.url} can't be listed"):
            try:
                found = self._fs.find(f"{self._root}/blobs", detail=True)
            except FileNotFoundError:
                return {}
        return {path.rpartition("/")[2]: int(info["size"] or 0) for path, info in found.items()}

    def size(self) -> int:
        """Return the bytes that the blobs take."""
        return sum(self.sizes().values())

    def gc(self, max_bytes: int | None = None, older_than: float | None = None) -> Collected:
        """Remove records, those written first going first, then blobs that nobody refers to. See Store.gc.

        When a record was last used is not known here, nor which drivers run: what was written within a day stays.
        """
        now = time.time()
        records = sorted(self.records(), key=lambda record: record["used"])
        sizes = self.sizes()
        uses: dict[str, int] = {}
        for record in records:
            for digest in blobs_of(record):
                uses[digest] = uses.get(digest, 0) + 1
        total = sum(sizes.get(digest, 0) for digest in uses)
        removed = freed = blobs = 0
        for record in records:
            age = now - record["used"]
            wanted = (older_than is not None and age > older_than) or (max_bytes is not None and total > max_bytes)
            if age < _YOUNG_SECONDS or not wanted:
                continue
            with self._errors(f"the record of step {record['key'][:12]} can't be removed"):
                self._fs.rm_file(self._record(record["key"]))
            removed += 1
            for digest in blobs_of(record):
                uses[digest] -= 1
                total -= 0 if uses[digest] else sizes.get(digest, 0)
        for digest, size in sizes.items():
            if not uses.get(digest) and now - self._modified(self._blob(digest)) > _YOUNG_SECONDS:
                self.forget(digest)
                blobs += 1
                freed += size
        return Collected(removed, blobs, freed, sum(sizes.values()) - freed)

    def verify(self) -> list[str]:
        """Read every blob in full; remove and name those that do not hold what their names say."""
        wrong = []
        for path in self._find("blobs"):
            digest = path.rpartition("/")[2]
            sha256 = hashlib.sha256()
            with self._errors(f"the blob {digest[:12]} can't be read"), self._fs.open(path, "rb") as handle:
                while chunk := handle.read(8 * 2**20):
                    sha256.update(chunk)
            if sha256.hexdigest() != digest:
                wrong.append(digest)
                self.forget(digest)
        return wrong

    # Inside

    def _take(self, key: str) -> bool:
        holder, expires = self._holder(key)
        if holder is not None and holder != self._owner and time.time() < expires:
            return False
        with self._errors(f"the lease of step {key[:12]} can't be taken"):
            if holder is None:
                try:
                    alone = self._create(key)
                except FileExistsError:
                    return False
            else:
                self._write_lease(key)
                alone = False
            if not alone:
                # Two that write the same one at once: the one that wrote last has it.
                time.sleep(_POLL_SECONDS)
        return self._holder(key)[0] == self._owner

    def _create(self, key: str) -> bool:
        """Write a lease that is not there yet; return whether nobody else can have done so at the same moment.

        Raises FileExistsError.
        """
        place, data = self._lease(key), self._lease_data()
        self._make_parent(place)
        if "file" in self._protocols:
            # fsspec's own way would let two write into one file, which then holds neither's text.
            with self._fs.open(place, "xb") as handle:
                handle.write(data)
            return True
        with _creating:
            if self._protocols & set(_WHOLE):
                with suppress(NotImplementedError, TypeError):
                    self._fs.pipe_file(place, data, mode="create")
                    return True
            if self._fs.exists(place):
                raise FileExistsError(place)
            self._write_lease(key)
        return False

    def _write_lease(self, key: str) -> None:
        data = self._lease_data()
        self._write(self._lease(key), lambda place: self._fs.pipe_file(place, data))

    def _renew(self, key: str, done: threading.Event) -> None:
        while not done.wait(self._lease_seconds / 3):
            try:
                if self._holder(key)[0] not in (None, self._owner):
                    _log.warning("the lease of step %s was taken over while it was held", key[:12])
                    return
                self._write_lease(key)
            except Exception as error:
                _log.warning("the lease of step %s can't be renewed: %s", key[:12], error)

    def _holder(self, key: str) -> tuple[str | None, float]:
        """Return who holds a lease, and until when; (None, 0) if nobody."""
        self._fs.invalidate_cache()
        place = self._lease(key)
        with self._errors(f"the lease of step {key[:12]} can't be read"):
            try:
                lease = json.loads(self._fs.cat_file(place))
                return str(lease["owner"]), float(lease["expires"])
            except FileNotFoundError:
                return None, 0.0
            except (ValueError, KeyError, TypeError):
                # Half written this very moment, or by a machine that died over it.
                return "?", self._modified(place) + self._lease_seconds

    def _lease_data(self) -> bytes:
        return json.dumps({"owner": self._owner, "expires": time.time() + self._lease_seconds}).encode()

    def _write(self, place: str, write: Callable[[str], Any]) -> None:
        self._make_parent(place)
        if self._protocols & set(_WHOLE):
            write(place)
            return
        part = f"{self._root}/tmp-{unique_name()}"
        try:
            write(part)
            self._fs.mv(part, place)
        finally:
            with suppress(Exception):
                if self._fs.exists(part):
                    self._fs.rm_file(part)

    def _make_parent(self, place: str) -> None:
        self._fs.makedirs(place.rpartition("/")[0], exist_ok=True)

    def _find(self, what: str) -> Sequence[str]:
        self._fs.invalidate_cache()
        with self._errors(f"the store {self.url} can't be listed"):
            try:
                return sorted(self._fs.find(f"{self._root}/{what}"))
            except FileNotFoundError:
                return []

    def _modified(self, path: str) -> float:
        with suppress(FileNotFoundError, NotImplementedError):
            return float(self._fs.modified(path).timestamp())
        return time.time()

    def _blob(self, digest: str) -> str:
        return f"{self._root}/blobs/{digest[:2]}/{digest}"

    def _record(self, key: str) -> str:
        return f"{self._root}/steps/{key[:2]}/{key}.json"

    def _lease(self, key: str) -> str:
        return f"{self._root}/leases/{key}"

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (Interrupted, StoreError, FileExistsError):
            raise
        except Exception as error:
            # Every file system has errors of its own.
            raise StoreError(f"{what} ({self.url}): {type(error).__name__}: {error}") from error
