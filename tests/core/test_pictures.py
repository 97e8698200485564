"""Pictures of steps become files of the output folder, whatever a report calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drupe.core.executor import StepResult
from drupe.core.pictures import write_pictures
from drupe.core.results import chain_json


def step(**report: Any) -> StepResult:
    return StepResult("0123456789abcdef", "tune it", "LoRA", 0.0, False, "here", None, report)


def test_a_picture_is_a_file_and_the_manifest_names_it(tmp_path: Path) -> None:
    made = step(pictures={"curves.svg": "<svg/>"}, tokens=3)
    write_pictures(tmp_path, [made])
    [told] = chain_json([made], [{}])
    assert told["report"] == {"tokens": 3, "pictures": {"curves.svg": "pictures/tune_it-0123456789ab/curves.svg"}}
    assert (tmp_path / told["report"]["pictures"]["curves.svg"]).read_text() == "<svg/>"
    assert "<svg" not in json.dumps(told)


def test_the_same_step_of_many_trials_is_drawn_once(tmp_path: Path) -> None:
    made = step(pictures={"curves.svg": "<svg/>"})
    write_pictures(tmp_path, [made, made])
    path = tmp_path / "pictures" / "tune_it-0123456789ab" / "curves.svg"
    written = path.stat().st_mtime_ns
    write_pictures(tmp_path, [made])
    assert path.stat().st_mtime_ns == written
    assert [p.name for p in path.parent.iterdir()] == ["curves.svg"]


@pytest.mark.parametrize(
    "pictures", ["none", {"../out.svg": "<svg/>"}, {"/etc/x": "x"}, {"a.svg": 3}, {".": "x"}, None]
)
def test_what_can_not_be_a_file_is_left_in_the_report(tmp_path: Path, pictures: Any) -> None:
    made = step(pictures=pictures)
    write_pictures(tmp_path / "out", [made])
    assert not list(tmp_path.rglob("*"))
    assert chain_json([made], [{}])[0]["report"] == {"pictures": pictures}
