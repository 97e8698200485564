"""What a run says where it stands still for another one, and where no goal was set."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.workflows import runs, start_drupe, toy_document, write_workflow


def test_a_run_that_waits_for_another_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    monkeypatch.setenv("DRUPE_TOY_HOLD", str(hold))
    passes = {"nap": {"type": "Sleepy", "steps": 6, "seconds": 0.01}}
    path = write_workflow(tmp_path, toy_document(tmp_path, passes=passes))
    both = [start_drupe("run", path, "--output-dir", tmp_path / name, folder=tmp_path) for name in ("one", "two")]
    with both[0], both[1]:
        # Whichever of the two comes second to the nap says so; the other one holds still until then.
        said = dict.fromkeys(both, "")
        for process in both:
            assert process.stdout is not None
            for line in process.stdout:
                said[process] += line
                if "nap: waiting for another trial or run, which is at it already …" in line or "nap (Sleepy)" in line:
                    break
        assert sorted(text.count("nap: waiting for another") for text in said.values()) == [0, 1], said
        hold.unlink()
        for process in both:
            said[process] += process.communicate(timeout=120)[0]
    assert [process.returncode for process in both] == [0, 0], said
    assert len([line for line in runs(tmp_path) if line.startswith("Sleepy")]) == 6
    # Without a goal nothing is said to have met one.
    assert all("candidate 0, no goal was set" in text and " met" not in text for text in said.values()), said
