from __future__ import annotations

import numpy as np

from drupe.core.statistics.multiplicity import holm, holm_shares


def by_p(values: list[float], alpha: float = 0.05) -> list[bool]:
    return holm([lambda share, p=p: p <= alpha * share for p in values])  # type: ignore[misc]


def reference(values: list[float], alpha: float = 0.05) -> list[bool]:
    """Holm's step-down procedure as it is written in textbooks."""
    accepted = [False] * len(values)
    for step, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        if values[index] > alpha / (len(values) - step):
            break
        accepted[index] = True
    return accepted


def test_shares() -> None:
    assert holm_shares(3) == [1 / 3, 1 / 2, 1.0]


def test_holm_is_the_textbook_procedure() -> None:
    random = np.random.default_rng(1)
    for _ in range(300):
        values = (random.random(random.integers(1, 6)) ** 3).tolist()
        assert by_p(values) == reference(values)


def test_a_single_finalist_pays_nothing() -> None:
    assert by_p([0.049]) == [True]


def test_two_bad_finalists_are_seldom_let_through() -> None:
    random = np.random.default_rng(2)
    false = sum(any(by_p(random.random(2).tolist())) for _ in range(4000))
    uncorrected = sum((random.random(2) <= 0.05).any() for _ in range(4000))
    assert false / 4000 <= 0.06
    assert uncorrected / 4000 > 0.08
