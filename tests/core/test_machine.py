"""The machine: its lock between timed and ordinary jobs, its devices, its GPUs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drupe.core.errors import Interrupted
from drupe.core.locks import is_wanted
from drupe.core.machine import cpu_count, devices, fingerprint, gpu_names, lock_folder, machine_lock


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUPE_LOCKS", str(tmp_path / "locks"))


def refused(exclusive: bool) -> bool:
    """Whether the machine can't be had at once."""
    try:
        with machine_lock(exclusive, lambda: True):
            return False
    except Interrupted:
        return True


def test_ordinary_jobs_share_and_a_timed_one_is_alone() -> None:
    with machine_lock(False):
        assert not refused(False)
        assert refused(True)
    with machine_lock(True):
        assert refused(False)
        assert refused(True)
    assert not refused(True)


def test_it_holds_across_processes() -> None:
    code = "import sys; from drupe.core.machine import machine_lock\n"
    code += "with machine_lock(True):\n print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert refused(False)
        other.communicate()
    assert not refused(False)


def test_a_waiting_timed_job_goes_before_new_ordinary_ones() -> None:
    order: list[str] = []
    release = threading.Event()

    def take(exclusive: bool, name: str) -> None:
        with machine_lock(exclusive):
            order.append(name)
            if name == "first":
                release.wait(30)

    def until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)

    threads = []
    waits: list[tuple[bool, str, Callable[[], bool]]] = [
        (False, "first", lambda: order == ["first"]),
        (True, "timed", lambda: is_wanted(lock_folder())),
        (False, "late", lambda: True),
    ]
    for exclusive, name, there in waits:
        thread = threading.Thread(target=take, args=(exclusive, name), daemon=True)
        thread.start()
        threads.append(thread)
        until(there)
    time.sleep(0.2)
    assert order == ["first"]
    release.set()
    for thread in threads:
        thread.join(30)
    assert order == ["first", "timed", "late"]


def test_all_users_find_the_lock_at_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DRUPE_LOCKS")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder = lock_folder()
    assert folder == Path("/tmp/drupe-locks")
    assert folder.stat().st_mode & 0o1777 == 0o1777


def test_devices_begin_with_the_processor() -> None:
    first = devices()[0]
    assert first["device"] == "cpu"
    assert first["cores"] == cpu_count() >= 1
    assert len(fingerprint()) == 32


def test_gpus_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert gpu_names() == ("2", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_names() == ()
