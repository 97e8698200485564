"""The values of a metric from its rows, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from drupe.core.errors import EvaluationError
from drupe.core.metrics import Metric

__all__ = ["values_of"]

_CONFIDENCE = 0.95


def values_of(
    metric: Metric, config: Any, name: str, sub_types: Sequence[str], vectors: Sequence[tuple[float, ...]], seed: int
) -> dict[str, dict[str, Any]]:
    """Return sub-type → value, unit, direction, n, interval and whether it is a proportion, as JSON data.

    name: the metric's, for messages. Raises EvaluationError where a value is not finite on these rows.
    """
    from drupe.core.statistics.intervals import interval_for

    values: dict[str, dict[str, Any]] = {}
    for sub_type in sub_types:
        sub = metric.sub_type(sub_type, config)

        def aggregate(part: Sequence[tuple[float, ...]], sub_type: str = sub_type) -> float:
            return metric.aggregate(part, sub_type, config)

        value = float(aggregate(vectors))
        if not math.isfinite(value):
            raise EvaluationError(f"{name}-{sub_type} has no value on these {len(vectors)} rows (it is {value})")
        interval = interval_for(vectors, aggregate, _CONFIDENCE, proportion=sub.proportion, seed=seed)
        values[sub_type] = {
            "value": value,
            "unit": sub.unit,
            "direction": sub.direction,
            "n": len(vectors),
            "interval": list(interval) if interval else None,
            "confidence": _CONFIDENCE,
            "proportion": sub.proportion,
        }
    return values
