"""`drupe hosts FILE`: what it tells of systems, and that it leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.workflows import drupe, toy_document, write_workflow


def test_looking_at_systems_leaves_no_cache(tmp_path: Path) -> None:
    systems = {"here": {"type": "LocalSystem"}, "away": {"type": "SSH", "address": "nowhere.invalid"}}
    path = write_workflow(tmp_path, toy_document(tmp_path, systems=systems))
    done = drupe("hosts", path, "--json", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    here, away = json.loads(done.stdout)
    assert here["faults"] == [] and here["devices"][0]["instruction_sets"] is not None
    assert here["drupe"]["there"] == here["drupe"]["here"]
    assert here["plugins"]["drupe-toy"]["there"] == "1.0"
    (fault,) = away["faults"]
    assert fault.startswith("systems.away: SSH nowhere.invalid: can't be reached")
    assert not (tmp_path / "cache").exists() and not (tmp_path / "out").exists()


def test_a_check_runs_a_job_there(tmp_path: Path) -> None:
    document = toy_document(tmp_path, systems={"here": {"type": "LocalSystem", "in_process": True}})
    done = drupe("hosts", write_workflow(tmp_path, document), "--check", "here", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["seconds"] >= 0 and isinstance(row["found"], dict)
    assert not (tmp_path / "cache").exists()
