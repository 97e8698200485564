"""Runs `drupe` in a process of its own that need not import anything again.

A server that has Drupe's modules and what they import forks a child for each command. The child is a process like any
other: its own environment, folder, output, locks and exit code, and the workers that it starts start cold. Only what
has been imported is there already; how long that takes, and that it is little, is for tests that start Python. Two
servers take turns, so that two commands which follow each other never agree on the order of a set by chance.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["run_command"]

_SERVER = Path(__file__).with_name("command_server.py")


class _Server:
    """One server and its lines. Not for several threads at once."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def run(self, request: Mapping[str, Any], timeout: float) -> int:
        """Have a command run and return its exit code."""
        deadline = time.monotonic() + timeout
        child = None
        try:
            if self._process is None:
                one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
                self._process = subprocess.Popen(
                    [sys.executable, _SERVER], env={**os.environ, **one}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            child = self._line(deadline)["pid"]
            code: int = self._line(deadline)["code"]
            return code
        except BaseException:
            # Whatever it was, a time-out among others: what it says from now on would be about this command.
            if child is not None:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            self.close()
            raise

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process, self._buffer = None, b""

    def _line(self, deadline: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not waiting.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                chunk = os.read(self._process.stdout.fileno(), 65536)
                if not chunk:
                    raise RuntimeError(f"{_SERVER.name} ended with {self._process.wait()}")
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


_servers = [_Server(), _Server()]
_lock = threading.Lock()
for _server in _servers:
    atexit.register(_server.close)


def run_command(
    arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `drupe` with these arguments as `python -m drupe` would. Raises TimeoutExpired."""
    command = ["drupe", *arguments]
    with _lock, tempfile.TemporaryDirectory(prefix="drupe-command-") as folder:
        files = {name: Path(folder) / name for name in ("stdout", "stderr")}
        request = {"arguments": list(arguments), "env": dict(env), "cwd": str(cwd)}
        _servers.reverse()
        try:
            code = _servers[0].run(request | {name: str(path) for name, path in files.items()}, timeout)
        except TimeoutError:
            raise subprocess.TimeoutExpired(command, timeout) from None
        texts = [path.read_text(encoding="utf-8") for path in files.values()]
    return subprocess.CompletedProcess(command, code, *texts)
