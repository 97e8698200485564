"""Workers in separate processes on one study in PostgreSQL, from Debian's packages."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drupe.search.reading import find_home, read_work
from tests.search import joined
from tests.search.synthetic import listing, open_study
from tests.search.test_storage import start
from tests.support.workflows import start_drupe

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)

pytestmark = [
    pytest.mark.skipif(PROGRAMS is None, reason="no PostgreSQL: apt-get install postgresql"),
    pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL is started as its own user, which takes root"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    pytest.importorskip("psycopg2")
    assert PROGRAMS is not None
    # Its user must reach the folder, and pytest's own is for root only.
    folder = Path("/tmp") / f"drupe-postgresql-{os.getpid()}"
    folder.mkdir()
    user = pwd.getpwnam("postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def as_postgres(*command: str) -> None:
        subprocess.run(command, check=True, user="postgres", cwd="/tmp", stdout=subprocess.DEVNULL)

    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    as_postgres(str(PROGRAMS / "initdb"), "-D", str(folder / "data"), "-A", "trust", "--no-sync")
    as_postgres(
        str(PROGRAMS / "pg_ctl"), "-D", str(folder / "data"), "-o", options, "-w", "-l", str(folder / "log"), "start"
    )
    try:
        yield f"postgresql://postgres:secret@127.0.0.1:{port}/postgres"
    finally:
        as_postgres(str(PROGRAMS / "pg_ctl"), "-D", str(folder / "data"), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def server(cluster: str) -> str:
    """The URL of a database with nothing in it."""
    import psycopg2

    name = f"db_{time.time_ns():x}"
    connection = psycopg2.connect(cluster)
    connection.autocommit = True
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    return f"{cluster.rpartition('/')[0]}/{name}"


def test_two_processes_share_one_study(server: str, tmp_path: Path) -> None:
    # Each has an output folder of its own, as on two machines; they also make the tables at the same moment.
    (tmp_path / "meeting").mkdir()
    processes = [
        start(tmp_path / name, trials=16, pause=0.02, storage=server, meeting=tmp_path / "meeting") for name in "ab"
    ]
    counts = [int(process.communicate(timeout=120)[0]) for process in processes]
    assert sum(counts) == 16
    assert min(counts) > 0
    study = open_study(tmp_path / "c", sampler="random", max_trials=16, storage=server)
    assert [number for number, _ in listing(study)] == list(range(16))
    assert study.ask() is None


def test_a_killed_workers_trial_is_run_by_the_other(server: str, tmp_path: Path) -> None:
    (tmp_path / "meeting").mkdir()
    doomed, other = (
        start(tmp_path / name, trials=18, pause=0.15, storage=server, meeting=tmp_path / "meeting") for name in "ab"
    )
    deadline = time.monotonic() + 60
    study = open_study(tmp_path / "c", sampler="random", max_trials=18, storage=server)
    while len(study.finished()) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    doomed.send_signal(signal.SIGKILL)
    doomed.communicate()
    other.communicate(timeout=120)
    assert [number for number, _ in listing(study)] == list(range(18))
    assert len(study._trials()) == 18


def test_a_driver_and_a_worker_share_one_study(server: str, tmp_path: Path) -> None:
    driver = start_drupe("run", joined.write(tmp_path, server), folder=tmp_path)
    view = joined.begun(server, driver)
    said = joined.finish(joined.join(tmp_path, server, view.name)).splitlines()[-1]
    joined.finish(driver)
    joined.check(tmp_path)
    assert 1 <= int(said.removeprefix(f"{view.name} is complete; ").split()[0]) < joined.TRIALS
    for name in ("drupe.json", "logs/drupe.log"):
        assert "secret" not in (tmp_path / "out" / name).read_text()
    # The database itself has the workflow for those that join, and its own password in none of it.
    name, work = read_work(find_home(server), view.name)
    assert work["target"] == "here"
    assert "secret" not in json.dumps(work)
