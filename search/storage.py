"""Where a study lives: a journal file in the output folder, or any storage that Optuna knows by URL; and the lock that
makes asking for a trial one step."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drupe.core.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

__all__ = ["JOURNAL", "FileLock", "Home", "open_home", "told_as_store_error"]

JOURNAL = "study.journal"
"""The name of the journal file in a study's folder."""


class FileLock:
    """An exclusive lock on a file (flock): the kernel frees it when its holder dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread_lock = threading.RLock()
        self._depth = 0
        self._handle: Any = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock; the same thread may enter again."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def acquire(self) -> bool:
        """Wait for the lock and take it."""
        self._thread_lock.acquire()
        try:
            if self._depth == 0:
                handle = self._path.open("ab")
                fcntl.flock(handle, fcntl.LOCK_EX)
                self._handle = handle
        except BaseException:
            self._thread_lock.release()
            raise
        self._depth += 1
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._depth -= 1
        if self._depth == 0:
            self._handle.close()
            self._handle = None
        self._thread_lock.release()


@dataclass(frozen=True)
class Home:
    """A storage and the lock over asking. local: all its workers are on this machine or share its files.

    url: to show; it has no password. folder: where such workers show that they live; None: in the study's.
    """

    storage: BaseStorage
    lock: AbstractLock
    local: bool
    url: str
    folder: Path | None = None


class AbstractLock:
    """What `Home.lock` offers."""

    def held(self) -> AbstractContextManager[None]:
        """Hold the lock."""
        raise NotImplementedError


class _OverFile(AbstractLock):
    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)

    def held(self) -> AbstractContextManager[None]:
        return self._lock.held()


class _OverPostgres(AbstractLock):
    """PostgreSQL's advisory lock, on a connection of its own: the server frees it when the connection breaks."""

    def __init__(self, engine: Any, number: int) -> None:
        self._engine = engine
        self._number = number
        self._thread_lock = threading.RLock()
        self._depth = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        from sqlalchemy import text

        with self._thread_lock:
            if self._depth:
                yield
                return
            self._depth += 1
            try:
                with self._engine.connect() as connection:
                    connection.execute(text("SELECT pg_advisory_lock(:n)"), {"n": self._number})
                    try:
                        yield
                    finally:
                        connection.execute(text("SELECT pg_advisory_unlock(:n)"), {"n": self._number})
                        connection.rollback()
            finally:
                self._depth -= 1


def open_home(url: str | None, folder: Path) -> Home:
    """Open the storage that `url` names, or the journal file in `folder`.

    url: a database's ("sqlite:///study.db", "postgresql://…"), "journal:///path", or a path that ends in .journal.
    Raises ConfigError where it can't be opened.
    """
    quiet_optuna()
    path = _journal_path(url, folder)
    if path is not None:
        return _open_journal(path)
    assert url is not None
    return _open_database(url, folder)


def _journal_path(url: str | None, folder: Path) -> Path | None:
    if url is None:
        return folder / JOURNAL
    if url.startswith("journal://"):
        return Path(url.removeprefix("journal://"))
    if "://" not in url:
        return Path(url)
    return None


def _open_journal(path: Path) -> Home:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        backend = JournalFileBackend(str(path), lock_obj=_MendingLock(path))
        lock = _OverFile(path.with_name(path.name + ".ask"))
        with lock.held():
            _mend(path)
            return Home(JournalStorage(backend), lock, True, f"journal://{path.absolute()}", path.parent)
    except OSError as error:
        raise ConfigError(f"the study file {path} can't be opened: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(
            f"the study file {path} is damaged ({error}); move it away: finished steps are in the store and are not "
            "done again"
        ) from error


class _MendingLock:
    """flock instead of Optuna's lock file, which outlives a killed process by half a minute."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(path.with_name(path.name + ".lock"))

    def acquire(self) -> bool:
        """Take the lock, and take away what a killed writer left half-written."""
        self._lock.acquire()
        _mend(self._path)
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()


def _mend(path: Path) -> None:
    """Cut off a half-written last line, left by a killed process or a full disk: it was never acknowledged."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as handle:
        end = handle.seek(0, os.SEEK_END)
        handle.seek(end - 1)
        if handle.read(1) == b"\n":
            return
        while end > 0:
            start = max(0, end - 65536)
            handle.seek(start)
            found = handle.read(end - start).rfind(b"\n")
            if found >= 0:
                handle.truncate(start + found + 1)
                return
            end = start
        handle.truncate(0)


def _open_database(url: str, folder: Path) -> Home:
    try:
        from optuna.storages import RDBStorage, get_storage
        from sqlalchemy import create_engine
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise ConfigError(f"a study in a database needs the package {error.name}; install it") from error
    shown = url
    try:
        parsed = make_url(url)
        # A password belongs in no message, log or manifest.
        shown = parsed.render_as_string(hide_password=True)
        backend = parsed.get_backend_name()
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername=f"postgresql+{_postgres_driver()}")
        number = int.from_bytes(hashlib.sha256(b"drupe study").digest()[:6], "big")
        if backend == "postgresql":
            lock: AbstractLock = _OverPostgres(create_engine(parsed, pool_pre_ping=True), number)
        elif backend == "sqlite" and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            lock = _OverFile(Path(parsed.database + ".ask"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _OverFile(folder / "study.ask")
        # Two that make the tables at the same moment clash, so that is done under the lock as well.
        with lock.held():
            whole = parsed.render_as_string(hide_password=False)
            # SQLite's own patience, 5 seconds, is short where several workers write at once on a busy machine.
            extra = {"connect_args": {"timeout": 120}} if backend == "sqlite" else {}
            storage = get_storage(RDBStorage(whole, engine_kwargs=extra))
            beside = Path(parsed.database).parent if backend == "sqlite" and parsed.database else None
            return Home(storage, lock, backend == "sqlite", shown, beside)
    except (SQLAlchemyError, ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the study storage {shown} can't be opened: {reason}") from error


def _postgres_driver() -> str:
    """Return the installed driver: which one a bare "postgresql://" means differs between versions of SQLAlchemy."""
    for name in ("psycopg2", "psycopg"):
        if importlib.util.find_spec(name) is not None:
            return name
    raise ConfigError("a study in PostgreSQL needs a driver: pip install 'drupe[postgresql]'")


@contextmanager
def told_as_store_error(url: str) -> Iterator[None]:
    """Turn what a storage raises when it can't be reached or written into a StoreError."""
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except (OSError, StorageInternalError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise StoreError(
            f"the study {url} can't be read or written: {reason}; what was told before is kept, and the same command "
            "goes on from there"
        ) from error


def quiet_optuna() -> None:
    """Send Optuna's own lines to the log instead of the terminal, and its notices on experimental parts nowhere."""
    import logging
    import warnings

    import optuna

    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    logging.getLogger("optuna").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
