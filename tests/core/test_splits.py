"""Splits: disjoint, by content, independent of order."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drupe.core.errors import ConfigError
from drupe.core.splits import EVALUATION, PARTS, assign, check_split

KEYS = st.lists(st.text(alphabet="abcdefg", min_size=1, max_size=3), min_size=1, max_size=60)
SHARES = st.tuples(*[st.floats(0.01, 1.0) for _ in PARTS]).map(
    lambda weights: dict(zip(PARTS, [w / sum(weights) for w in weights], strict=True))
)


def contents(keys: list[str], split: dict[str, Any], part: str | None) -> set[str]:
    return {keys[index] for index in assign(keys, split, part)}


@given(KEYS, SHARES, st.integers(0, 5))
def test_parts_are_disjoint_and_shares_of_one_use_everything(
    keys: list[str], shares: dict[str, float], seed: int
) -> None:
    split = {**shares, "seed": seed}
    parts = [contents(keys, split, part) for part in PARTS]
    assert sum(len(part) for part in parts) == len(set().union(*parts))
    assert set().union(*parts) == set(keys)


@given(KEYS, SHARES, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(keys: list[str], split: dict[str, float], shuffler: random.Random) -> None:
    shuffled = list(keys)
    shuffler.shuffle(shuffled)
    for part in PARTS:
        assert contents(keys, split, part) == contents(shuffled, split, part)


@given(KEYS, st.integers(0, 3))
def test_the_same_seed_gives_the_same_split(keys: list[str], seed: int) -> None:
    split = {"train": 0.5, "certification": "rest", "seed": seed}
    assert assign(keys, split, "train") == assign(keys, split, "train")


def test_counts_are_of_different_contents() -> None:
    keys = [str(number % 100) for number in range(300)]
    split = {"train": 50, "selection": 20, "certification": 30, "seed": 1}
    assert len(contents(keys, split, "train")) == 50
    assert len(assign(keys, split, "train")) == 150, "repeated rows train as often as they stand in the data"
    assert len(assign(keys, split, "selection")) == 20, "a repeated item is judged once"
    assert len(assign(keys, split, "certification")) == 30
    assert contents(keys, split, EVALUATION) == contents(keys, split, "selection") | contents(
        keys, split, "certification"
    )


def test_seeds_differ() -> None:
    keys = [str(number) for number in range(100)]
    assert assign(keys, {"train": 50, "seed": 1}, "train") != assign(keys, {"train": 50, "seed": 2}, "train")


def test_added_rows_leave_the_others_where_they_are() -> None:
    keys = [str(number) for number in range(200)]
    before = contents(keys, {"train": 0.5}, "train")
    after = contents([*keys, "new"], {"train": 0.5}, "train")
    assert len(before ^ after) <= 2


def test_without_a_split_every_part_is_everything() -> None:
    assert assign(["a", "a", "b"], {}, "train") == [0, 1, 2]
    assert assign(["a", "a", "b"], {"train": 1}, None) == [0, 1, 2]


@pytest.mark.parametrize(
    ("split", "part"),
    [
        ({"train": 0.8}, "certification"),
        ({"train": 0.5, "certification": 0.2}, "selection"),
        ({"selection": 0.2, "certification": 0.2}, "train"),
        ({"certification": 10}, "train"),
    ],
)
def test_one_unnamed_part_takes_the_rest(split: dict[str, Any], part: str) -> None:
    keys = [str(number) for number in range(50)]
    named = set().union(*(contents(keys, split, name) for name in split))
    assert contents(keys, split, part) == set(keys) - named
    assert contents(keys, split, part)


def test_asking_for_too_much_tells_how_much_there_is() -> None:
    with pytest.raises(ConfigError, match=r"asks for 12 contents \(train 8 \+ selection 4\); the data has 3 different"):
        assign(["a", "b", "b", "c"], {"train": 8, "selection": 4}, "train")


@pytest.mark.parametrize(
    ("split", "what"),
    [
        ({"trian": 5}, "unknown part 'trian'"),
        ({"train": 1.5}, "1.5"),
        ({"train": True}, "True"),
        ({"train": "rest", "selection": "rest"}, "one"),
        ({"train": 0.8, "selection": 0.4}, "add up to 1.2"),
        ({"train": 5, "seed": "x"}, "'x'"),
    ],
)
def test_faults_of_a_split(split: dict[str, Any], what: str) -> None:
    assert any(what in " ".join(fault) for fault in check_split(split))
    with pytest.raises(ConfigError):
        assign(["a", "b"], split, "train")


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown part 'test'"):
        assign(["a"], {"train": 1}, "test")
