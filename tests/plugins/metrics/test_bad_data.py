"""Data and functions of a user's that are wrong: each ends in one message that names what it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.testing import tiny_onnx_mlp
from tests.plugins.metrics.sessions import ForwardSession, configured, context, metric, model
from tests.support.workflows import drupe, write_workflow

SCRIPT = """
import numpy as np

def good(**kwargs):
    return [({"x": np.ones((2, 3), "float32")}, np.array([0, 1]))]

def raises(**kwargs):
    raise RuntimeError("my own trouble")

def ends(**kwargs):
    yield from good()
    raise OSError("disk gone")

def number(**kwargs):
    return 5

def nan(**kwargs):
    return [({"x": np.full((2, 8), np.nan, "float32")}, np.array([0, 1]))]

def text(outputs):
    return "x"

def short(outputs):
    return np.zeros(1)

def broken(outputs):
    raise ValueError("post trouble")

def no_batch(**kwargs):
    return []

def infinite(*args, **kwargs):
    return {"a": float("inf"), "b": 1.0}

def nothing(*args, **kwargs):
    return None

def words(*args, **kwargs):
    return {"a": 1.0, "b": "good"}
"""


def doubled(batch: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    return {"logits": batch["x"] * 2}


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("accuracy", {"dataloader_func": "raises"}, r"raises \(s.py, line 8\) raised RuntimeError: my own trouble"),
        ("accuracy", {"dataloader_func": "ends"}, r"ends \(s.py, line 12\) raised OSError: disk gone"),
        (
            "accuracy",
            {"dataloader_func": "number"},
            r"number \(s.py\) returned 5; expected batches of \(inputs, targets",
        ),
        ("accuracy", {"post_processing_func": "text"}, r"text \(s.py\) returned 'x'; expected a prediction, or scores"),
        ("accuracy", {"post_processing_func": "short"}, r"returned an array of shape \(1,\); .* for each of 2 samples"),
        ("accuracy", {"post_processing_func": "broken"}, r"broken \(s.py, line 27\) raised ValueError: post trouble"),
        ("custom", {"evaluate_func": "words"}, "words must return a number, a mapping of numbers, or one number per"),
        ("custom", {"evaluate_func": "text"}, "text must return a number"),
        ("accuracy", {"dataloader_func": "no_batch"}, r"no_batch \(s.py\) gave no batch"),
        ("latency", {"dataloader_func": "no_batch", "repeat_test_num": 1}, r"no_batch \(s.py\) gave no batch"),
        ("custom", {"evaluate_func": "infinite"}, "infinite returned .*; expected finite numbers as a"),
        ("custom", {"metric_func": "nothing"}, "nothing must return a number, .*, not None"),
        ("custom", {"metric_func": "raises"}, r"raises \(s.py\) raised TypeError"),
    ],
)
def test_a_function_that_fails_is_named_with_its_line(
    tmp_path: Path, name: str, config: dict[str, Any], message: str
) -> None:
    (tmp_path / "s.py").write_text(SCRIPT)
    made = metric(name)
    checked = configured(made, **{"user_script": "s.py", "dataloader_func": "good", **config})
    surroundings = context(tmp_path, allow=frozenset({"user-scripts"}))
    with pytest.raises(EvaluationError, match=message):
        made.measure(model(tmp_path), ForwardSession(doubled), (), checked, surroundings)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (0.5, "the target 0.5 of sample a is no class; expected whole numbers or names"),
        (np.array(["cat", "dog"]), r"the target \['cat', 'dog'\] of sample a is no class"),
        (7, "the target of sample a is class 7, but the model gives scores for 3 classes"),
        (-1, "the target of sample a is class -1, but .*; -1 often says that a data set has no labels"),
        (None, "sample a has no target"),
    ],
)
def test_a_label_that_is_none_is_told(tmp_path: Path, target: Any, message: str) -> None:
    made = metric("accuracy")
    sample = Sample("a", {"x": np.ones(3, np.float32)}, target, "a")
    with pytest.raises(EvaluationError, match=message):
        made.measure(model(tmp_path), ForwardSession(doubled), [sample], configured(made), context(tmp_path))


def test_a_whole_number_may_be_written_as_a_fraction(tmp_path: Path) -> None:
    made = metric("accuracy")
    sample = Sample("a", {"x": np.array([0, 1, 0], np.float32)}, 1.0, "a")
    rows = made.measure(model(tmp_path), ForwardSession(doubled), [sample], configured(made), context(tmp_path))
    assert rows["a"][0] == 1.0


def test_what_is_not_a_number_is_the_metrics_fault_and_not_the_hosts(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(SCRIPT)
    options = {"user_script": "s.py", "dataloader_func": "nan"}
    size = {"name": "size", "type": "size_on_disk", "sub_types": [{"name": "bytes", "priority": 1}]}
    document = {
        "input_model": {"type": "ONNXModel", "model_path": str(tiny_onnx_mlp(tmp_path / "model").folder)},
        "systems": {"here": {"type": "LocalSystem", "in_process": True, "threads": 1}},
        "evaluators": {"judge": {"metrics": [{"name": "far", "type": "discrepancy", "user_config": options}, size]}},
        "evaluator": "judge",
        "passes": {"q": {"type": "OnnxDynamicQuantization"}},
        "host": "here",
        "cache_dir": str(tmp_path / "cache"),
        "output_dir": str(tmp_path / "out"),
    }
    done = drupe("run", write_workflow(tmp_path, document), "--allow", "user-scripts", folder=tmp_path)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert "metric far is not finite on batch-00000-0000: " in text
    assert "attempt" not in text


def test_a_size_for_an_axis_that_is_not_there_is_told(tmp_path: Path) -> None:
    made = metric("latency")
    shapes = {"x": (("n", 3), "float32")}
    config = configured(made, shape_kwargs={"length": 8, "n": 4}, repeat_test_num=1, warmup_num=0)
    surroundings = context(tmp_path)
    session = ForwardSession(doubled, shapes)
    made.measure(model(tmp_path), session, (), config, surroundings)
    assert session.batches[0]["x"].shape == (4, 3)
    assert surroundings.report["notes"] == ["shape_kwargs: length is no axis of this model; it has n"]
