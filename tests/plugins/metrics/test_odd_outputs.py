"""Outputs of odd shapes and of more than one kind: the number that scikit-learn gives, or one message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from tests.plugins.metrics.sessions import ForwardSession, configured, context, metric, model

RANDOM = np.random.default_rng(5)


def value(
    samples: list[Sample], folder: Path, sub_type: str = "accuracy_score", name: str = "logits", **config: Any
) -> float:
    """Return what accuracy gives of samples whose input x is the model's output."""
    made = metric("accuracy")
    checked = configured(made, method="classify", **config)
    session = ForwardSession(lambda batch: {name: batch["x"]})
    rows = made.rows_of(made.measure(model(folder), session, samples, checked, context(folder)), sub_type, checked)
    return made.aggregate(list(rows.values()), sub_type, checked)


def taken(outputs: Any, targets: Any) -> list[Sample]:
    return [
        Sample(str(i), {"x": np.asarray(x)}, t, str(i)) for i, (x, t) in enumerate(zip(outputs, targets, strict=True))
    ]


def test_labels_of_pixels_with_classes_first(tmp_path: Path) -> None:
    targets = RANDOM.integers(0, 3, (4, 5, 6))
    logits = RANDOM.normal(size=(4, 3, 5, 6))
    expected = float((logits.argmax(1) == targets).mean())
    assert value(taken(logits, targets), tmp_path) == pytest.approx(expected)
    assert value(taken(np.moveaxis(logits, 1, -1), targets), tmp_path) == pytest.approx(expected)
    square = RANDOM.normal(size=(4, 3, 3, 3))
    targets = RANDOM.integers(0, 3, (4, 3, 3))
    assert value(taken(square, targets), tmp_path) == pytest.approx(float((square.argmax(1) == targets).mean()))


def test_labels_of_pixels_of_another_size_are_told(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"target of sample 0 has shape \(8, 8\) and the output \(3, 2, 2\)"):
        value(taken(np.zeros((1, 3, 2, 2)), np.zeros((1, 8, 8), int)), tmp_path)


def test_one_label_for_scores_of_each_token_is_told(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"output of sample 0 has shape \(4, 3\), and its target is one class"):
        value(taken(np.zeros((1, 4, 3)), [2]), tmp_path)


def test_a_text_of_one_token_beside_longer_ones(tmp_path: Path) -> None:
    # The second has as many tokens as there are classes.
    outputs = [RANDOM.normal(size=(1, 4)), RANDOM.normal(size=(4, 4)), RANDOM.normal(size=(6, 4))]
    targets = [np.array([1]), np.array([0, -100, 2, 1]), RANDOM.integers(0, 4, 6)]
    right = [(output.argmax(1) == target)[target >= 0] for output, target in zip(outputs, targets, strict=True)]
    assert value(taken(outputs, targets), tmp_path, batch_size=3) == pytest.approx(np.concatenate(right).mean())


def test_several_labels_a_sample_are_decisions_each(tmp_path: Path) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    logits, targets = RANDOM.normal(size=(30, 4)), RANDOM.integers(0, 2, (30, 4))
    decided = (logits > 0).astype(int)
    samples = taken(logits, list(targets))
    assert value(samples, tmp_path) == pytest.approx(accuracy_score(targets.ravel(), decided.ravel()))
    assert value(samples, tmp_path, "f1_score") == pytest.approx(f1_score(targets, decided, average="micro"))


def test_a_list_of_classes_is_no_decision_on_each(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"target of sample 0 has shape \(2,\) and the output \(4,\)"):
        value(taken(RANDOM.normal(size=(1, 4)), [[0, 1]]), tmp_path)


def test_targets_of_a_regression_are_told(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"target of sample 1 is 3, but the model gives one number"):
        value(taken([[0.2], [2.9]], [1.0, 3.0]), tmp_path)


def test_numbers_of_classes_as_floats(tmp_path: Path) -> None:
    assert value(taken([[0.0], [2.0], [1.0]], [0, 2, 2]), tmp_path, name="classes") == pytest.approx(2 / 3)


def test_a_batch_of_the_users_own_is_judged_sample_by_sample(tmp_path: Path) -> None:
    logits, targets = RANDOM.normal(size=(6, 3)), RANDOM.integers(0, 3, 6)
    whole = {"whole_batch": True}
    samples = [
        Sample("0", {"x": logits[:4]}, targets[:4], "0", whole),
        Sample("1", {"x": logits[4:]}, targets[4:], "1", whole),
    ]
    assert value(samples, tmp_path) == pytest.approx((logits.argmax(1) == targets).mean())
    with pytest.raises(EvaluationError, match=r"batch 0 has targets of shape \(3,\) and outputs for 4 samples"):
        value([Sample("0", {"x": logits[:4]}, targets[:3], "0", whole)], tmp_path)


def test_options_that_do_not_fit_the_model_are_told(tmp_path: Path) -> None:
    samples = taken(RANDOM.normal(size=(3, 2)), [0, 1, 1])
    with pytest.raises(EvaluationError, match=r"num_classes is 3, but the model gives scores for 2 classes"):
        value(samples, tmp_path, metric_config={"num_classes": 3})
    with pytest.raises(EvaluationError, match=r"threshold 0.7 is for a model that gives the chance of class 1"):
        value(samples, tmp_path, metric_config={"threshold": 0.7})


def test_targets_are_looked_at_before_the_model_is_asked(tmp_path: Path) -> None:
    made = metric("accuracy")
    session = ForwardSession(lambda batch: {"logits": batch["x"]})
    for last, message in (
        (None, r"sample 1 has no target \(1 of 2 have none\)"),
        ("cat", "'cat' of sample 1 is none of the"),
    ):
        samples = taken(RANDOM.normal(size=(2, 2)), ["no", last])
        with pytest.raises(EvaluationError, match=message):
            made.measure(model(tmp_path), session, samples, configured(made, labels=["no", "yes"]), context(tmp_path))
    assert not session.batches


def test_names_that_differ_by_case_only_are_told_apart(tmp_path: Path) -> None:
    samples = taken([[3.0, 0.0], [0.0, 3.0]], ["per", "PER"])
    assert value(samples, tmp_path, labels=["per", "PER"]) == 1.0


def test_names_of_classes_with_gaps_are_no_names(tmp_path: Path) -> None:
    made = metric("accuracy")
    session = ForwardSession(lambda batch: {"logits": batch["x"]})
    named = model(tmp_path, config__json='{"id2label": {"1": "a", "3": "b"}}')
    with pytest.raises(EvaluationError, match=r"is a name and the model has no class names"):
        made.measure(named, session, taken([[1.0, 0.0]], ["a"]), configured(made), context(tmp_path))


def test_fractions_for_an_input_of_whole_numbers_are_told(tmp_path: Path) -> None:
    made = metric("accuracy")
    session = ForwardSession(lambda batch: {"logits": batch["x"]}, {"x": (("n", 2), "int64")})
    with pytest.raises(EvaluationError, match=r"input 'x' takes whole numbers \(int64\), and the data has fractions"):
        made.measure(model(tmp_path), session, taken([[0.5, 1.0]], [1]), configured(made), context(tmp_path))


def test_values_without_a_meaning_on_these_targets_are_told(tmp_path: Path) -> None:
    samples = taken(RANDOM.normal(size=(5, 2)), [1] * 5)
    with pytest.raises(EvaluationError, match=r"auroc is not defined .*; all 5 here are class 1"):
        value(samples, tmp_path, "auroc")
    with pytest.raises(EvaluationError, match="f1_score: ignore_index leaves out all 5 targets"):
        value(samples, tmp_path, "f1_score", metric_config={"f1_score": {"ignore_index": 1}})
    assert value(samples, tmp_path, metric_config={"f1_score": {"ignore_index": 1}}) <= 1.0


def test_an_index_to_ignore_may_be_no_class(tmp_path: Path) -> None:
    logits, targets = RANDOM.normal(size=(20, 3)), RANDOM.integers(0, 3, 20)
    targets[:4] = 255
    right = (logits.argmax(1) == targets)[4:]
    options = {"accuracy_score": {"ignore_index": 255}}
    assert value(taken(logits, targets), tmp_path, metric_config=options) == pytest.approx(right.mean())
