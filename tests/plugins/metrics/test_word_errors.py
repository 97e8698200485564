"""Word and character errors, by hand and against the definition of an edit distance."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.plugins.metrics.word_errors import edits
from tests.plugins.metrics.sessions import (
    AnsweringSession,
    ForwardSession,
    configured,
    context,
    metric,
    model,
    questions,
)


def run(session: Any, samples: Any, folder: Path, **config: Any) -> tuple[dict[str, tuple[float, ...]], float, float]:
    made = metric("wer")
    checked = configured(made, **config)
    surroundings = context(folder, allow=frozenset({"user-scripts"}))
    rows = dict(made.measure(model(folder), session, samples, checked, surroundings))
    return rows, *(made.aggregate(list(rows.values()), name, checked) for name in ("wer", "cer"))


def test_words_put_in_left_out_and_changed_are_counted(tmp_path: Path) -> None:
    said = {"1": "the cat sat", "2": "a dog barks loudly", "3": "Hello, World!"}
    samples = questions([("1", "the cat sat down"), ("2", "the dog barks"), ("3", "hello world")])
    rows, wer, cer = run(AnsweringSession(said.__getitem__), samples, tmp_path)
    assert [row[:2] for row in rows.values()] == [(1.0, 4.0), (2.0, 3.0), (0.0, 2.0)]
    assert wer == pytest.approx(3 / 9)
    assert 0 < cer < 1
    strict = run(AnsweringSession(said.__getitem__), samples, tmp_path, ignore_punctuation=False, ignore_case=False)
    assert strict[0]["q2"][0] == 2.0


def test_texts_that_a_script_reads_from_the_outputs_are_compared(tmp_path: Path) -> None:
    (tmp_path / "read.py").write_text(
        "def texts(output, words):\n    return [words[int(i)] for i in output.argmax(1)]\n"
    )
    options = {
        "user_script": "read.py",
        "post_processing_func": "texts",
        "func_kwargs": {"post_processing_func": {"words": ["yes", "no"]}},
        "batch_size": 2,
    }
    samples = [Sample("a", {"x": np.eye(2)[0]}, "yes"), Sample("b", {"x": np.eye(2)[0]}, "no")]
    session = ForwardSession(lambda batch: {"logits": batch["x"]})
    rows, wer, _ = run(session, samples, tmp_path, **options)
    assert (rows["a"][0], rows["b"][0], wer) == (0.0, 1.0, 0.5)
    assert metric("wer").needs(configured(metric("wer"), **options)) == ("forward",)
    with pytest.raises(ValidationError, match="needs a post_processing_func"):
        configured(metric("wer"), method="forward")
    with pytest.raises(ValidationError, match="dataloader_func gives batches for forward calls"):
        configured(metric("wer"), user_script="read.py", dataloader_func="load")


def test_an_expected_text_without_words_is_named(tmp_path: Path) -> None:
    session = AnsweringSession(str)
    with pytest.raises(EvaluationError, match=r"sample q1 \(' \?'\) has no words"):
        run(session, questions([("y", " no"), ("x", " ?")]), tmp_path)
    assert not session.prompts


@given(st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_edits_follow_the_definition(a: str, b: str) -> None:
    @functools.cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    assert edits(a, b) == distance(len(a), len(b))
