"""Ranks as who asks them sees them: several processes that are given the same work at one time."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from drupe.core.errors import EvaluationError

__all__ = ["Ranks"]

_MOST = 250
"""How many sockets one message can hand over."""
_STUCK_SECONDS = 10.0
"""How long the others are waited for where one has failed: they may wait for it."""
_CLOSE_SECONDS = 5.0


class _Server:
    """The process that forks ranks; it has imported what they need, so that they start at once and share its memory."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        # What this process can import they can, wherever it was told to look.
        paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "drupe.plugins.huggingface.parallel.rank", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                env={**os.environ, "PYTHONPATH": paths},
                # The folder that this process is in may go while it runs.
                cwd="/",
            )
        self.owner = os.getpid()

    def fork(self, count: int) -> list[Connection]:
        """Start ranks. Raises EvaluationError."""
        pairs = [socket.socketpair() for _ in range(count)]
        try:
            socket.send_fds(self._control, [b"x"], [theirs.fileno() for _, theirs in pairs])
        except OSError as error:
            raise EvaluationError(f"ranks can't be started: {error}{self.last_words()}") from error
        finally:
            for _, theirs in pairs:
                theirs.close()
        return [Connection(ours.detach()) for ours, _ in pairs]

    def last_words(self) -> str:
        """Return the end of what the processes wrote, for a message."""
        end = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, end - 2000))
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return f"; the last that was told: {lines[-1].strip()}" if lines else ""

    def close(self) -> None:
        """End the process; it ends by itself once nobody can ask it."""
        if os.getpid() != self.owner:
            return
        self._control.close()
        try:
            self.process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


_lock = threading.Lock()
_server: _Server | None = None


def _running() -> _Server:
    global _server
    with _lock:
        if _server is None or _server.owner != os.getpid() or _server.process.poll() is not None:
            _server = _Server()
            atexit.register(_server.close)
        return _server


class Ranks:
    """`count` processes on this machine that exchange tensors: by gloo on a CPU, by NCCL on GPUs, one each."""

    def __init__(self, count: int, *, device: str = "cpu", threads: int | None = None) -> None:
        """Start them. device: "cpu" or "cuda". threads: of all together. Raises EvaluationError."""
        if count > _MOST:
            raise EvaluationError(f"the model is split over {count} ranks; on one machine up to {_MOST} are started")
        self._folder = tempfile.TemporaryDirectory(prefix="drupe-ranks-")
        self._server = _running()
        self._connections: list[Connection] = []
        try:
            self._connections = self._server.fork(count)
            store = str(Path(self._folder.name) / "store")
            self._each("join", [(rank, count, store, device, threads) for rank in range(count)])
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Return what each rank gives for a method of `rank.Rank`. Raises EvaluationError with what a rank raised."""
        return [found for found, _ in self._each(method, [arguments] * len(self._connections))]

    def call(self, name: str, *arguments: Any, alone: bool = False, **named: Any) -> tuple[Any, float]:
        """Return what the first rank's session gives for one of its methods, and how many seconds it took.

        alone: the others have no part in it.
        """
        told = ("call", [(name, arguments, named)] * (1 if alone else len(self._connections)))
        found, seconds = self._each(*told, first_only=True)[0]
        return found, float(seconds)

    def _each(self, method: str, arguments: list[tuple[Any, ...]], *, first_only: bool = False) -> list[Any]:
        """Return (result, seconds) of each rank, in order."""
        try:
            return self._exchanged(method, arguments, first_only)
        except EvaluationError:
            raise
        except BaseException:
            # Answers to what was interrupted would be taken for those to what comes next.
            self.close()
            raise

    def _exchanged(self, method: str, arguments: list[tuple[Any, ...]], first_only: bool) -> list[Any]:
        asked = self._connections[: len(arguments)]
        if not asked:
            raise EvaluationError("the ranks have ended; open the model again")
        try:
            for number, (connection, own) in enumerate(zip(asked, arguments, strict=True)):
                connection.send((method, own, not (first_only and number)))
        except OSError as error:
            raise self._ended() from error
        answers: dict[Connection, Any] = {}
        failed: str | None = None
        while len(answers) < len(asked):
            ready = wait([one for one in asked if one not in answers], _STUCK_SECONDS if failed else None)
            if not ready:
                # One raised an error where the others wait for it: they can't go on.
                self.close()
                break
            for connection in (one for one in asked if one in ready):
                try:
                    answers[connection] = connection.recv()
                except (EOFError, OSError) as error:
                    raise self._ended() from error
                if answers[connection][1] is None:
                    failed = failed or str(answers[connection][0])
        if failed is not None:
            raise EvaluationError(failed)
        return [answers[connection] for connection in asked]

    def _ended(self) -> EvaluationError:
        told = EvaluationError(f"a rank ended in the middle of its work{self._server.last_words()}")
        self.close()
        return told

    def close(self) -> None:
        """End the ranks."""
        for connection in self._connections:
            with suppress(OSError):
                connection.close()
        self._connections = []
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
