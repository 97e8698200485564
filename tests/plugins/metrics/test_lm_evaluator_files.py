"""LMEvaluator in workflow files: read, checked and refused without lm-evaluation-harness."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from drupe.core.errors import EvaluationError
from drupe.core.registry import Registry
from drupe.core.study import Goal
from drupe.core.workflow.read import Examination, examine
from tests.plugins.metrics.sessions import AnsweringSession, configured, context, metric, model

OLIVE = {"type": "LMEvaluator", "tasks": ["arc_easy", "mmlu"], "batch_size": 32, "provider_options": {"a": "1"}}


def look(evaluator: dict[str, Any], folder: Path) -> Examination:
    document = {
        "input_model": {"type": "HfModel", "model_path": str(folder)},
        "passes": {"q": {"type": "Rtn"}},
        "evaluators": {"judge": evaluator},
        "evaluator": "judge",
    }
    return examine(folder / "w.json", Registry.discover(), document=document)


def listing(*sub_types: dict[str, Any], **user: Any) -> dict[str, Any]:
    config = {"tasks": ["tone", "wiki"], **user}
    return {"metrics": [{"name": "bench", "type": "LMEvaluator", "user_config": config, "sub_types": list(sub_types)}]}


def test_an_evaluator_of_that_type_is_one_metric_that_names_its_values_as_it_measures(tmp_path: Path) -> None:
    found = look(OLIVE, tmp_path)
    assert not found.of_kind("fault") and not found.of_kind("missing")
    assert found.workflow is not None
    (entry,) = found.workflow.evaluators["judge"].metrics
    assert (entry.name, entry.sub_types) == ("LMEvaluator", ())


def test_goals_know_the_direction_by_the_names_that_the_harness_uses(tmp_path: Path) -> None:
    goal = {"type": "threshold", "value": 0.5}
    names = ("tone-acc", "wiki-word_perplexity", "tone-exact_match,strict-match")
    found = look(listing(*({"name": name, "goal": goal} for name in names)), tmp_path)
    assert found.workflow is not None
    goals = found.workflow.evaluators["judge"].goals
    assert [(g.metric, g.direction) for g in goals] == [
        ("bench-tone-acc", "higher"),
        ("bench-wiki-word_perplexity", "lower"),
        ("bench-tone-exact_match,strict-match", "higher"),
    ]
    entry_name = found.workflow.evaluators["judge"].entry_name
    assert {entry_name(g.metric) for g in goals} == {"bench"}
    own = look(listing({"name": "tone-loss", "goal": goal, "higher_is_better": False}), tmp_path)
    assert own.workflow is not None
    assert own.workflow.evaluators["judge"].goals == (Goal("bench-tone-loss", "threshold", 0.5, "lower", None),)


def test_a_share_of_85_is_a_fault(tmp_path: Path) -> None:
    faults = look(listing({"name": "tone-acc", "goal": {"type": "threshold", "value": 85}}), tmp_path).of_kind("fault")
    assert [fault.hint for fault in faults] == ["85 % is 0.85"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tasks": []}, "tasks"),
        ({"limit": 2.5}, "whole number"),
        ({"tasks": ["a", "a"]}, "twice"),
        ({"task": 1}, "task"),
    ],
)
def test_what_is_wrong_is_told_as_the_file_is_read(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    faults = look({**OLIVE, **options}, tmp_path).of_kind("fault")
    assert len(faults) == 1 and told in str(faults[0])


def test_the_command_that_installs_the_harness_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    made = metric("LMEvaluator")
    with pytest.raises(EvaluationError, match=r"pip install 'drupe\[lm-eval\]'"):
        config = configured(made, tasks=["a"])
        made.measure(model(tmp_path), AnsweringSession(str), (), config, context(tmp_path))
