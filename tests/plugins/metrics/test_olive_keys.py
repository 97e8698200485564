"""Keys of Olive's metrics and evaluators that change nothing here: whoever reads a workflow is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drupe.core.registry import get_registry
from drupe.core.workflow.read import Examination, examine
from tests.plugins.metrics.sessions import configured, metric
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
    return examine(folder / "workflow.json", get_registry(), allow=frozenset({"user-scripts"}))


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
    keys = {
        "io_bind": True,
        "inference_settings": {"onnx": {}},
        "shared_kv_buffer": True,
        "post_processing_func": "argmax",
    }
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


EVERY_KEY = {
    "script_dir": "lib",
    "user_script": "mine.py",
    "inference_settings": {"onnx": {}},
    "data_dir": "data",
    "dataloader_func": "load",
    "func_kwargs": {"dataloader_func": {"size": 3}},
    "batch_size": 2,
    "input_names": ["x"],
    "input_shapes": [[1, 3]],
    "input_types": ["float32"],
    "shared_kv_buffer": True,
    "io_bind": True,
}
"""What Olive understands in the user_config of every metric, over its versions."""
FOLLOWED = {"script_dir", "user_script", "data_dir", "dataloader_func", "func_kwargs", "batch_size"}
RUN = ("accuracy", "latency", "throughput", "perplexity", "discrepancy", "embedding_similarity", "peak_memory")


@pytest.mark.parametrize("type_", [*RUN, "size_on_disk"])
def test_every_key_of_a_metric_is_followed_or_told(tmp_path: Path, type_: str) -> None:
    for name in ("lib", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine.py").write_text("def load(data_dir, batch_size, size): ...\n")
    found = examined(tmp_path, {"metrics": [{"name": "m", "type": type_, "user_config": EVERY_KEY}]})
    assert not found.faults
    assert {notice.found.split()[0] for notice in found.notices} == set(EVERY_KEY) - (
        FOLLOWED if type_ in RUN else set()
    )


def test_shapes_without_data_are_followed(tmp_path: Path) -> None:
    keys = {"input_names": ["x"], "input_shapes": [[1, 3]], "input_types": ["float32"]}
    found = examined(tmp_path, {"metrics": [{"name": "m", "type": "latency", "user_config": keys}]})
    assert not found.faults and not found.notices
    assert found.workflow is not None and found.workflow.evaluators["judge"].metrics[0].config == keys


def test_names_without_shapes_are_told(tmp_path: Path) -> None:
    keys = {"input_names": ["x"], "input_types": ["float32"]}
    found = examined(tmp_path, {"metrics": [{"name": "m", "type": "latency", "user_config": keys}]})
    assert not found.faults
    assert sorted(notice.found.split()[0] for notice in found.notices) == ["input_names", "input_types"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"input_names": ["x"], "input_shapes": [[1], [2]]}, "input_names has 1 entries; input_shapes has 2"),
        ({"input_types": ["float13"], "input_shapes": [[1]]}, "'float13' is no numpy type"),
        ({"input_types": ["str"], "input_shapes": [[1]]}, "'str' is no numpy type of numbers"),
        ({"input_names": ["x", "x"], "input_shapes": [[1], [1]]}, "['x', 'x']: expected each once"),
        ({"input_shapes": [[-1, 3]]}, "[-1, 3] is no shape; say sizes of at least 1"),
        ({"func_kwargs": {"metric_func": {}}}, "'metric_func' is no function of this metric; known: dataloader_func"),
        ({"run_kwargs": {"top_k": 5}}, "'top_k' is not supported; use generative or max_new_tokens"),
        ({"run_kwargs": {"generative": True}, "mode": "forward"}, "leave one of them out"),
    ],
)
def test_what_can_t_be_followed_is_refused_before_work(tmp_path: Path, keys: dict[str, Any], expected: str) -> None:
    found = examined(tmp_path, {"metrics": [{"name": "m", "type": "latency", "user_config": keys}]})
    (fault,) = found.faults
    assert fault.path.startswith("evaluators.judge.metrics.0.user_config")
    assert expected in f"{fault.found} {fault.expected} {fault.hint}"


def test_arguments_of_a_call_say_whether_it_generates(tmp_path: Path) -> None:
    made = metric("latency")
    config = configured(made, run_kwargs={"generative": True, "max_new_tokens": 5})
    assert (config.mode, config.max_new_tokens) == ("generate", 5)
    assert configured(metric("accuracy"), run_kwargs={"generative": True}).method == "generate"
    assert configured(metric("accuracy"), run_kwargs={"generative": False}).method == "classify"
    assert configured(made, run_kwargs={"generative": False}).mode == "forward"
    found = examined(tmp_path, {"metrics": [{"name": "m", "type": "discrepancy", "run_kwargs": {"generative": True}}]})
    assert "nothing is generated for this metric" in f"{found.faults[0].found} {found.faults[0].expected}"


def test_arguments_of_functions_may_stand_by_themselves(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def whole(model, factor): ...\n")
    keys = {"user_script": "mine.py", "evaluate_func": "whole", "evaluate_func_kwargs": {"factor": 2}}
    found = examined(tmp_path, {"metrics": [{"name": "m", "type": "custom", "user_config": keys}]})
    assert [notice.now for notice in found.notices] == ["func_kwargs.evaluate_func"]
    assert found.workflow is not None
    assert found.workflow.evaluators["judge"].metrics[0].config["func_kwargs"] == {"evaluate_func": {"factor": 2}}


def test_a_script_of_which_nothing_is_called_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    keys = {"user_script": "mine.py", "func_kwargs": {"dataloader_func": {"size": 3}}}
    found = examined(tmp_path, {"metrics": [{"name": "m", "type": "latency", "user_config": keys}]})
    assert sorted(notice.found for notice in found.notices) == [
        "func_kwargs has no effect: no function of user_script is called",
        "user_script has no effect: no function of user_script is called",
    ]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"method": "generate", "output": "scores", "length_normalized": True, "stop": ["."]},
            "length_normalized output",
        ),
        ({"method": "choice", "output": "scores", "length_normalized": True, "stop": ["."]}, "output stop"),
        ({"method": "classify", "output": "scores", "stop": ["."], "ignore_case": False}, "ignore_case stop"),
        ({"method": "classify", "output": "scores", "post_processing_func": "made"}, "output"),
        ({"post_processing_func": "made", "output": "scores", "max_new_tokens": 8}, "max_new_tokens output"),
        ({"output": "scores", "max_new_tokens": 8, "length_normalized": True}, ""),
    ],
)
def test_what_a_way_of_answering_does_not_look_at_is_told(tmp_path: Path, keys: dict[str, Any], told: str) -> None:
    (tmp_path / "mine.py").write_text("def made(outputs): ...\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 1}\n')
    config = {**keys, **({"user_script": "mine.py"} if "post_processing_func" in keys else {})}
    judge = {"metrics": [{"name": "m", "type": "accuracy", "data_config": {"data_files": "rows.jsonl"}, **config}]}
    notices = [notice.found for notice in examined(tmp_path, judge).notices]
    assert " ".join(sorted(text.split(" has no effect: ")[0] for text in notices)) == told


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
