"""The classification arithmetic against hand counts and against the definitions, written out naively."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drupe.plugins.metrics import classification
from tests.plugins.metrics.sessions import configured, metric


def table(targets: list[int], predictions: list[int], classes: int) -> np.ndarray:
    return np.array([[float(t == p), t, p, classes] for t, p in zip(targets, predictions, strict=True)])


def test_the_binary_values_are_those_of_class_one() -> None:
    rows = table([1, 1, 1, 0, 0], [1, 1, 0, 1, 0], 2)
    assert classification.precision(rows, "binary") == pytest.approx(2 / 3)
    assert classification.recall(rows, "binary") == pytest.approx(2 / 3)
    assert classification.f1(rows, "binary") == pytest.approx(2 / 3)


def test_an_answer_outside_the_labels_misses_without_being_any_class() -> None:
    rows = table([0, 1, 2], [0, -1, -1], 3)
    assert classification.recall(rows, "macro") == pytest.approx(1 / 3)
    assert classification.precision(rows, "micro") == pytest.approx(1.0)
    assert classification.recall(rows, "micro") == pytest.approx(1 / 3)


@st.composite
def predictions(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    classes = draw(st.integers(2, 5))
    size = draw(st.integers(1, 30))
    label = st.integers(0, classes - 1)
    return (
        draw(st.lists(label, min_size=size, max_size=size)),
        draw(st.lists(label, min_size=size, max_size=size)),
        classes,
    )


@given(predictions())
def test_averages_follow_their_definitions(data: tuple[list[int], list[int], int]) -> None:
    targets, predicted, classes = data
    rows = table(targets, predicted, classes)
    each, support = [], []
    for c in range(classes):
        hit = sum(t == p == c for t, p in zip(targets, predicted, strict=True))
        false = sum(p == c != t for t, p in zip(targets, predicted, strict=True))
        missed = sum(t == c != p for t, p in zip(targets, predicted, strict=True))
        if hit + false + missed:
            each.append(2 * hit / (2 * hit + false + missed))
            support.append(hit + missed)
    assert classification.f1(rows, "macro") == pytest.approx(sum(each) / len(each))
    weighted = sum(f * s for f, s in zip(each, support, strict=True)) / len(targets)
    assert classification.f1(rows, "weighted") == pytest.approx(weighted)
    assert classification.f1(rows, "micro") == pytest.approx(rows[:, 0].mean())


@settings(deadline=None)  # the first example imports scipy
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=30))
def test_auroc_is_the_chance_that_a_positive_scores_higher(items: list[tuple[bool, int]]) -> None:
    rows = np.array([[0, float(positive), 0, 2, -float(score), float(score)] for positive, score in items])
    ups = [s for p, s in items if p]
    downs = [s for p, s in items if not p]
    area = classification.auroc(rows, "binary")
    if not ups or not downs:
        assert np.isnan(area)
    else:
        wins = sum((u > d) + 0.5 * (u == d) for u in ups for d in downs)
        assert area == pytest.approx(wins / (len(ups) * len(downs)))


def test_two_classes_default_to_binary_and_more_to_micro() -> None:
    made = metric("accuracy")
    config = configured(made)
    two = [tuple(row) for row in table([1, 1, 0, 0], [1, 0, 0, 0], 2)]
    assert made.aggregate(two, "f1_score", config) == pytest.approx(2 / 3)
    three = [tuple(row) for row in table([1, 1, 0, 2], [1, 0, 0, 0], 3)]
    assert made.aggregate(three, "f1_score", config) == pytest.approx(0.5)
    told = configured(made, metric_config={"f1_score": {"average": "macro"}})
    assert made.aggregate(three, "f1_score", told) == pytest.approx((0.5 + 2 / 3 + 0) / 3)
    hf = configured(made, backend="huggingface_metrics", metric_config={"f1": {"compute_params": {"average": "macro"}}})
    assert made.aggregate(three, "f1", hf) == pytest.approx((0.5 + 2 / 3 + 0) / 3)
