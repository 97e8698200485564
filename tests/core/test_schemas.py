"""The files that Drupe writes match the JSON Schemas that it ships."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from drupe.core.job import Job, JobData
from drupe.core.model import Model
from drupe.core.schemas import load_schema
from tests.support.workflows import drupe, goal, manifest, toy_document, write_workflow


@pytest.mark.parametrize("name", ["job", "result", "manifest"])
def test_each_schema_is_a_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(load_schema(name))  # type: ignore[arg-type]


def test_a_job_matches_and_comes_back_the_same() -> None:
    model = Model("text", {"text.txt": "a" * 64}, {"task": "chat"})
    job = Job("pass", "b" * 64, "tune", "LoRA", {"r": 4}, inputs={"model": model}, data={"d": JobData("T", {"n": 1})})
    jsonschema.validate(job.to_json(), load_schema("job"))
    assert Job.from_json(job.to_json()).to_json() == job.to_json()
    with pytest.raises(ValueError, match="this drupe reads schema 1"):
        Job.from_json({**job.to_json(), "schema": 2})


@pytest.mark.parametrize(("limit", "code"), [(0.1, 0), (0.9, 3)])
def test_a_manifest_matches_whatever_came_out(tmp_path: Path, limit: float, code: int) -> None:
    document = toy_document(
        tmp_path,
        passes={"append": {"type": "Append"}, "risky": {"type": "Raises", "fail": {"search": [True, False]}}},
        search_strategy={"max_trials": 2, "seed": 1},
    )
    goal(document, limit)
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    jsonschema.validate(manifest(tmp_path), load_schema("manifest"))
