"""Which pass of a chain lost how much: the metric after each pass, compared in pairs with the one before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from drupe.core.metrics import Measurement
from drupe.core.statistics.bootstrap import Aggregate, influence, t_bounds
from drupe.core.statistics.paired import score_interval

__all__ = ["PassChange", "changes_by_pass"]


@dataclass(frozen=True)
class PassChange:
    """What one pass did to a metric. change: after − before, in the metric's unit; interval: two-sided, paired."""

    name: str
    before: float
    after: float
    change: float
    interval: tuple[float, float] | None
    direction: str

    @property
    def lost(self) -> float:
        """How much worse the metric is after the pass; negative where it is better."""
        return -self.change if self.direction == "higher" else self.change

    def text(self) -> str:
        """Return one line for a person."""
        text = f"{self.name}: {self.before:.4g} → {self.after:.4g} ({self.change:+.3g}"
        if self.interval is None:
            return text + ")"
        beyond = "" if self.interval[0] <= 0 <= self.interval[1] else ", beyond noise"
        return f"{text} [{self.interval[0]:+.3g}, {self.interval[1]:+.3g}]{beyond})"


def changes_by_pass(
    source: Measurement,
    after: Sequence[tuple[str, Measurement]],
    aggregate: Aggregate,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[PassChange]:
    """Return what each pass changed. source: the input model's measurement; after: (pass name, the measurement of the
    model that it made), in the order of the chain, all on the same samples.

    A pass whose model could not be measured is left out by the caller; the next one is then charged for both.
    """
    found = []
    before = source
    for name, measured in after:
        interval = _interval(before, measured, aggregate, confidence, seed)
        found.append(
            PassChange(name, before.value, measured.value, measured.value - before.value, interval, measured.direction)
        )
        before = measured
    return found


def _interval(
    before: Measurement, after: Measurement, aggregate: Aggregate, confidence: float, seed: int
) -> tuple[float, float] | None:
    ids = [i for i in after.rows if i in before.rows]
    if len(ids) < 2:
        return None
    if after.proportion:
        gained = sum(after.rows[i][0] > before.rows[i][0] for i in ids)
        lost = sum(after.rows[i][0] < before.rows[i][0] for i in ids)
        return score_interval(lost, gained, len(ids), confidence)
    new, old = [after.rows[i] for i in ids], [before.rows[i] for i in ids]
    change = aggregate(new) - aggregate(old)
    if not math.isfinite(change):
        return None
    effects = [a - b for a, b in zip(influence(new, aggregate), influence(old, aggregate), strict=True)]
    bounds = t_bounds(change, effects, (1 - confidence) / 2, seed)
    return bounds.low, bounds.high
