"""Whole searches with multi-fidelity, on texts: the same winner from fewer samples, nothing measured twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.workflows import drupe, goal, manifest, runs, toy_document, write_workflow

SAMPLES = 200


def document(folder: Path, *, longest: int = 12, **search: object) -> dict[str, Any]:
    """24 candidates, 14 of which miss the goal by far; 200 samples select, 200 certify."""
    times = [12, 3, 9, 1, 11, 5, 2, 10, 4, 7, 8, 6][:longest]
    passes = {"append": {"type": "Append", "text": {"search": ["!", "?"]}, "times": {"search": times}}}
    found = toy_document(folder, passes=passes, search_strategy={"sampler": "brute-force", "seed": 1, **search})
    goal(found, 0.5, confidence=0.95)
    return found


def run(folder: Path, workflow: dict[str, Any]) -> dict[str, Any]:
    done = drupe("run", write_workflow(folder, workflow), folder=folder)
    assert "Traceback" not in done.stdout + done.stderr
    target: dict[str, Any] = manifest(folder)["targets"]["here"]
    return {**target, "code": done.returncode, "said": done.stdout}


def evaluations(folder: Path) -> int:
    """How many samples the metric has really seen."""
    return sum(int(line.split()[-1]) for line in runs(folder) if line.startswith("measure accuracy"))


def test_the_same_certified_winner_from_a_third_of_the_samples(tmp_path: Path) -> None:
    full, raced = tmp_path / "full", tmp_path / "raced"
    for folder in (full, raced):
        folder.mkdir()
    wanted = run(full, document(full))
    got = run(raced, document(raced, multi_fidelity=True))
    assert (wanted["code"], got["code"]) == (0, 0)
    assert got["status"] == "certified"
    assert got["winner"] == wanted["winner"]
    assert got["certification"] == wanted["certification"]
    counts = got["sample_evaluations"]
    assert counts["in_full"] == 24 * SAMPLES == evaluations(full) - SAMPLES
    assert counts["measured"] == evaluations(raced) - SAMPLES
    assert counts["in_full"] >= 3 * counts["measured"]
    assert f"Sample evaluations: {counts['measured']:,} instead of 4,800" in got["said"]
    winner = next(c for c in got["candidates"] if c["number"] == got["winner"])
    same = next(c for c in wanted["candidates"] if c["number"] == got["winner"])
    # Put together from pieces, it is what measuring at once gives.
    assert winner["measurements"] == same["measurements"]
    cut = [c for c in got["candidates"] if c["state"] == "pruned"]
    assert len(cut) == counts["cut_short"] >= 14
    assert all(c["measurements"]["accuracy-accuracy_score"]["of"] == SAMPLES for c in cut)
    assert all(c["lost_because"].startswith("cut short: ") for c in cut)
    assert "sample_evaluations" not in wanted


def test_pieces_are_extended_and_never_measured_twice(tmp_path: Path) -> None:
    raced = run(tmp_path, document(tmp_path, longest=4, multi_fidelity={"first": 20, "growth": 2.5}))
    before = evaluations(tmp_path)
    # The study is lost, its steps are not: the same trials again, nothing measured.
    (tmp_path / "out/study/study.journal").unlink()
    again = run(tmp_path, document(tmp_path, longest=4, multi_fidelity={"first": 20, "growth": 2.5}))
    assert evaluations(tmp_path) == before
    assert [c["state"] for c in again["candidates"]] == [c["state"] for c in raced["candidates"]]
    assert again["sample_evaluations"] == raced["sample_evaluations"]
    # What was measured in full is not measured again by a search that wants all of it.
    complete = sum(c["state"] == "complete" for c in raced["candidates"])
    assert 0 < complete < 8
    full = run(tmp_path, document(tmp_path, longest=4))
    assert evaluations(tmp_path) - before == (8 - complete) * SAMPLES
    assert full["winner"] == raced["winner"]


@pytest.mark.parametrize("keep", ["winner", "front"])
def test_the_whole_front_is_measured_where_it_is_wanted(tmp_path: Path, keep: str) -> None:
    # Shorter texts answer worse and are smaller, so every candidate that meets the goal is on the front.
    done = run(tmp_path, document(tmp_path, longest=9, multi_fidelity={"keep": keep}))
    assert done["code"] == 0
    by_times = {times: set() for times in (12, 3, 9, 1, 11, 5, 2, 10, 4)}
    for c in done["candidates"]:
        by_times[c["point"]["append.times"]].add(c["state"])
    assert by_times[12] >= {"complete"}
    assert by_times[1] == by_times[2] == by_times[3] == {"pruned"}
    assert ("complete" in by_times[9]) == (keep == "front")


def test_a_cheap_goal_that_breaks_spares_the_samples(tmp_path: Path) -> None:
    workflow = document(tmp_path, longest=4, multi_fidelity=True)
    size = workflow["evaluators"]["quality"]["metrics"][1]
    size["sub_types"][0]["goal"] = {"type": "threshold", "value": 12}
    done = run(tmp_path, workflow)
    assert done["status"] == "undecided" or done["code"] == 0
    long = [c for c in done["candidates"] if c["point"]["append.times"] == 12]
    assert {c["state"] for c in long} == {"pruned"}
    assert all(list(c["measurements"]) == ["size-characters"] for c in long)
    assert all("breaks size-characters threshold 12: 14 characters" in c["error"] for c in long)
    assert not any("measure accuracy ab!!!!!!!!!!!!" in line for line in runs(tmp_path))


def test_where_no_goal_can_be_met_the_nearest_is_told_with_what_was_seen(tmp_path: Path) -> None:
    workflow = document(tmp_path, longest=3, multi_fidelity=True)
    goal(workflow, 0.95, confidence=0.95)
    done = run(tmp_path, workflow)
    assert done["code"] == 3
    assert done["winner"] is None
    assert "nearest: candidate" in done["message"]
    assert f"of {SAMPLES} samples)" in done["message"]
    told = drupe("search", "best", "out", folder=tmp_path)
    assert told.returncode == 3
    assert "as far as it was measured" in told.stderr


def test_a_limit_against_the_baseline(tmp_path: Path) -> None:
    workflow = document(tmp_path, longest=5, multi_fidelity=True)
    goal(workflow, 0.4, kind="min-improvement")
    done = run(tmp_path, workflow)
    assert done["code"] == 0, done["said"]
    assert {c["point"]["append.times"] for c in done["candidates"] if c["state"] == "complete"} <= {12, 9, 11}


def test_a_metric_that_fails_never_wins_a_race(tmp_path: Path) -> None:
    workflow = document(tmp_path, longest=2, multi_fidelity=True)
    broken = {"name": "value", "goal": {"type": "threshold", "value": 0}}
    workflow["evaluators"]["quality"]["metrics"].append(
        {"name": "odd", "type": "toy_broken", "data_config": "items", "sub_types": [broken]}
    )
    done = run(tmp_path, workflow)
    assert done["code"] == 3
    assert all("the toy metric can't measure this" in c["metric_errors"]["odd"] for c in done["candidates"])


def test_two_workers_race_to_the_same_winner(tmp_path: Path) -> None:
    done = run(tmp_path, document(tmp_path, longest=8, multi_fidelity=True, workers=2))
    assert done["code"] == 0, done["said"]
    winner = next(c for c in done["candidates"] if c["number"] == done["winner"])
    assert winner["point"]["append.times"] == 12
    assert [c["number"] for c in done["candidates"]] == list(range(16))
    assert done["sample_evaluations"]["measured"] == evaluations(tmp_path) - SAMPLES
    assert {c["state"] for c in done["candidates"] if c["point"]["append.times"] < 6} == {"pruned"}


def test_near_ties_are_dropped_within_the_margin_of_indifference(tmp_path: Path) -> None:
    """Texts of 15 to 12 characters, the longest first: each is 5 points behind the next, 10 behind the best but one."""
    times = [13, 12, 11, 10]
    passes = {"append": {"type": "Append", "times": {"search": times}}}
    counts = {}
    for margin in (0, 0.2):
        folder = tmp_path / str(margin)
        folder.mkdir()
        fidelity = {"indifference": margin} if margin else True
        strategy = {"sampler": "brute-force", "multi_fidelity": fidelity}
        found = run(folder, toy_document(folder, passes=passes, search_strategy=strategy))
        assert (found["code"], found["winner"]) == (0, 0)
        counts[margin] = found["sample_evaluations"]
        cut = [c["error"] for c in found["candidates"] if c["state"] == "pruned"]
    assert len(cut) == 3
    assert all("unlikely to beat the best candidate so far by more than the indifference of 0.2" in why for why in cut)
    assert counts[0.2]["measured"] < counts[0]["measured"]
    assert counts[0.2]["indifference"] == 0.2
    assert counts[0.2]["guarantee"] == (
        "with a probability of at least 0.9, the winner's accuracy-accuracy_score on all selection samples is "
        "within 0.2 of the best feasible one's"
    )
    assert "guarantee" not in counts[0]
    assert f"  {counts[0.2]['guarantee']}" in found["said"]
