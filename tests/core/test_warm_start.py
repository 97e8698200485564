"""Several targets: the second study starts from what the first one found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.workflows import drupe, goal, manifest, toy_document, write_workflow


@pytest.mark.parametrize("sampler", ["tpe", "brute-force"])
def test_the_next_target_tries_the_best_points_of_the_last_one_first(tmp_path: Path, sampler: str) -> None:
    passes = {"append": {"type": "Append", "times": {"search": {"low": 1, "high": 18}}}}
    search = {"sampler": sampler, "max_trials": 8, "seed": 1}
    document: dict[str, Any] = toy_document(tmp_path, passes=passes, search_strategy=search)
    document["systems"]["there"] = {"type": "LocalSystem", "in_process": True}
    document["target"] = ["here", "there"]
    goal(document, 0.2)
    path = write_workflow(tmp_path, document)
    done = drupe("run", path, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "there: the search starts from the 2 best points of here" in done.stdout
    targets = manifest(tmp_path)["targets"]
    here, there = targets["here"]["candidates"], targets["there"]["candidates"]
    # The budget stays what it is.
    assert [c["number"] for c in here] == [c["number"] for c in there] == list(range(8))
    best = sorted(here, key=lambda c: -c["measurements"]["accuracy-accuracy_score"]["value"])[:2]
    assert [c["point"] for c in there[:2]] == [c["point"] for c in best]
    assert len({c["point"]["append.times"] for c in there}) == 8
    assert targets["there"]["started_from"] == {"target": "here", "points": 2}
    assert "started_from" not in targets["here"]
    again = drupe("run", path, folder=tmp_path)
    assert again.returncode == 0
    assert [c["point"] for c in manifest(tmp_path)["targets"]["there"]["candidates"]] == [c["point"] for c in there]
