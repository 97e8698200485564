"""Perplexity over labels, over text, in windows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from tests.plugins.metrics.sessions import LetterSession, configured, context, metric, model


def sample(text: str, scored: str | None = None, **more: Any) -> Sample:
    ids = np.array([ord(c) for c in text], dtype=np.int64)
    labels = ids.copy()
    if scored is not None:
        labels[: len(text) - len(scored)] = -100
    return Sample(text, {"text": text, "input_ids": ids, "labels": labels, **more})


def run(samples: list[Sample], folder: Path, **config: Any) -> tuple[dict[str, tuple[float, ...]], LetterSession]:
    made = metric("perplexity")
    session = LetterSession({"a": -2.0, "b": -4.0})
    job = context(folder, allow=frozenset({"user-scripts"}))
    rows = made.measure(model(folder), session, samples, configured(made, **config), job)
    return dict(rows), session


def test_the_value_is_exp_of_the_mean_over_all_tokens(tmp_path: Path) -> None:
    rows, _ = run([sample("xaab"), sample("xb")], tmp_path)
    assert rows == {"xaab": (8.0, 3.0), "xb": (4.0, 1.0)}
    made = metric("perplexity")
    assert made.aggregate(list(rows.values()), "perplexity", configured(made)) == pytest.approx(math.exp(3.0))
    assert made.aggregate(list(rows.values()), "loss", configured(made)) == pytest.approx(3.0)


def test_only_the_answer_counts_unless_all_text_is_asked_for(tmp_path: Path) -> None:
    assert run([sample("xaab", scored="b")], tmp_path)[0] == {"xaab": (4.0, 1.0)}
    assert run([sample("xaab", scored="b")], tmp_path, over="text")[0] == {"xaab": (8.0, 3.0)}


def test_padding_is_not_scored(tmp_path: Path) -> None:
    padded = sample("xaab", attention_mask=np.array([1, 1, 0, 0]))
    assert run([padded], tmp_path)[0] == {"xaab": (2.0, 1.0)}


def test_windows_each_lose_their_first_token(tmp_path: Path) -> None:
    rows, session = run([sample("xaabab")], tmp_path, max_length=3)
    assert [len(ids) for ids, _ in session.scored] == [3, 3]
    assert rows == {"xaabab": (2.0 + 2.0 + 2.0 + 4.0, 4.0)}


def test_text_alone_is_tokenized_by_the_session(tmp_path: Path) -> None:
    assert run([Sample("t", {"text": "xab"})], tmp_path)[0] == {"t": (6.0, 2.0)}


def test_nothing_to_score_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="none of the 1 samples"):
        run([sample("x")], tmp_path)
    with pytest.raises(EvaluationError, match="neither input_ids nor text"):
        run([Sample("t", {})], tmp_path)


def test_a_broken_model_has_a_huge_finite_perplexity() -> None:
    made = metric("perplexity")
    assert math.isfinite(made.aggregate([(1e6, 1.0)], "perplexity", configured(made)))


def test_a_token_that_gets_no_probability_is_an_error(tmp_path: Path) -> None:
    made = metric("perplexity")
    session = LetterSession({"a": -2.0, "b": math.nan})
    with pytest.raises(EvaluationError, match="the model gives NaN for 1 of 3 tokens of sample xaab"):
        made.measure(model(tmp_path), session, [sample("xaab")], configured(made), context(tmp_path))


def test_samples_without_a_token_to_score_are_told(tmp_path: Path) -> None:
    made = metric("perplexity")
    told = context(tmp_path)
    rows = made.measure(model(tmp_path), LetterSession({}), [sample("x"), sample("xa")], configured(made), told)
    assert list(rows) == ["xa"]
    assert told.report["notes"] == ["1 of 2 samples have no token to score and are left out"]


class ManyLetters(LetterSession):
    """Tells how many sequences came at once."""

    def score_batch(self, sequences: Any) -> Any:
        self.sizes = [*getattr(self, "sizes", []), len(sequences)]
        return super().score_batch(sequences)


def test_a_batch_size_scores_so_many_windows_at_once(tmp_path: Path) -> None:
    made, session = metric("perplexity"), ManyLetters({"a": -2.0, "b": -4.0})
    config = configured(made, batch_size=2, max_length=3)
    samples = [sample("xaabab"), sample("xb")]
    rows = made.measure(model(tmp_path), session, samples, config, context(tmp_path))
    assert session.sizes == [2, 1]
    assert rows == {"xaabab": (10.0, 4.0), "xb": (4.0, 1.0)}


LOADER = """
import numpy as np

def load(data_dir, batch_size):
    letters = lambda *texts: np.array([[ord(c) for c in text] for text in texts])
    yield {"input_ids": letters("xaab", "xbaa"), "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 0, 0]])}, None
    ids = letters("xaab")
    yield {"input_ids": ids}, np.where(ids == ord("b"), ids, -100)

def other(data_dir, batch_size):
    yield {"pixels": np.ones((1, 2))}, None
"""


def test_batches_of_a_script_are_scored(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LOADER)
    rows, _ = run([], tmp_path, user_script="mine.py", dataloader_func="load")
    assert list(rows.values()) == [(8.0, 3.0), (4.0, 1.0), (4.0, 1.0)]
    with pytest.raises(EvaluationError, match=r"other \(mine.py\) gives batches of pixels; expected input_ids"):
        run([], tmp_path, user_script="mine.py", dataloader_func="other")
