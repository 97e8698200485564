"""Which pass of the winner's chain changed a metric by how much, through the command."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.workflows import drupe, goal, runs, toy_document, write_workflow


def test_each_pass_of_the_winner_is_charged_with_its_own_change(tmp_path: Path) -> None:
    passes = {
        "grow": {"type": "Append", "text": "g", "times": {"search": [10, 12], "ordered": True}},
        "same": {"type": "Raises", "fail": False},
    }
    document = toy_document(tmp_path, passes=passes, search_strategy={"seed": 1})
    goal(document, 0.5, confidence=0.95)
    assert drupe("run", write_workflow(tmp_path, document), folder=tmp_path).returncode == 0
    before = len(runs(tmp_path))
    done = drupe("search", "explain", "out", "--passes", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["passes"]
    assert (found["metric"], found["candidate"], found["target"]) == ("accuracy-accuracy_score", 1, "here")
    # The text grows from 2 to 14 to 15 characters, of 20 that answer everything.
    grow, same = found["changes"]
    assert (grow["name"], same["name"]) == ("grow", "same")
    assert abs(grow["change"] - 0.6) < 0.1
    assert abs(same["change"] - 0.05) < 0.05
    assert grow["after"] == same["before"]
    assert grow["interval"][0] > 0.4
    # The input and the model in between were measured on the samples that certified; the winner's came from the store.
    assert [line.split()[-1] for line in runs(tmp_path)[before:]] == ["200", "200"]
    said = drupe("search", "explain", "out", "--passes", folder=tmp_path)
    assert "accuracy-accuracy_score along the chain of candidate 1 on here:" in said.stdout
    assert "beyond noise" in said.stdout
    assert len(runs(tmp_path)) == before + 2


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = drupe("search", "explain", "out", "--passes", folder=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
