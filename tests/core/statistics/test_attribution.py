from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from drupe.core.metrics import Measurement
from drupe.core.statistics.attribution import changes_by_pass


def mean(rows: Sequence[tuple[float, ...]]) -> float:
    return math.fsum(row[0] for row in rows) / len(rows)


def measured(values: Sequence[float], *, proportion: bool, direction: str = "higher") -> Measurement:
    rows = {str(i): (float(v),) for i, v in enumerate(values)}
    return Measurement("m-x", mean(list(rows.values())), "", direction, len(rows), rows=rows, proportion=proportion)  # type: ignore[arg-type]


def test_the_pass_that_lost_is_found() -> None:
    source = measured([1] * 90 + [0] * 10, proportion=True)
    tuned = measured([1] * 96 + [0] * 4, proportion=True)
    merged = measured([1] * 96 + [0] * 4, proportion=True)
    int4 = measured([0] * 15 + [1] * 81 + [0] * 4, proportion=True)
    changes = changes_by_pass(source, [("tune", tuned), ("merge", merged), ("int4", int4)], mean)
    assert [c.name for c in changes] == ["tune", "merge", "int4"]
    assert [round(c.lost, 3) for c in changes] == [-0.06, 0.0, 0.15]
    worst = max(changes, key=lambda c: c.lost)
    assert worst.text().startswith("int4: 0.96 → 0.81 (-0.15 [")
    assert "beyond noise" in worst.text()
    assert "beyond noise" not in changes[1].text()


def test_other_metrics_get_a_paired_interval() -> None:
    draw = random.Random(1)
    base = [draw.gauss(10, 5) for _ in range(100)]
    source = measured(base, proportion=False, direction="lower")
    worse = measured([b + 0.5 + draw.gauss(0, 0.2) for b in base], proportion=False, direction="lower")
    (change,) = changes_by_pass(source, [("prune", worse)], mean)
    assert change.lost == pytest.approx(0.5, abs=0.1)
    assert change.interval is not None
    assert 0.4 < change.interval[0] < change.interval[1] < 0.6


def test_without_common_samples_there_is_no_interval() -> None:
    source = Measurement("m-x", 0.5, "", "higher", 10)
    (change,) = changes_by_pass(source, [("a", Measurement("m-x", 0.4, "", "higher", 10))], mean)
    assert change.interval is None
    assert change.text() == "a: 0.5 → 0.4 (-0.1)"
