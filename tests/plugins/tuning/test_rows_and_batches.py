"""Rows, splits, the order of steps and how a step is laid out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drupe.core.data import Sample
from drupe.core.errors import ConfigError
from drupe.plugins.tuning.batches import Order, layouts, pack, padded
from drupe.plugins.tuning.rows import Row, hold_out, rows_of

from .conftest import sample, toy_samples


def row(number: int, length: int) -> Row:
    ids = np.arange(length) + 100 * number
    return Row(str(number), ids, np.array([length - 2]), ids[-1:], str(number))


def test_a_prediction_is_judged_one_place_before_its_token() -> None:
    rows, count = rows_of([sample(0, "ab=", "2")], None, "toy")
    (only,) = rows
    assert only.ids.tolist() == [*b"ab=2", 257]
    assert only.positions.tolist() == [2, 3]
    assert only.targets.tolist() == [ord("2"), 257]
    assert (count.rows, count.tokens, count.answer_tokens) == (1, 5, 2)


def test_padding_is_taken_off() -> None:
    ids = np.array([1, 2, 3, 0, 0])
    inputs = {
        "input_ids": ids,
        "labels": np.array([-100, 2, 3, -100, -100]),
        "attention_mask": np.array([1, 1, 1, 0, 0]),
    }
    rows, _ = rows_of([Sample("a", inputs)], None, "toy")
    assert rows[0].ids.tolist() == [1, 2, 3]


def test_long_rows_are_cut_and_counted_and_rows_without_an_answer_left_out() -> None:
    rows, count = rows_of([sample(0, "a=", "1"), sample(1, "aaaaaaaa=", "8"), sample(2, "aa=", "22222")], 5, "toy")
    assert [r.id for r in rows] == ["0", "2"]
    assert (count.cut_rows, count.cut_tokens, count.dropped_rows) == (2, 6 + 4, 1)


def test_nothing_to_learn_says_why() -> None:
    with pytest.raises(ConfigError, match=r"'toy'.*none of its 1 rows.*cut at 4 tokens.*raise max_length"):
        rows_of([sample(0, "aaaaaaaa=", "8")], 4, "toy")
    blind = Sample("a", {"input_ids": np.array([1, 2]), "labels": np.array([-100, -100])})
    with pytest.raises(ConfigError, match="check the prompt masking"):
        rows_of([blind], None, "toy")
    with pytest.raises(ConfigError, match="gives no samples"):
        rows_of([], None, "toy")


def test_samples_that_are_no_token_sequences_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sample a.*input_ids and labels.*found text"):
        rows_of([Sample("a", {"text": "hello"})], None, "toy")


@given(st.floats(0.05, 0.9), st.integers(0, 5))
def test_a_repeated_row_never_sits_on_both_sides(share: float, seed: int) -> None:
    rows, _ = rows_of(toy_samples(40), None, "toy")
    train, held = hold_out(rows, share, seed, "toy")
    assert not {r.content_key for r in train} & {r.content_key for r in held}
    assert len(train) + len(held) == len(rows)


def test_holding_out_a_number_takes_at_least_that_many_rows() -> None:
    rows, _ = rows_of(toy_samples(40), None, "toy")
    assert len(hold_out(rows, 6, 0, "toy")[1]) >= 6
    with pytest.raises(ConfigError, match="leaves 0 of 40 rows"):
        hold_out(rows, 40, 0, "toy")


@given(
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from(["random", "sequential", "group_by_length"]),
)
def test_an_epoch_takes_every_row_once(count: int, batch: int, accumulation: int, sampling: str) -> None:
    order = Order(tuple(range(1, count + 1)), batch, accumulation, 3, sampling)
    steps = order.epoch(1)
    assert sorted(index for step in steps for index in step) == list(range(count))
    assert len(steps) == order.steps_per_epoch
    assert all(len(step) <= batch * accumulation for step in steps)


def test_the_order_can_be_taken_up_anywhere() -> None:
    order = Order(tuple([5] * 23), 2, 2, 7)
    whole = [step for step, _ in zip(order.steps(), range(20), strict=False)]
    later = [step for step, _ in zip(order.steps(9), range(11), strict=False)]
    assert whole[9:] == later


def test_drop_last_leaves_the_incomplete_batch_out() -> None:
    assert sum(map(len, Order(tuple([5] * 10), 4, 1, 0, "random", True).epoch(0))) == 8


def test_grouping_by_length_puts_like_lengths_into_one_step() -> None:
    lengths = tuple(int(n) for n in np.random.default_rng(0).integers(1, 100, 200))
    spread = [
        np.mean([np.ptp([lengths[i] for i in step]) for step in Order(lengths, 8, 1, 0, sampling).epoch(0)])
        for sampling in ("random", "group_by_length")
    ]
    assert spread[1] < spread[0] / 4


@given(st.lists(st.integers(2, 20), min_size=1, max_size=30), st.integers(5, 60), st.booleans())
def test_a_layout_holds_each_row_once_within_the_budget(lengths: list[int], budget: int, packing: bool) -> None:
    rows = [row(number, length) for number, length in enumerate(lengths)]
    laid = layouts(rows, budget, packing=packing, pad_id=0)
    found = sorted(
        tuple(layout.input_ids.reshape(-1)[start : start + length].tolist())
        for layout in laid
        for start, length in layout.rows
    )
    assert found == sorted(tuple(r.ids.tolist()) for r in rows)
    assert all(layout.input_ids.size <= max(budget, max(length for _, length in layout.rows)) for layout in laid)


def test_packed_positions_start_anew_and_predictions_move_with_their_row() -> None:
    layout = pack([row(0, 3), row(1, 4)])
    assert layout.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert layout.predict.tolist() == [1, 5]
    assert layout.targets.tolist() == [2, 103]


def test_padding_goes_to_the_right() -> None:
    layout = padded([row(0, 3), row(1, 4)], 9)
    assert layout.input_ids.tolist() == [[0, 1, 2, 9], [100, 101, 102, 103]]
    assert layout.predict.tolist() == [1, 6]
