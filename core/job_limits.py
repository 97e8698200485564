"""What a job may use of the process that it runs in, and what it used: threads, memory."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["limit_threads", "memory_limit", "peak_memory", "reset_peak_memory"]

_LOOK_SECONDS = 0.2


def limit_threads(count: int) -> None:
    """Tell numeric libraries, loaded and to be loaded, how many threads to use."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = str(count)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(count)


@contextmanager
def memory_limit(limit: int | None, exceeded: Callable[[int], None]) -> Iterator[None]:
    """Watch the memory of this process and its children; call `exceeded` with the bytes used when over the limit.

    Address space is no measure of what numeric libraries use, so the resident memory is looked at from time to time.
    """
    if limit is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK_SECONDS):
            used = _resident()
            if used > limit:
                exceeded(used)
                return

    watcher = threading.Thread(target=watch, name="memory limit", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _resident() -> int:
    import psutil

    process = psutil.Process()
    used: int = process.memory_info().rss
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            used += child.memory_info().rss
    return used


def reset_peak_memory() -> None:
    """Begin a new peak. Where the kernel can't, the peak is the whole process's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int | None:
    """Return the most resident memory in bytes since the last reset, or None where the system does not tell."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
