"""Made-up inputs have lengths that fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from drupe.core.errors import EvaluationError
from drupe.plugins.metrics.made_up import made_up_inputs
from tests.plugins.metrics.sessions import ForwardSession, configured, context, metric, model

SHAPES: dict[str, tuple[tuple[int | str, ...], Any]] = {
    "input_ids": (("batch", "length"), np.int64),
    "attention_mask": (("batch", "past + length"), np.int64),
    "later_mask": (("batch", "past + 1"), np.int64),
    "position_ids": (("batch", "length"), np.int64),
    "past_key_values.0.key": (("batch", 2, "past", 4), np.float32),
}


@pytest.mark.parametrize(
    ("lengths", "past", "length"),
    [({}, 0, 32), ({"length": 8}, 0, 8), ({"past": 5, "length": 3}, 5, 3)],
)
def test_masks_are_as_long_as_earlier_tokens_and_new_ones(lengths: dict[str, int], past: int, length: int) -> None:
    made = made_up_inputs(SHAPES, seed=0, batch_size=2, lengths=lengths, past=("past_key_values",))
    assert {name: value.shape for name, value in made.items()} == {
        "input_ids": (2, length),
        "attention_mask": (2, past + length),
        "later_mask": (2, past + 1),
        "position_ids": (2, length),
        "past_key_values.0.key": (2, 2, past, 4),
    }
    assert (made["position_ids"] == np.arange(length)).all()


def test_there_are_earlier_tokens_where_nothing_says_that_there_are_none() -> None:
    made = made_up_inputs(SHAPES, seed=0, below={"input_ids": 9})
    assert made["past_key_values.0.key"].shape == (1, 2, 32, 4) and made["attention_mask"].shape == (1, 64)
    assert 2 <= made["input_ids"].max() < 9


def test_a_graph_without_a_mask_is_told_the_lengths_that_its_other_inputs_have() -> None:
    lengths: dict[str, tuple[tuple[int | str, ...], Any]] = {
        "past_seq_len": (("batch", 1), np.int32), "total_seq_len": ((1,), np.int32)
    }  # fmt: skip
    made = made_up_inputs({**SHAPES, **lengths}, seed=0, batch_size=2, lengths={"past": 5, "length": 3})
    assert made["past_seq_len"].tolist() == [[7], [7]] and made["total_seq_len"].tolist() == [8]


def test_sizes_that_no_batch_has_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        configured(metric("latency"), shape_kwargs={"n": -1})
    made = metric("latency")
    session = ForwardSession(lambda batch: batch, {"x": (("n", 2), "float32")})
    with pytest.raises(EvaluationError, match=r"shape_kwargs \{'n': 0\} make batches of no sample"):
        made.measure(model(tmp_path), session, [], configured(made, shape_kwargs={"n": 0}), context(tmp_path))
