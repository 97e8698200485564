"""What runs in a Ray actor on a node: a Site, spoken to by method calls. Imported on the nodes."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drupe.core.errors import Interrupted
from drupe.core.host_faults import fault_data
from drupe.hosts.site import Site, facts

__all__ = ["RaySite"]


class RaySite:
    """A Site on a node, for one job at a time. Its methods are called from several threads."""

    def __init__(self, root: str, env: Mapping[str, str]) -> None:
        import os

        os.environ.update(env)
        self._site = Site(Path(root))
        self._parts: dict[str, Path] = {}
        self._cancel = threading.Event()
        self._changed = threading.Condition()
        self._events: list[Mapping[str, Any]] = []
        self._end: dict[str, Any] | None = None
        self._folder: Path | None = None
        self._log_read = 0

    def facts(self) -> dict[str, Any]:
        """What the node is."""
        return {**facts(), "free": self._site.free()}

    def missing(self, digests: Sequence[str]) -> tuple[list[str], int]:
        """Which digests are not here, and how many bytes there is room for."""
        return self._site.missing(digests), self._site.free()

    def put(self, digest: str, chunk: bytes, last: bool) -> None:
        """Take a piece of a file; after the last one the file is hashed and kept."""
        part = self._parts.get(digest) or self._parts.setdefault(digest, self._site.part(digest))
        with part.open("ab") as handle:
            handle.write(chunk)
        if last:
            self._site.keep(digest, self._parts.pop(digest))

    def start(self, job: Mapping[str, Any], files: Mapping[str, str], options: Mapping[str, Any]) -> None:
        """Begin a job."""
        self._cancel.clear()
        self._events, self._end, self._log_read = [], None, 0
        self._folder = self._site.prepare(job, files)
        threading.Thread(target=self._run, args=(self._folder, options), daemon=True).start()

    def poll(self, seconds: float) -> dict[str, Any]:
        """Return what is new: events, log, and the end when it has come. Waits up to `seconds` for something."""
        with self._changed:
            if not self._events and self._end is None:
                self._changed.wait(seconds)
            events, self._events = self._events, []
            end = self._end
        return {"events": events, "log": self._new_log(), "end": end}

    def cancel(self) -> None:
        """Ask the job to stop."""
        self._cancel.set()

    def get(self, digest: str, offset: int, size: int) -> bytes:
        """Return a piece of a file."""
        with self._site.path(digest).open("rb") as handle:
            handle.seek(offset)
            return handle.read(size)

    def finish(self) -> None:
        """Let the job's folder go."""
        if self._folder is not None:
            self._site.finish(self._folder)
            self._folder = None

    def _run(self, folder: Path, options: Mapping[str, Any]) -> None:
        end: dict[str, Any]
        try:
            result = self._site.run(folder, options, self._note, self._cancel.is_set)
            end = {"result": result, "made": self._site.made(folder, result)}
        except Interrupted as error:
            failure = {"type": "Interrupted", "message": str(error), "traceback": ""}
            end = {"result": {"schema": 1, "status": "interrupted", "error": failure, "model": None}, "made": {}}
        except Exception as error:
            end = {"fault": fault_data(error)}
        with self._changed:
            self._end = end
            self._changed.notify_all()

    def _note(self, event: Mapping[str, Any]) -> None:
        with self._changed:
            self._events.append({**event, "at": time.time()})
            self._changed.notify_all()

    def _new_log(self) -> bytes:
        if self._folder is None:
            return b""
        try:
            with (self._folder / "log.txt").open("rb") as handle:
                handle.seek(self._log_read)
                text = handle.read()
        except OSError:
            return b""
        self._log_read += len(text)
        return text
