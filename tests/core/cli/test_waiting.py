"""What a run says where it stands still for another one, and where no goal was set."""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.workflows import drupe, ended, runs, start_drupe, toy_document, write_workflow


def test_a_run_that_waits_for_another_says_so(tmp_path: Path) -> None:
    passes = {"nap": {"type": "Sleepy", "steps": 15, "seconds": 0.2}}
    path = write_workflow(tmp_path, toy_document(tmp_path, passes=passes))
    first = start_drupe("run", path, folder=tmp_path)
    end = time.monotonic() + 60
    while not runs(tmp_path):
        assert time.monotonic() < end and first.poll() is None, ended(first)
        time.sleep(0.05)
    second = drupe("run", path, "--output-dir", tmp_path / "other", folder=tmp_path)
    said, _ = first.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), said + second.stdout + second.stderr
    assert "  nap: waiting for another trial or run, which is at it already …\n" in second.stdout
    assert "waiting for another" not in said
    assert len([line for line in runs(tmp_path) if line.startswith("Sleepy")]) == 15
    # Without a goal nothing is said to have met one.
    assert "candidate 0, no goal was set" in said and "met" not in said
