"""Keys of Olive's metrics and evaluators that change nothing here: whoever reads a workflow is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drupe.core.registry import get_registry
from drupe.core.workflow.read import Examination, examine
from tests.support.workflows import drupe, write_workflow


def examined(folder: Path, judge: dict[str, Any]) -> Examination:
    (folder / "model").mkdir()
    document = {
        "input_model": {"type": "HfModel", "model_path": "model"},
        "evaluators": {"judge": judge},
        "evaluator": "judge",
        "passes": {"convert": {"type": "OnnxConversion"}},
    }
    (folder / "workflow.json").write_text(json.dumps(document), encoding="utf-8")
    return examine(folder / "workflow.json", get_registry())


@pytest.mark.parametrize("name", ["LMEvaluator", "MTEBEvaluator"])
@pytest.mark.parametrize("group", [None, "type_args"])
def test_keys_of_a_benchmark_are_told_and_left_out(tmp_path: Path, name: str, group: str | None) -> None:
    keys = {
        "output_folder": "scores",
        "model_class": "ort",
        "ep": "CPUExecutionProvider",
        "ep_options": {"a": "1"},
        "execution_provider": "CPUExecutionProvider",
        "provider_options": {"a": "1"},
        "device": "cpu",
    }
    found = examined(tmp_path, {"type": name, "tasks": ["a"], **({group: keys} if group else keys)})
    where = f"evaluators.judge.{group}" if group else "evaluators.judge"
    assert {notice.path: notice.now for notice in found.notices} == {f"{where}.{key}": "left out" for key in keys}
    assert all(notice.why for notice in found.notices)
    assert found.workflow is not None
    assert found.workflow.evaluators["judge"].metrics[0].config == {"tasks": ["a"]}


@pytest.mark.parametrize("group", [None, "user_config"])
def test_keys_of_a_metric_are_told_and_left_out(tmp_path: Path, group: str | None) -> None:
    keys = {"io_bind": True, "inference_settings": {"onnx": {}}, "post_processing_func": "argmax"}
    metric = {"name": "speed", "type": "latency", **({group: keys} if group else keys)}
    found = examined(tmp_path, {"metrics": [metric]})
    where = f"evaluators.judge.metrics.0.{group}" if group else "evaluators.judge.metrics.0"
    assert {notice.path: notice.now for notice in found.notices} == {f"{where}.{key}": "left out" for key in keys}
    assert found.workflow is not None and found.workflow.evaluators["judge"].metrics[0].config == {}


def test_a_key_of_another_metric_is_still_a_fault(tmp_path: Path) -> None:
    found = examined(tmp_path, {"metrics": [{"name": "size", "type": "size_on_disk", "user_config": {"ep": "x"}}]})
    assert [fault.path for fault in found.faults] == ["evaluators.judge.metrics.0.user_config.ep"]


def test_options_of_a_sub_type_are_no_options_of_a_metric_that_has_none(tmp_path: Path) -> None:
    sub_type = {"name": "loss", "metric_config": {"average": "macro"}}
    found = examined(tmp_path, {"metrics": [{"name": "p", "type": "perplexity", "sub_types": [sub_type]}]})
    assert [fault.path for fault in found.faults] == ["evaluators.judge.metrics.0.sub_types.0.metric_config"]


def test_the_command_shows_it(tmp_path: Path) -> None:
    judge = {"type": "LMEvaluator", "tasks": ["a"], "device": "cpu"}
    (tmp_path / "model").mkdir()
    document = {
        "input_model": {"type": "HfModel", "model_path": "model"},
        "evaluators": {"judge": judge},
        "evaluator": "judge",
        "passes": {},
    }
    done = drupe("validate", write_workflow(tmp_path, document), folder=tmp_path)
    text = " ".join((done.stdout + done.stderr).split())
    assert "evaluators.judge.device" in text and "the target's accelerator says where the model runs" in text
