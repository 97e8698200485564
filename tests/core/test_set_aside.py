"""A host that fails a trial, or several in a row: what goes on, what stops, what the next run takes up."""

from __future__ import annotations

from pathlib import Path

from tests.support.workflows import drupe, manifest, runs, toy_document, write_workflow


def test_a_trial_that_its_host_fails_is_set_aside_and_the_others_go_on(tmp_path: Path) -> None:
    passes = {"unlucky": {"type": "Unlucky", "fatal": {"search": [True, False]}}}
    strategy = {"max_trials": 2, "sampler": "brute-force"}
    path = write_workflow(tmp_path, toy_document(tmp_path, passes=passes, search_strategy=strategy))
    done = drupe("run", path, folder=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "trial 0 is set aside, other trials go on; the board is gone" in done.stdout
    assert "Winner for here: candidate 1" in done.stdout
    assert "the same command takes up the trials that were set aside" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    found = manifest(tmp_path)
    target = found["targets"]["here"]
    aside = {"number": 0, "point": {"unlucky.fatal": True}, "host": "here", "error": "the board is gone"}
    assert (found["exit_code"], target["set_aside"]) == (1, [aside])
    assert [(c["number"], c["state"]) for c in target["candidates"]] == [(1, "complete")]
    (tmp_path / "space").touch()
    again = drupe("run", path, folder=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    target = manifest(tmp_path)["targets"]["here"]
    assert [(c["number"], c["state"]) for c in target["candidates"]] == [(0, "complete"), (1, "complete")]
    assert target["winner"] == 0
    assert "set_aside" not in target
    assert runs(tmp_path).count("Unlucky True") == 2
    assert runs(tmp_path).count("Unlucky False") == 1


def test_three_failures_in_a_row_stop_a_target_and_the_others_finish(tmp_path: Path) -> None:
    systems = {name: {"type": "LocalSystem", "in_process": True} for name in ("here", "there")}
    systems["there"]["runtime_options"] = {"gone": True}
    passes = {"append": {"type": "Append", "times": {"search": [1, 2, 3, 4, 5], "ordered": True}}}
    strategy = {"max_trials": 5, "seed": 1}
    document = toy_document(tmp_path, passes=passes, systems=systems, search_strategy=strategy)
    document["target"] = ["there", "here"]
    path = write_workflow(tmp_path, document)
    done = drupe("run", path, folder=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    said = "the host there failed 3 trials in a row, last with: the rack is dark; the same command goes on from here"
    assert done.stdout.count(f"No winner for there: stopped; {said}") == 1
    found = manifest(tmp_path)["targets"]
    assert (found["there"]["status"], found["there"]["message"]) == ("stopped", said)
    assert [one["number"] for one in found["there"]["set_aside"]] == [0, 1, 2]
    assert found["here"]["status"] == "met"
    assert len(found["here"]["candidates"]) == 5
    (tmp_path / "space").touch()
    again = drupe("run", path, folder=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    candidates = manifest(tmp_path)["targets"]["there"]["candidates"]
    assert [(c["number"], c["state"]) for c in candidates] == [(n, "complete") for n in range(5)]


def test_without_a_search_a_host_that_fails_stops_its_target(tmp_path: Path) -> None:
    done = drupe(
        "run", write_workflow(tmp_path, toy_document(tmp_path, passes={"u": {"type": "Unlucky"}})), folder=tmp_path
    )
    assert done.returncode == 1
    assert "No winner for here: stopped; the host here failed every trial, last with: the board is gone" in done.stdout
