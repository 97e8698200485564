"""What a run notices about its data and results by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.workflows import drupe, goal, manifest, toy_document, write_workflow


def run(folder: Path, document: dict[str, Any]) -> tuple[int, str, dict[str, Any]]:
    done = drupe("run", write_workflow(folder, document), folder=folder)
    assert "Traceback" not in done.stdout + done.stderr
    target: dict[str, Any] = manifest(folder)["targets"]["here"]
    return done.returncode, done.stdout, target


def taught(folder: Path, train: str) -> dict[str, Any]:
    document = toy_document(folder)
    document["data_configs"].append({"name": "other", "type": "ToyItems", "count": 100})
    document["passes"] = {"learn": {"type": "Learn", "train_data_config": train, "times": 12}}
    return document


def test_training_data_that_evaluates_as_well_is_told_with_its_share(tmp_path: Path) -> None:
    code, said, target = run(tmp_path, taught(tmp_path, "other"))
    assert code == 0
    text = "100 of the samples of the evaluation data items (25.0%) are in the training data other as well"
    assert [text in warning for warning in target["warnings"]] == [True]
    assert said.count(text) == 2  # when it is found, and at the end


def test_a_split_keeps_training_and_evaluation_apart(tmp_path: Path) -> None:
    document = taught(tmp_path, "items")
    document["data_configs"][0]["split"] = {"train": 100, "selection": 150, "certification": 150}
    code, said, target = run(tmp_path, document)
    assert (code, target["warnings"]) == (0, [])
    assert "warning" not in said
    del document["data_configs"][0]["split"]
    _, said, target = run(tmp_path, document)
    assert "400 of the samples of the evaluation data items (100.0%) are in the training data items" in said


def test_an_overlap_is_told_again_by_a_run_that_finds_every_step_done(tmp_path: Path) -> None:
    document = taught(tmp_path, "other")
    document["passes"]["learn"]["times"] = {"search": [11, 12]}
    document["search_strategy"] = {"seed": 1}
    goal(document, 0.3, confidence=0.9)
    first = run(tmp_path, document)[2]["warnings"]
    assert len(first) == 2  # what selects and what certifies, each beside what trains; nothing of the two halves
    assert sorted(run(tmp_path, document)[2]["warnings"]) == sorted(first)


def test_a_gain_that_nothing_explains_is_flagged(tmp_path: Path) -> None:
    document = toy_document(tmp_path, evaluate_input_model=True)
    document["passes"]["append"]["times"] = 14
    _, said, target = run(tmp_path, document)
    (warning,) = target["warnings"]
    assert "implausible: accuracy-accuracy_score 0.8" in warning
    assert "though nothing in this chain learns" in warning
    assert "warning: implausible" in said
    # A chain that trains is hoped to gain; it is not suspected.
    learning = taught(tmp_path, "items")
    learning["evaluate_input_model"] = True
    learning["data_configs"][0]["split"] = {"train": 100}
    assert run(tmp_path, learning)[2]["warnings"] == []


def test_where_nothing_meets_the_goals_the_run_says_what_stood_in_the_way(tmp_path: Path) -> None:
    passes = {"append": {"type": "Append", "times": {"search": [3, 9, 12], "ordered": True}}}
    document = toy_document(tmp_path, passes=passes, search_strategy={"seed": 1})
    goal(document, 0.95)
    code, said, target = run(tmp_path, document)
    assert code == 3
    assert target["explanation"]["binding"] == "accuracy-accuracy_score threshold 0.95"
    assert target["explanation"]["front"] == [0, 1, 2]
    assert "the goal that blocks: accuracy-accuracy_score threshold 0.95" in said
    assert "nearest relaxation: candidate 2 would be feasible with accuracy-accuracy_score threshold 0.95 → 0.7" in said
    assert "no other candidate beats: 0, 1, 2" in said
    json.dumps(target["explanation"], allow_nan=False)
    assert set(target["explanation"]["importance"]) == {"accuracy-accuracy_score", "size-characters"}
