"""The interval beside a measured value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from drupe.core.statistics.bootstrap import Aggregate, Row, bca_interval
from drupe.core.statistics.proportions import proportion_interval

__all__ = ["interval_for", "proportion_interval"]


def interval_for(
    rows: Mapping[str, Row] | Sequence[Row],
    aggregate: Aggregate,
    confidence: float = 0.95,
    *,
    proportion: bool = False,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return the two-sided interval of `aggregate` over rows, or None for fewer than 2 rows.

    proportion: rows are (0 or 1,) and the value is their mean; then the interval is `proportion_interval`'s. Otherwise
    it is the BCa bootstrap's over rows, the same for the same rows and seed.
    """
    vectors = list(rows.values()) if isinstance(rows, Mapping) else list(rows)
    if len(vectors) < 2:
        return None
    if proportion and all(row[0] in (0.0, 1.0) for row in vectors):
        return proportion_interval(round(math.fsum(row[0] for row in vectors)), len(vectors), confidence)
    low, high = bca_interval(vectors, aggregate, confidence, seed)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None
