"""This machine: what timings depend on, its devices, and the lock between timed jobs and others.

Ordinary jobs share the machine; a timed job has it alone. The lock is flock on two files that every driver and user of
this machine finds at the same place, and it ends with the process. A waiting timed job holds the gate, so that no new
ordinary job starts before it, and jobs that can be paused let it go first.
"""

from __future__ import annotations

import functools
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from drupe.core.digests import digest_of
from drupe.core.locks import gated_lock, is_wanted

__all__ = ["MachineShare", "cpu_count", "devices", "fingerprint", "gpu_names", "lock_folder", "machine_lock"]


@contextmanager
def machine_lock(exclusive: bool, cancelled: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Hold the machine, alone or shared. Raises Interrupted when `cancelled` says so while waiting."""
    with gated_lock(lock_folder(), "this machine", cancelled, exclusive=exclusive):
        yield


class MachineShare:
    """What one job holds of the machine: a share of it, all of it, or nothing for a while. Not for several threads."""

    def __init__(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        self._cancelled = cancelled
        self._held = ExitStack()
        self._shared = False

    def __enter__(self) -> MachineShare:
        return self

    def __exit__(self, *exception: object) -> None:
        self.give_up()

    def take(self, *, exclusive: bool = False, until: Callable[[], bool] = lambda: False) -> None:
        """Give up what is held and wait for a share, or for the whole. Raises Interrupted when cancelled meanwhile, or
        when `until` says that it has waited long enough."""
        self.give_up()
        self._held.enter_context(machine_lock(exclusive, lambda: self._cancelled() or until()))
        self._shared = not exclusive

    def give_up(self) -> None:
        """Hold nothing."""
        self._shared = False
        self._held.close()

    def wanted(self) -> bool:
        """Whether a share is held while a timed job waits to have the machine alone."""
        return self._shared and is_wanted(lock_folder())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the whole machine for a while, and a share of it again afterwards."""
        self.take(exclusive=True)
        try:
            yield
        finally:
            self.take()


def lock_folder() -> Path:
    """Return the folder of the machine's lock: $DRUPE_LOCKS, or one below /tmp that all users share."""
    if named := os.environ.get("DRUPE_LOCKS"):
        folder = Path(named)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    # Not TMPDIR, which differs between drivers.
    shared = Path("/tmp")
    folder = (shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())) / "drupe-locks"
    with suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(0o1777)
    return folder


def cpu_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _cpu_info() -> tuple[str, tuple[str, ...]]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), ()
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", "")).split()
    wanted = ("avx", "avx2", "avx512", "avx_vnni", "amx", "f16c", "fma", "sse4", "asimd", "sve", "bf16")
    sets = tuple(sorted({flag for flag in flags if flag.startswith(wanted)}))
    return fields.get("model name", platform.machine()), sets


def devices() -> Sequence[Mapping[str, Any]]:
    """Return the CPUs with their instruction sets, and the GPUs that their drivers show."""
    name, sets = _cpu_info()
    found: list[Mapping[str, Any]] = [
        {"device": "cpu", "name": name, "cores": cpu_count(), "instruction_sets": list(sets)}
    ]
    root = Path("/proc/driver/nvidia/gpus")
    if root.is_dir():
        for gpu in sorted(root.iterdir()):
            model = "NVIDIA GPU"
            for line in (gpu / "information").read_text().splitlines():
                if line.startswith("Model:"):
                    model = line.partition(":")[2].strip()
            found.append({"device": "gpu", "name": model, "cores": 1})
    return found if len(found) > 1 else found + _gpus_in_dev()


def _gpus_in_dev() -> list[Mapping[str, Any]]:
    """GPUs of which only the device files are seen: in containers, on WSL, AMD's."""
    places = ("nvidia[0-9]*", "NVIDIA GPU"), ("dxg", "GPU of the Windows host"), ("kfd", "AMD GPU")
    return next(
        (
            [{"device": "gpu", "name": name, "cores": 1} for _ in sorted(paths)]
            for pattern, name in places
            if (paths := list(Path("/dev").glob(pattern)))
        ),
        [],
    )


def gpu_names() -> tuple[str, ...]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip() not in ("", "-1"))
    return tuple(str(index) for index, _ in enumerate(d for d in devices() if d["device"] == "gpu"))


def fingerprint() -> str:
    """Return a digest of what timings on this machine depend on: processor, cores, devices, system."""
    name, sets = _cpu_info()
    return digest_of([name, list(sets), cpu_count(), platform.machine(), platform.system(), list(devices())[1:]])[:32]
