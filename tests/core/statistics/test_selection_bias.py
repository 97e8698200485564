"""The best of many flatters itself on the items it was chosen by, and not on others."""

from __future__ import annotations

import pytest
from benchmarks.statistics_coverage import best_of


def test_best_of_twenty_flatters_itself_and_the_certified_value_does_not() -> None:
    chosen, unseen = best_of(rounds=150)
    assert chosen == pytest.approx(0.019, abs=0.002)
    assert abs(unseen) < 0.005
