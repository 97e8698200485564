from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from drupe.core.errors import ConfigError
from drupe.search.storage import JOURNAL, FileLock, open_home
from tests.search.synthetic import listing, open_study, run

WORKER = [sys.executable, "-m", "tests.search.synthetic"]
ROOT = Path(__file__).parents[2]


def start(
    folder: Path,
    *,
    sampler: str = "random",
    trials: int = 20,
    pause: float = 0.0,
    storage: str = "",
    meeting: Path | None = None,
) -> subprocess.Popen[str]:
    """Start a worker; meeting: an empty folder, where two of them wait for each other before they work."""
    command = [*WORKER, str(folder), sampler, str(trials), str(pause), storage, str(meeting or "")]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def kill_until_done(folder: Path, after: list[float], *, sampler: str, trials: int, pause: float) -> None:
    """Run the study again and again, killing it after so many seconds; the last run is left alone."""
    for seconds in after:
        process = start(folder, sampler=sampler, trials=trials, pause=pause)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(folder, sampler=sampler, trials=trials, pause=pause)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_killed_driver_loses_and_doubles_nothing(tmp_path: Path) -> None:
    undisturbed = open_study(tmp_path / "whole", sampler="tpe", max_trials=12)
    run(undisturbed)
    kill_until_done(tmp_path / "killed", [0.55, 0.8, 0.65, 0.7, 0.9], sampler="tpe", trials=12, pause=0.03)
    resumed = open_study(tmp_path / "killed", sampler="tpe", max_trials=12)
    assert listing(resumed) == listing(undisturbed)
    assert resumed.select() == undisturbed.select()
    assert len(resumed._trials()) == 12


def test_a_killed_workers_trial_is_run_by_the_other(tmp_path: Path) -> None:
    (tmp_path / "meeting").mkdir()
    doomed, other = (start(tmp_path, trials=14, pause=0.12, meeting=tmp_path / "meeting") for _ in range(2))
    study = open_study(tmp_path, sampler="random", max_trials=14)
    end = time.monotonic() + 60
    while len(study.finished()) < 4:
        assert time.monotonic() < end
        time.sleep(0.01)
    doomed.send_signal(signal.SIGKILL)
    doomed.communicate()
    other.communicate(timeout=60)
    assert [number for number, _ in listing(study)] == list(range(14))
    assert len(study._trials()) == 14
    assert study.ask() is None


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_two_processes_share_an_exact_budget(tmp_path: Path, kind: str) -> None:
    storage = f"sqlite:///{tmp_path}/study.db" if kind == "sqlite" else ""
    processes = [start(tmp_path, trials=16, pause=0.01, storage=storage) for _ in range(2)]
    counts = [int(process.communicate(timeout=120)[0]) for process in processes]
    assert sum(counts) == 16
    study = open_study(tmp_path, sampler="random", max_trials=16, storage=storage or None)
    assert [number for number, _ in listing(study)] == list(range(16))


def test_a_half_written_line_is_cut_off(tmp_path: Path) -> None:
    study = open_study(tmp_path, max_trials=4)
    run(study)
    before = listing(study)
    study.close()
    with (tmp_path / JOURNAL).open("ab") as handle:
        handle.write(b'{"op_code":4,"worker_id":"x","study')
    again = open_study(tmp_path, max_trials=5)
    assert listing(again) == before
    assert run(again) == 1


def test_a_damaged_study_file_is_told(tmp_path: Path) -> None:
    study = open_study(tmp_path, max_trials=4)
    run(study)
    study.close()
    path = tmp_path / JOURNAL
    path.write_bytes(path.read_bytes().replace(b'{"op_code":4', b'{"op_c', 1))
    with pytest.raises(ConfigError, match="is damaged"):
        open_study(tmp_path, max_trials=4)


def test_a_storage_that_cannot_be_opened_is_told_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_home("mysql+nodriver://user:hunter2@localhost/study", tmp_path)
    assert "hunter2" not in str(caught.value)
    assert "can't be opened" in str(caught.value)


def test_a_lock_can_be_entered_again_and_keeps_other_threads_out(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    order = []

    def other() -> None:
        with lock.held():
            order.append("other")

    with lock.held():
        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        with lock.held():
            time.sleep(0.05)
        order.append("first")
    thread.join(30)
    assert order == ["first", "other"]


def test_a_full_disk_is_told_and_the_study_goes_on_afterwards(tmp_path: Path) -> None:
    # A limit on file sizes fails writes halfway through a line, as a full disk does.
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY)); "
        "from pathlib import Path; from tests.search.synthetic import open_study, run; "
        f"run(open_study(Path({str(tmp_path)!r}), sampler='random', max_trials=12))"
    )
    failed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert failed.returncode != 0
    assert "StoreError: the study journal://" in failed.stderr
    assert "File too large" in failed.stderr
    study = open_study(tmp_path, sampler="random", max_trials=12)
    assert 0 < len(study.finished()) < 12
    run(study)
    assert [number for number, _ in listing(study)] == list(range(12))
    assert len(study._trials()) == 12
