"""How many jobs run at once on a host, and on which of its GPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from drupe.core.errors import HostError, Interrupted

__all__ = ["Gpus", "Slots"]

_POLL_SECONDS = 0.1


class Slots:
    """So many places; 0 means no limit."""

    def __init__(self, count: int) -> None:
        self._free = threading.Semaphore(count) if count else None

    @contextmanager
    def take(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        """Hold a place, waiting for one. Raises Interrupted when `cancelled` says so meanwhile."""
        if self._free is None:
            yield
            return
        while not self._free.acquire(timeout=_POLL_SECONDS):
            if cancelled():
                raise Interrupted("stopped while waiting for a free place on the host")
        try:
            yield
        finally:
            self._free.release()


class Gpus:
    """The GPUs of this machine, whole or in parts."""

    def __init__(self, names: Sequence[str]) -> None:
        """names: as CUDA_VISIBLE_DEVICES has them."""
        self._free = dict.fromkeys(names, 1.0)
        self._lock = threading.Lock()

    @contextmanager
    def take(self, count: float, cancelled: Callable[[], bool]) -> Iterator[tuple[str, ...]]:
        """Hold `count` GPUs and give their names; below 1, a part of one. None are held for 0.

        Raises HostError when the machine has too few, Interrupted when `cancelled` says so while waiting.
        """
        if count <= 0:
            yield ()
            return
        if count > 1 and count != int(count):
            raise HostError(f"the job asks for {count:g} GPUs; more than one is a whole number", retry=False)
        if count > len(self._free):
            found = len(self._free) or "none"
            raise HostError(f"the job asks for {count:g} GPUs and this machine has {found}", retry=False)
        share, number = min(count, 1.0), max(1, int(count))
        waiting = threading.Event()
        while not (names := self._try(share, number)):
            if cancelled():
                raise Interrupted("stopped while waiting for a free GPU")
            waiting.wait(_POLL_SECONDS)
        try:
            yield names
        finally:
            with self._lock:
                for name in names:
                    self._free[name] += share

    def _try(self, share: float, number: int) -> tuple[str, ...]:
        with self._lock:
            # The fullest first, so that whole ones stay whole.
            fitting = sorted((free, name) for name, free in self._free.items() if free >= share - 1e-9)[:number]
            if len(fitting) < number:
                return ()
            for _, name in fitting:
                self._free[name] -= share
            return tuple(name for _, name in fitting)
