"""Warm workers and connections: the message where none can be had, and nothing left open whatever way one ends."""

from __future__ import annotations

import gc
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drupe.core.errors import HostError
from drupe.hosts.connection import Connection
from drupe.hosts.warm import WarmWorker

AGENT = [sys.executable, "-m", "drupe.hosts.agent"]


@pytest.fixture(autouse=True)
def nothing_left_open(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """Fail for a pipe or process that is only let go of by the garbage collector."""
    warnings.simplefilter("always", ResourceWarning)
    gc.collect()
    recwarn.clear()
    yield
    gc.collect()
    assert [str(one.message) for one in recwarn if issubclass(one.category, ResourceWarning)] == []


def connect(command: list[str], patience: float = 30) -> Connection:
    return Connection(command, {}, lambda said, code: (f"it ended: {said} ({code})", False), patience=patience)


def test_a_worker_that_ends_at_once_says_what_it_said_last() -> None:
    with pytest.raises(HostError, match=r"ended before it was ready \(.+\): ModuleNotFoundError: .*'not_there'"):
        WarmWorker([sys.executable, "-c", "import not_there"])


def test_a_worker_whose_output_is_not_its_own_is_ended() -> None:
    with pytest.raises(HostError, match=r"ended before it was ready \(SIGKILL"):
        WarmWorker([sys.executable, "-c", "import time; print('hello', flush=True); time.sleep(60)"])


@pytest.mark.parametrize("end", [WarmWorker.kill, WarmWorker.close])
def test_nothing_of_a_worker_is_left(end: Callable[[WarmWorker], None]) -> None:
    worker = WarmWorker([sys.executable])
    end(worker)
    assert not worker.alive
    with pytest.raises(HostError, match="the worker is gone"):
        worker._send({"cancel": True})


def test_a_worker_that_died_is_let_go_of() -> None:
    worker = WarmWorker([sys.executable])
    worker._signal(signal.SIGKILL)
    worker._process.wait(10)
    worker.kill()


@pytest.mark.parametrize("end", [Connection.kill, Connection.close])
def test_nothing_of_a_connection_is_left(end: Callable[[Connection], None], tmp_path: Path) -> None:
    connection = connect([*AGENT, str(tmp_path)])
    assert connection.facts["drupe"]
    end(connection)
    assert not connection.alive
    with pytest.raises(HostError, match="it ended"):
        connection.missing([])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('no agent here'); import sys; sys.exit('no such door')", "it ended: no such door"),
        ("import time; time.sleep(60)", "no answer came within 1 s"),
    ],
)
def test_a_connection_that_never_was_leaves_nothing(code: str, message: str) -> None:
    with pytest.raises(HostError, match=message):
        connect([sys.executable, "-c", code], patience=1)


def test_a_file_that_nobody_reads_does_not_keep_a_connection(tmp_path: Path) -> None:
    connection = connect([*AGENT, str(tmp_path)])
    with pytest.raises(HostError):
        connection.get("0" * 64, tmp_path / "file")
    connection.kill()
