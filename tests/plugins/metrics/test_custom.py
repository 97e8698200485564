"""The user's own metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from drupe.core.data import Sample
from drupe.core.errors import ConfigError, EvaluationError
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.core.workflow.read import examine
from tests.plugins.metrics.sessions import ForwardSession, configured, context, metric, model
from tests.support.workflows import write_workflow

SAMPLES = [Sample("a", {"x": np.array([1.0, 2.0])}, 1), Sample("b", {"x": np.array([5.0, 2.0])}, 1)]
SCRIPT = """
import helper

def whole(model, device, batch_size):
    out = model.run_session(model.prepare_session(), {"x": [[1.0, 2.0]]})
    return {"sum": float(out.y.sum()), "batch": batch_size, "helped": helper.VALUE}

def one(model, factor):
    return factor

def judge(predictions, targets):
    return {"hit": predictions.argmax(1) == targets, "double": 2 * (predictions.argmax(1) == targets)}

def nonsense(model):
    return "good"
"""


def run(folder: Path, allow: frozenset[str] = frozenset({"user-scripts"}), **config: Any) -> tuple[Any, Any, Any]:
    (folder / "mine.py").write_text(SCRIPT)
    (folder / "lib").mkdir(exist_ok=True)
    (folder / "lib" / "helper.py").write_text("VALUE = 11\n")
    made = metric("custom")
    checked = configured(made, user_script="mine.py", script_dir="lib", **config)
    session = ForwardSession(lambda b: {"y": b["x"]}, {"x": (("n", 2), "float32")})
    return made, checked, made.measure(model(folder), session, SAMPLES, checked, context(folder, allow=allow))


def test_a_function_that_measures_by_itself(tmp_path: Path) -> None:
    made, config, rows = run(tmp_path, evaluate_func="whole", batch_size=4)
    values = {name: made.aggregate(list(rows.values()), name, config) for name in ("sum", "batch", "helped")}
    assert values == {"sum": 3.0, "batch": 4.0, "helped": 11.0}
    with pytest.raises(EvaluationError, match="no value named 'else'"):
        made.aggregate(list(rows.values()), "else", config)


def test_one_number_serves_the_name_that_the_workflow_gave(tmp_path: Path) -> None:
    made, config, rows = run(tmp_path, evaluate_func="one", func_kwargs={"evaluate_func": {"factor": 0.5}})
    assert made.aggregate(list(rows.values()), "accuracy_custom", config) == 0.5


def test_a_judging_function_may_give_one_number_per_sample(tmp_path: Path) -> None:
    made, config, rows = run(tmp_path, metric_func="judge")
    assert list(rows) == ["a", "b"]
    assert made.aggregate(list(rows.values()), "hit", config) == 0.5
    assert made.aggregate(list(rows.values()), "double", config) == 1.0


def test_it_runs_after_consent_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--allow user-scripts"):
        run(tmp_path, allow=frozenset(), evaluate_func="one")


def test_what_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises((EvaluationError, ValueError), match="good"):
        run(tmp_path, evaluate_func="nonsense")


def test_a_missing_function_is_named_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.py defines no nothing"):
        run(tmp_path, evaluate_func="nothing")


def test_the_direction_is_the_workflow_s() -> None:
    made = metric("custom")
    config = configured(
        made, user_config={"user_script": "s.py", "evaluate_func": "f"}, higher_is_better={"error": False}
    )
    assert made.sub_type("error", config).direction == "lower"
    assert made.sub_type("score", config).direction == "higher"
    assert "anything" in made.sub_types


def test_a_custom_metric_without_a_function_is_refused() -> None:
    with pytest.raises(ValidationError, match="either evaluate_func or metric_func"):
        configured(metric("custom"))


def test_two_values_of_one_full_name_and_limits_that_are_no_numbers_are_faults(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "mine.py").write_text(SCRIPT)
    (tmp_path / "w.yaml").write_text(
        """
input_model: {type: HfModel, model_path: model}
evaluators:
  judge:
    metrics:
      - {name: a, type: custom, user_config: {user_script: mine.py, evaluate_func: one}, sub_types: [{name: b-c}]}
      - name: a-b
        type: custom
        user_config: {user_script: mine.py, evaluate_func: one}
        sub_types: [{name: c, goal: {type: threshold, value: .nan}}]
evaluator: judge
passes: {convert: {type: OnnxConversion}}
"""
    )
    told = {fault.path: fault for fault in examine(tmp_path / "w.yaml", get_registry()).faults}
    assert told["evaluators.judge.metrics.1.name"].found == "'a-b' gives a-b-c, and so does 'a'"
    assert told["evaluators.judge.metrics.1.sub_types.0.goal.value"].expected == "a number"


@pytest.mark.parametrize(
    ("type_", "user", "faulty"),
    [
        ("accuracy", {}, True),
        ("accuracy", {"user_script": "mine.py", "dataloader_func": "one"}, False),
        ("perplexity", {}, True),
        ("wer", {}, True),
        ("custom", {"user_script": "mine.py", "metric_func": "judge"}, True),
        ("custom", {"user_script": "mine.py", "evaluate_func": "one"}, False),
        ("latency", {}, False),
    ],
)
def test_a_metric_that_takes_samples_has_a_data_config(
    tmp_path: Path, type_: str, user: dict[str, str], faulty: bool
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "mine.py").write_text(SCRIPT)
    metrics = [{"name": "m", "type": type_, "user_config": user} | ({} if type_ != "custom" else {"sub_types": ["a"]})]
    document = {
        "input_model": {"type": "HfModel", "model_path": "model"},
        "evaluators": {"judge": {"metrics": metrics}},
        "evaluator": "judge",
        "passes": {"convert": {"type": "OnnxConversion"}},
    }
    found = [fault.path for fault in examine(write_workflow(tmp_path, document), get_registry()).faults]
    assert ("evaluators.judge.metrics.0.data_config" in found) is faulty


AS_FOR_OLIVE = """
from olive.constants import Framework
from olive.model import ONNXModelHandler

def evaluate(model, data_dir, batch_size, device, execution_providers, model_framework):
    sess = model.prepare_session(inference_settings=None, device=device, execution_providers=execution_providers)
    assert model.framework == model_framework == Framework.ONNX
    name = [item.name for item in sess.get_inputs()][0]
    assert [item.name for item in sess.get_outputs()] == ["y"]
    (first,) = sess.run(input_feed={name: [[1.0, 2.0]]}, output_names=None)
    return float(first.sum() + model.run_session(sess, [[3.0, 4.0]])[0].sum())
"""


def test_a_function_written_for_olive_measures_a_graph(tmp_path: Path) -> None:
    (tmp_path / "o.py").write_text(AS_FOR_OLIVE)
    made = metric("custom")
    checked = configured(made, user_script="o.py", evaluate_func="evaluate")
    session = ForwardSession(lambda b: {"y": b["x"]}, {"x": (("n", 2), "float32")})
    session.output_names = ("y",)  # type: ignore[attr-defined]
    session.framework = "ONNX"
    given = Model("onnx", {}, {}, path=tmp_path)
    rows = made.measure(given, session, SAMPLES, checked, context(tmp_path, allow=frozenset({"user-scripts"})))
    assert made.aggregate(list(rows.values()), "any", checked) == 10.0
