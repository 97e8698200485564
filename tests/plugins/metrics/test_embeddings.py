"""Embedding similarity: pooling, padding, the reference, and what is no embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from tests.plugins.metrics.sessions import ForwardSession, configured, context, metric, model

VECTORS = [Sample("a", {"x": np.array([3.0, 4.0])}), Sample("b", {"x": np.array([1.0, 0.0])})]
TOKENS = [
    Sample("long", {"input_ids": np.array([1, 2, 3]), "attention_mask": np.array([1, 1, 1])}),
    Sample("short", {"input_ids": np.array([2, 0, 0]), "attention_mask": np.array([1, 0, 0])}),
]
TABLE = np.array([[9.0, -9.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def rows(ours: Any, theirs: Any, samples: list[Sample], folder: Path, **config: Any) -> dict[str, tuple[float, ...]]:
    made = metric("embedding_similarity")
    base = ForwardSession(theirs) if theirs else None
    surroundings = context(folder, reference_session=base, allow=frozenset({"user-scripts"}))
    checked = configured(made, **config)
    return dict(made.measure(model(folder), ForwardSession(ours), samples, checked, surroundings))


def test_the_cosine_of_each_sample_is_a_row(tmp_path: Path) -> None:
    found = rows(lambda b: {"y": b["x"][:, ::-1]}, lambda b: {"y": 7 * b["x"]}, VECTORS, tmp_path)
    assert found == {"a": (pytest.approx(24 / 25),), "b": (pytest.approx(0.0),)}
    made = metric("embedding_similarity")
    assert made.aggregate(list(found.values()), "cosine", configured(made)) == pytest.approx(12 / 25)
    assert made.aggregate(list(found.values()), "min_cosine", configured(made)) == pytest.approx(0.0)


@pytest.mark.parametrize(("pooling", "long"), [("mean", (2, 2)), ("max", (1, 1)), ("cls", (1, 0)), ("last", (1, 1))])
def test_tokens_are_pooled_without_padding(pooling: str, long: tuple[float, float], tmp_path: Path) -> None:
    reference = np.array([long, (0.0, 1.0)])
    found = rows(
        lambda b: {"last_hidden_state": TABLE[b["input_ids"]]},
        lambda b: {"sentence_embedding": reference[[0 if row[1] else 1 for row in b["attention_mask"]]]},
        TOKENS,
        tmp_path,
        pooling=pooling,
        batch_size=2,
    )
    assert found == {"long": (pytest.approx(1.0),), "short": (pytest.approx(1.0),)}


def test_an_output_is_chosen_by_name(tmp_path: Path) -> None:
    both = {"output": "second"}
    found = rows(
        lambda b: {"first": b["x"][:, ::-1], "second": b["x"]}, lambda b: {"second": b["x"]}, VECTORS, tmp_path, **both
    )
    assert found["a"] == (pytest.approx(1.0),)
    with pytest.raises(EvaluationError, match="no output 'second'; it has: y"):
        rows(lambda b: {"y": b["x"]}, lambda b: {"y": b["x"]}, VECTORS, tmp_path, **both)


def test_broken_embeddings_are_an_error_or_far_away(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="sample a holds NaN"):
        rows(lambda b: {"y": b["x"] * np.nan}, lambda b: {"y": b["x"]}, VECTORS, tmp_path)
    assert rows(lambda b: {"y": b["x"] * 0}, lambda b: {"y": b["x"]}, VECTORS, tmp_path)["a"] == (0.0,)
    with pytest.raises(EvaluationError, match="1 numbers, the source model's has 2"):
        rows(lambda b: {"y": b["x"][:, :1]}, lambda b: {"y": b["x"]}, VECTORS, tmp_path)
    with pytest.raises(EvaluationError, match="source model, and none was given"):
        rows(lambda b: {"y": b["x"]}, None, VECTORS, tmp_path)


def test_a_script_makes_the_embeddings_of_both_models(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def first_two(outputs):\n    return outputs.y[:, :2]\n")
    found = rows(
        lambda b: {"y": np.concatenate([b["x"], -b["x"]], 1), "z": b["x"]},
        lambda b: {"y": np.concatenate([b["x"], b["x"]], 1), "z": b["x"]},
        VECTORS,
        tmp_path,
        user_script="mine.py",
        post_processing_func="first_two",
    )
    assert found == {"a": (pytest.approx(1.0),), "b": (pytest.approx(1.0),)}
