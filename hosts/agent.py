"""The far end of a connection: `python -m drupe.hosts.agent ROOT` serves a Site over stdin and stdout.

Requests and answers are frames. A request {"do": …} is answered by {"reply": …} or {"fault": …}; while a job runs,
{"event": …} and {"log": …} come in between. When its input ends, the agent ends with all that it started.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from drupe.core.disk import store_errors
from drupe.core.errors import DrupeError, Interrupted
from drupe.core.host_faults import fault_data
from drupe.hosts.frames import payload, read_header, write_frame
from drupe.hosts.site import Site, facts

__all__ = ["main"]

_LOG_SECONDS = 0.2


class _Agent:
    def __init__(self, root: Path, requests: IO[bytes], answers: IO[bytes]) -> None:
        self._root = root
        self._requests, self._answers = requests, answers
        self._queue: queue.Queue[dict[str, Any]] = queue.Queue()
        self._cancel = threading.Event()
        self._writing = threading.Lock()
        self._site: Site | None = None
        self._folder: Path | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def site(self) -> Site:
        if self._site is None:
            self._site = Site(self._root)
        return self._site

    def _listen(self) -> None:
        with suppress(ValueError, OSError, EOFError):
            while (header := read_header(self._requests)) is not None:
                if header["do"] == "cancel":
                    self._cancel.set()
                    continue
                if header["do"] == "put":
                    header["part"], header["error"] = self._arriving(header)
                if header["do"] == "run":
                    self._cancel.clear()
                self._queue.put(header)
        # The driver is gone: nobody waits for what runs here. It starts again from its checkpoint.
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        if self._site is not None:
            self._site.close()
        os._exit(0)

    def _arriving(self, header: Mapping[str, Any]) -> tuple[Path | None, Exception | None]:
        """Write what arrives to a file; where that fails, the rest is read over, so that the next frame is found."""
        error: Exception | None = None
        part = None
        chunks = payload(self._requests, header["size"])
        try:
            part = self.site.part(header["digest"])
            with store_errors("a file that arrived can't be kept"), part.open("wb") as handle:
                for chunk in chunks:
                    handle.write(chunk)
        except (OSError, DrupeError) as found:
            error = found
            for _ in chunks:
                pass
        return part, error

    def run(self) -> None:
        """Answer requests, one after the other."""
        while True:
            request = self._queue.get()
            try:
                self._answer(request)
            except Exception as error:
                self._say({"fault": fault_data(error)})

    def _answer(self, request: Mapping[str, Any]) -> None:
        match request["do"]:
            case "begin":
                os.environ.update(request["env"])
                sys.path[1:1] = [p for p in request["env"].get("PYTHONPATH", "").split(os.pathsep) if p]
                self._say({"reply": {**facts(), "free": self.site.free()}})
            case "missing":
                self._say({"reply": {"missing": self.site.missing(request["digests"]), "free": self.site.free()}})
            case "put":
                if request["error"] is not None:
                    raise request["error"]
                self.site.keep(request["digest"], request["part"])
                self._say({"reply": "kept"})
            case "run":
                self._run(request)
            case "get":
                path = self.site.path(request["digest"])
                with path.open("rb") as handle:
                    self._say({"reply": "file", "size": path.stat().st_size}, handle)
            case "finish":
                if self._folder is not None:
                    self.site.finish(self._folder)
                    self._folder = None
                self._say({"reply": "finished"})
            case other:
                raise ValueError(f"no request is called {other!r}")

    def _run(self, request: Mapping[str, Any]) -> None:
        folder = self._folder = self.site.prepare(request["job"], request["files"])
        with _Follower(folder / "log.txt", lambda text: self._say({"log": text})):
            try:
                result = self.site.run(folder, request["options"], lambda e: self._say(dict(e)), self._cancel.is_set)
            except Interrupted as error:
                error_data = {"type": "Interrupted", "message": str(error), "traceback": ""}
                result = {"schema": 1, "status": "interrupted", "error": error_data, "model": None}
        self._say({"reply": {"result": result, "made": self.site.made(folder, result)}})

    def _say(self, header: Mapping[str, Any], source: IO[bytes] | None = None) -> None:
        with self._writing:
            write_frame(self._answers, header, source)


class _Follower:
    """Passes on a file's text as it grows, to its end."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        self._read = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        self._forward()

    def _follow(self) -> None:
        while not self._done.wait(_LOG_SECONDS):
            self._forward()

    def _forward(self) -> None:
        with suppress(OSError), self._path.open("rb") as handle:
            handle.seek(self._read)
            data = handle.read()
            self._read += len(data)
            if data:
                self._say(data.decode("utf-8", errors="replace"))


def main() -> None:
    """Serve until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb")
    requests = os.fdopen(os.dup(0), "rb")
    # What else is printed here must not end up among the answers.
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    with suppress(OSError):
        os.setpgid(0, 0)
    _Agent(Path(sys.argv[1]), requests, answers).run()


if __name__ == "__main__":
    main()
