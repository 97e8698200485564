from __future__ import annotations

import pytest

from drupe.core.metrics import Measurement
from drupe.core.statistics.overlap import find_overlaps
from drupe.core.statistics.plausibility import implausible


def accuracy(right: int, n: int, *, rows: bool = True) -> Measurement:
    values = {str(i): (float(i < right),) for i in range(n)} if rows else {}
    return Measurement("acc-exact", right / n, "", "higher", n, rows=values, proportion=True)


def test_overlap_counts_the_samples_of_the_evaluating_set() -> None:
    keys = {"eval": ["a", "b", "b", "c"], "train": ["b", "c", "x", "y", "z"], "other": ["q"]}
    (found,) = find_overlaps(keys, {"eval": "certification", "train": "train", "other": "selection"})
    assert (found.first, found.second, found.count, found.share) == ("train", "eval", 3, 0.75)
    assert found.examples == ("b", "c")
    assert "75.0%" in found.text


def test_training_and_calibration_may_share() -> None:
    keys = {"train": ["a"], "calibrate": ["a"], "eval": ["b"]}
    assert find_overlaps(keys, {"train": "train", "calibrate": "calibration", "eval": "selection"}) == []
    assert len(find_overlaps(keys)) == 1


def test_a_gain_without_training_is_told() -> None:
    text = implausible(accuracy(295, 300), accuracy(250, 300), trained=False)
    assert text is not None and "nothing in this chain learns" in text
    assert implausible(accuracy(295, 300), accuracy(250, 300), trained=True) is None
    assert implausible(accuracy(252, 300), accuracy(250, 300), trained=False) is None
    assert implausible(accuracy(240, 300), accuracy(250, 300), trained=False) is None
    assert implausible(accuracy(10, 10), accuracy(9, 10), trained=False) is None


def test_a_halved_perplexity_is_told() -> None:
    own = Measurement("ppl-perplexity", 4.0, "", "lower", 100)
    assert implausible(own, Measurement("ppl-perplexity", 9.0, "", "lower", 100), trained=False) is not None
    assert implausible(own, Measurement("ppl-perplexity", 5.0, "", "lower", 100), trained=False) is None


@pytest.mark.parametrize(("value", "unit", "timed"), [(float("nan"), "", False), (0.0, "ms", True), (-1.0, "ms", True)])
def test_impossible_values_are_told(value: float, unit: str, timed: bool) -> None:
    assert implausible(Measurement("m-x", value, unit, "lower", 10), None, trained=True, timed=timed) is not None


def test_a_proportion_beyond_one_is_told() -> None:
    beyond = Measurement("acc-exact", 1.2, "", "higher", 10, proportion=True)
    assert implausible(beyond, None, trained=True) == "acc-exact is a proportion and reads 1.2"
