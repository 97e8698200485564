"""`drupe worker`: a second process on the study of a driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.search.joined import TRIALS, begun, check, finish, join, write
from tests.support.workflows import drupe, manifest, runs, start_drupe, toy_document, write_workflow


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_two_processes_run_one_study(tmp_path: Path, kind: str) -> None:
    storage = f"sqlite:///{tmp_path}/db/study.db" if kind == "sqlite" else None
    driver = start_drupe("run", write(tmp_path, storage), folder=tmp_path)
    where = storage or str(tmp_path / "out")
    view = begun(where, driver)
    said = finish(join(tmp_path, where, view.name[:8])).splitlines()[-1]
    finish(driver)
    check(tmp_path)
    helped = int(said.removeprefix(f"{view.name} is complete; ").split()[0])
    assert 1 <= helped < TRIALS


def test_a_worker_with_a_home_of_its_own_shares_a_store_below_a_url(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = write(tmp_path, cache_dir=f"file://{tmp_path}/shared")
    driver = start_drupe("run", path, folder=tmp_path)
    view = begun(str(tmp_path / "out"), driver)
    said = finish(join(tmp_path / "elsewhere", str(tmp_path / "out"), view.name)).splitlines()[-1]
    finish(driver)
    assert 1 <= int(said.removeprefix(f"{view.name} is complete; ").split()[0]) < TRIALS
    # Each has noted its own work; the check is on what both did.
    with (tmp_path / "toy.log").open("a") as log:
        log.write("\n".join(runs(tmp_path / "elsewhere")) + "\n")
    check(tmp_path)


def test_what_a_workers_host_fails_is_left_to_the_others(tmp_path: Path) -> None:
    """The driver's machine has what the pass needs, the worker's has not."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "space").touch()
    path = write(tmp_path, cache_dir=f"file://{tmp_path}/shared", unlucky=True)
    driver = start_drupe("run", path, folder=tmp_path)
    view = begun(str(tmp_path / "out"), driver)
    worker = join(tmp_path / "elsewhere", str(tmp_path / "out"), view.name)
    said, _ = worker.communicate(timeout=120)
    assert worker.returncode == 1, said
    assert f"{view.name}: 0 of its trials were run here, " in said
    assert "could not be and are left to others; last: the board is gone" in said
    finish(driver)
    candidates = manifest(tmp_path)["targets"]["here"]["candidates"]
    assert [(c["number"], c["state"]) for c in candidates] == [(n, "complete") for n in range(TRIALS)]


def test_when_the_driver_is_killed_the_other_one_goes_on_to_the_end(tmp_path: Path) -> None:
    path = write(tmp_path)
    driver = start_drupe("run", path, folder=tmp_path)
    begun(str(tmp_path / "out"), driver)
    worker = join(tmp_path, str(tmp_path / "out"))
    begun(str(tmp_path / "out"), worker, trials=3)
    driver.kill()
    driver.communicate()
    finish(worker)
    done = drupe("run", path, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trial 7" not in done.stdout
    check(tmp_path, cut=1)


def test_what_cannot_be_joined_is_told(tmp_path: Path) -> None:
    absent = drupe("worker", tmp_path / "out", "here", folder=tmp_path)
    assert absent.returncode == 2
    assert "no study here" in absent.stderr
    assert drupe("run", write(tmp_path), folder=tmp_path).returncode == 0
    elsewhere = drupe("worker", tmp_path / "out", "here", "--cache-dir", tmp_path / "another", folder=tmp_path)
    assert elsewhere.returncode == 2
    assert "the study's input model is not in the store" in elsewhere.stderr
    assert "--cache-dir" in elsewhere.stderr


def test_labels_mean_what_they_meant_to_the_driver(tmp_path: Path) -> None:
    """A label that moved since would make another study of it."""
    (tmp_path / "latest").write_text("0")
    document = toy_document(
        tmp_path,
        data_configs=[{"name": "items", "type": "ToyItems", "count": 40, "start": "toy://@latest"}],
        passes={"append": {"type": "Append", "times": {"search": [1, 2]}}},
        search_strategy={"max_trials": 2},
    )
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "latest").write_text("5000")
    joined = drupe("worker", tmp_path / "out", "here", folder=tmp_path)
    assert joined.returncode == 0, joined.stdout + joined.stderr
    assert "is complete; 0 of its trials were run here" in joined.stdout
