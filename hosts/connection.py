"""The near end of a connection to an agent: a command whose stdin and stdout lead there."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from drupe.core.errors import HostError, StoreError
from drupe.core.host_faults import fault_error
from drupe.core.hosts import Events
from drupe.hosts.frames import payload, read_header, write_frame
from drupe.hosts.pipes import close_input, let_go
from drupe.hosts.transfer import receive

__all__ = ["Connection"]

_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 120
_SAID_LINES = 20


class Connection:
    """One agent. Not for several threads at once. Raises HostError wherever the agent or the way to it is gone."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        explain: Callable[[str, int | None], tuple[str, bool]],
        *,
        patience: float = _ANSWER_SECONDS,
    ) -> None:
        """command: what leads to the agent. env: set there. explain: (what the command printed, its exit code) → what
        to say when it ends too early, and whether another try is worth it. patience: seconds to wait for answers.
        """
        self._explain = explain
        self._patience = patience
        self._frames: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._said: list[str] = []
        self._read_on = threading.Semaphore(0)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise HostError(f"{command[0]} can't be started: {error.strerror}", retry=False) from error
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()
        self._errors = threading.Thread(target=self._drain, daemon=True)
        self._errors.start()
        try:
            self.facts: Mapping[str, Any] = self._ask({"do": "begin", "env": dict(env)})["reply"]
        except BaseException:
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        """Whether the way is there."""
        return self._process.poll() is None

    def missing(self, digests: Sequence[str]) -> tuple[list[str], int]:
        """See Link."""
        reply = self._ask({"do": "missing", "digests": list(digests)})["reply"]
        return reply["missing"], reply["free"]

    def put(self, digest: str, path: Path) -> None:
        """See Link."""
        with path.open("rb") as handle:
            self._ask({"do": "put", "digest": digest, "size": path.stat().st_size}, handle)

    def run(
        self,
        job: Mapping[str, Any],
        files: Mapping[str, str],
        options: Mapping[str, Any],
        events: Events,
        log: IO[bytes],
        look: Callable[[Callable[[], None]], None],
    ) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """See Link."""
        self._send({"do": "run", "job": dict(job), "files": dict(files), "options": dict(options)})
        while True:
            look(lambda: self._send({"do": "cancel"}))
            with suppress(queue.Empty):
                frame = self._checked(self._frames.get(timeout=_POLL_SECONDS))
                if "log" in frame:
                    log.write(frame["log"].encode())
                elif "event" in frame:
                    events(frame)
                else:
                    return frame["reply"]["result"], frame["reply"]["made"]

    def get(self, digest: str, path: Path) -> None:
        """See Link."""
        header = self._ask({"do": "get", "digest": digest})
        try:
            assert self._process.stdout is not None
            receive(payload(self._process.stdout, header["size"]), digest, path)
        except EOFError as error:
            raise HostError(self._why()[0]) from error
        finally:
            self._read_on.release()

    def finish(self) -> None:
        """See Link."""
        self._ask({"do": "finish"})

    def close(self) -> None:
        """End the agent: it does when its input does."""
        close_input(self._process)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self.kill()

    def kill(self) -> None:
        """Cut the way; let go of the pipes to it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        # A file that was announced and that nobody reads any more.
        self._read_on.release()
        let_go(self._process, self._listening, self._errors)

    def _ask(self, header: Mapping[str, Any], source: IO[bytes] | None = None) -> dict[str, Any]:
        self._send(header, source)
        try:
            return self._checked(self._frames.get(timeout=self._patience))
        except queue.Empty:
            self.kill()
            raise HostError(f"no answer came within {self._patience:g} s") from None

    def _send(self, header: Mapping[str, Any], source: IO[bytes] | None = None) -> None:
        assert self._process.stdin is not None
        try:
            write_frame(self._process.stdin, header, source)
        except (OSError, ValueError) as error:
            message, retry = self._why()
            raise HostError(message, retry=retry) from error

    def _checked(self, frame: dict[str, Any] | None) -> dict[str, Any]:
        if frame is None:
            message, retry = self._why()
            raise HostError(message, retry=retry)
        if "fault" in frame:
            fault = fault_error(frame["fault"])
            # A store that fails there is that machine's fault; here it is this machine's store that "store" means.
            raise HostError(f"on the other machine: {fault}", retry=False) if isinstance(fault, StoreError) else fault
        return frame

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError, OSError), self._process.stdout as answers:
            while (header := read_header(answers)) is not None:
                self._frames.put(header)
                if header.get("size") is not None and "reply" in header:
                    # Its bytes are read by whoever asked for them.
                    self._read_on.acquire()
        self._frames.put(None)

    def _drain(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self._said.append(line.decode("utf-8", errors="replace").rstrip())
                del self._said[:-_SAID_LINES]

    def _why(self) -> tuple[str, bool]:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self._errors.join(1)
        return self._explain("\n".join(self._said), self._process.returncode)
