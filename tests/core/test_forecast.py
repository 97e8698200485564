"""What `drupe plan` says before anything is spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drupe.core.config import Choice, FloatRange, IntRange
from drupe.core.forecast import part_size
from tests.support.workflows import drupe, goal, runs, toy_document, write_workflow


@pytest.mark.parametrize(
    ("split", "parts", "expected"),
    [
        ({}, ("certification",), 408),
        ({"train": 120, "selection": 60, "certification": 60}, ("certification",), 60),
        ({"train": 120, "selection": 60, "certification": "rest"}, ("certification",), 228),
        ({"selection": 0.5, "certification": 0.5}, ("certification",), 204),
        ({"selection": 0.25, "certification": 0.25}, ("selection", "certification"), 204),
        ({"train": 108, "selection": 100}, ("certification",), 200),
        ({"train": 300, "seed": 3}, ("selection", "certification"), 108),
    ],
)
def test_the_items_of_a_part(split: dict[str, Any], parts: tuple[str, ...], expected: int) -> None:
    assert part_size(split, parts, lambda: 408) == expected


def test_counts_need_no_total() -> None:
    assert part_size({"train": 9, "certification": 60, "selection": "rest"}, ("certification",), lambda: None) == 60
    assert part_size({"certification": 0.5, "selection": 0.5}, ("certification",), lambda: None) is None


def plan(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    done = drupe("plan", write_workflow(folder, document), "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def test_the_power_of_a_goal_on_the_items_that_certify(tmp_path: Path) -> None:
    document = toy_document(tmp_path)
    document["data_configs"][0]["split"] = {"selection": 0, "certification": 408}
    goal(document, 0.01, confidence=0.95, kind="max-degradation")
    (power,) = plan(tmp_path, document)["power"]
    assert power["items"] == 408
    assert power["text"].startswith(
        "accuracy-accuracy_score: 408 items, 1-point limit: a lossless model is certified with 23%; 3,100 items for 80%"
    )
    said = drupe("plan", tmp_path / "workflow.json", folder=tmp_path).stdout
    assert f"power   {power['text']}" in said
    # A goal without a confidence certifies nothing, so it has no power.
    goal(document, 0.01, kind="max-degradation")
    assert plan(tmp_path, document)["power"] == []


def test_where_the_items_are_not_known_it_says_how_many_it_takes(tmp_path: Path) -> None:
    document = toy_document(tmp_path)
    goal(document, 0.01, confidence=0.95, kind="max-degradation")
    (power,) = plan(tmp_path, document)["power"]
    assert power["items"] is None
    assert "known after loading only; 3,0" in power["text"]


def test_the_time_is_what_steps_took_before_in_this_store(tmp_path: Path) -> None:
    passes = {"append": {"type": "Append", "text": {"search": ["!", "?"]}, "times": {"search": [3, 9]}}}
    document = toy_document(tmp_path, passes=passes, search_strategy={"max_trials": 4, "seed": 1})
    first = plan(tmp_path, document)["time"]
    assert first["seconds"] is None
    assert first["text"] == "nothing is known yet: no step of this workflow has run in this store"
    assert not (tmp_path / "cache").exists()
    assert drupe("run", write_workflow(tmp_path, document), folder=tmp_path).returncode == 0
    before = runs(tmp_path)
    again = plan(tmp_path, document)["time"]
    assert again["text"] == "none: all 4 steps and their measurements are in the store"
    passes["append"]["times"] = {"search": [3, 9, 12]}
    passes["last"] = {"type": "Raises", "fail": False}
    document["search_strategy"]["max_trials"] = 6
    more = plan(tmp_path, document)["time"]
    assert (more["steps"], more["stored"], more["unknown"]) == (12, 4, ["Raises"])
    assert more["seconds"] is not None
    assert "4 of 12 steps are in the store; a step took Append" in more["text"]
    assert more["text"].endswith("nothing is known yet of Raises")
    assert runs(tmp_path) == before


def test_a_space_without_end_is_planned_by_some_of_its_points(tmp_path: Path) -> None:
    from random import Random

    from drupe.core.forecast import _one_of

    draw = Random(1)
    assert 0 <= _one_of(IntRange(0, 10**12), draw) <= 10**12
    assert 0.5 <= _one_of(FloatRange(0.5, 2.0), draw) <= 2.0
    assert _one_of(FloatRange(0.0, 1.0, step=0.25), draw) in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert _one_of(Choice("a"), draw) == "a"
    passes = {"append": {"type": "Append", "times": {"search": {"low": 1, "high": 10**9}}}}
    document = toy_document(tmp_path, passes=passes, search_strategy={"max_trials": 3, "seed": 1})
    single = write_workflow(tmp_path, {**document, "passes": {"append": {"type": "Append"}}, "search_strategy": False})
    assert drupe("run", single, folder=tmp_path).returncode == 0
    planned = plan(tmp_path, document)
    assert (planned["trials"], planned["time"]["steps"], planned["time"]["stored"]) == (3, 3, 0)
