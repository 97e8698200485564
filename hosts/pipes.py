"""The pipes to a process that is done with: none is left open, whatever way it ended."""

from __future__ import annotations

import subprocess
import threading
from contextlib import suppress
from typing import Any

__all__ = ["close_input", "let_go"]

_SECONDS = 1


def close_input(process: subprocess.Popen[Any]) -> None:
    """Close the process's input; what was not written of it is lost where the process is gone."""
    with suppress(OSError, ValueError):
        if process.stdin is not None:
            process.stdin.close()


def let_go(process: subprocess.Popen[Any], *readers: threading.Thread) -> None:
    """Close the input of a process that has ended, and wait for those who read its output to close that.

    A reader ends with what it reads, unless something that left the process's group still holds the other end: then it
    is not waited for.
    """
    close_input(process)
    for reader in readers:
        if reader is not threading.current_thread():
            reader.join(_SECONDS)
