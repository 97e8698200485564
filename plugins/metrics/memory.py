"""Peak memory: what opening and running the model adds to the process."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from pydantic import Field

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.core.metrics import Metric, Rows, SubType
from drupe.core.model import Model
from drupe.core.runtimes import Session
from drupe.plugins.metrics.timing import TimedMetricConfig, repeated

__all__ = ["PeakMemory"]


class PeakMemoryConfig(TimedMetricConfig):
    """How often the model is called while its memory is watched."""

    warmup_num: int = Field(0, ge=0, description="Calls before the watched ones.")
    repeat_test_num: int = Field(3, ge=1, description="Watched calls.")
    interval: float = Field(
        0.005, gt=0, description="Seconds between looks, where the system keeps no high-water mark."
    )


class PeakMemory(Metric):
    """The growth of the process's resident memory from before a fresh session is opened.

    One row: (bytes at the peak, bytes after opening). peak: while opening and running; open: once the model is loaded.
    What the libraries themselves take on their first use is in it only in a process that has not used them yet, so
    models that are compared should be measured by the same host. Memory of a GPU is not in it.
    """

    Config = PeakMemoryConfig
    version = 1
    sub_types: ClassVar[Mapping[str, SubType]] = {
        "peak": SubType("B", "lower", paired=False),
        "open": SubType("B", "lower", paired=False),
    }
    default_sub_type = "peak"

    def needs(self, config: PeakMemoryConfig) -> Sequence[str]:
        """See Metric.needs: it opens its own session."""
        return ()

    def measure(
        self,
        model: Model,
        session: Session | None,
        samples: Sequence[Sample],
        config: PeakMemoryConfig,
        context: JobContext,
    ) -> Rows:
        """See Metric.measure."""
        if context.model_sessions is None:
            raise EvaluationError("peak_memory opens the model itself, and this job offers no way to open one")
        _give_back()
        with _Watch(config.interval) as watch:
            opened = context.model_sessions()
            with opened:
                loaded = watch.look()
                repeated(opened, samples, config, context)
        return {"model": (float(watch.peak), float(loaded))}

    def aggregate(self, rows: Sequence[tuple[float, ...]], sub_type: str, config: PeakMemoryConfig) -> float:
        """See Metric.aggregate."""
        return max(row[0] if sub_type == "peak" else row[1] for row in rows)


class _Watch:
    """Watches the resident memory of the process, and of those that it starts (a session may live in one of its own);
    peak: the largest growth since it began, in bytes.

    Linux keeps high-water marks, which miss nothing; elsewhere a thread looks every few milliseconds.
    """

    def __init__(self, interval: float) -> None:
        import psutil

        self._process = psutil.Process()
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drupe-memory", daemon=True)
        self._base: int = self._process.memory_info().rss
        self._others_base = self._others()
        self._others_peak = 0
        self._marked = _reset_high_water()
        self.peak = 0

    def look(self) -> int:
        """Return the growth now."""
        others, most = (now - before for now, before in zip(self._others(), self._others_base, strict=True))
        self._others_peak = max(self._others_peak, most)
        growth = max(int(self._process.memory_info().rss) - self._base + others, 0)
        self.peak = max(self.peak, growth)
        return growth

    def _others(self) -> tuple[int, int]:
        """Return what the processes that this one started hold, and the most that they held, in bytes."""
        import psutil

        held = most = 0
        for child in self._process.children(recursive=True):
            try:
                rss = int(child.memory_info().rss)
            except psutil.Error:
                continue  # It has ended since.
            held += rss
            most += max(rss, _high_water(child.pid))
        return held, most

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.look()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.look()
        self._stop.set()
        self._thread.join()
        if self._marked:
            self.peak = max(self.peak, _high_water() - self._base + max(self._others_peak, 0))


def _reset_high_water() -> bool:
    """Set the kernel's high-water mark of this process to what it holds now; say whether that can be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return _high_water() > 0


def _high_water(process: int | str = "self") -> int:
    """Return the most that was resident since the mark was reset, in bytes; 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _give_back() -> None:
    """Return freed memory to the system, else a new model would fit into it unseen."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
