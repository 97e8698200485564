"""Throughput: tokens per second of generation, samples per second of forward calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from drupe.core.errors import EvaluationError
from drupe.core.metrics import SubType
from drupe.plugins.metrics.timed import PERCENTILES, TimedMetric
from drupe.plugins.metrics.timing import Call, TimedMetricConfig

__all__ = ["Throughput"]

_RATE = SubType("1/s", "higher")


class Throughput(TimedMetric):
    """Rows, one a repetition: (tokens or samples, seconds) and the same two of the baseline, where there is one.

    avg: all that came out over all the time it took. max, min: of single calls. pN: the rate that N % of the calls
    reach, so that p90 is below p50, as the 90th percentile of latency is above its median.
    """

    version = 1
    sub_types: ClassVar[Mapping[str, SubType]] = {
        "avg": _RATE,
        "max": _RATE,
        "min": _RATE,
        **dict.fromkeys(PERCENTILES, _RATE),
        "speedup": SubType("x", "higher"),
    }
    default_sub_type = "avg"

    def entries(self, call: Call) -> tuple[float, ...]:
        """See TimedMetric.entries."""
        return float(call.amount), call.seconds

    def aggregate(self, rows: Sequence[tuple[float, ...]], sub_type: str, config: TimedMetricConfig) -> float:
        """See Metric.aggregate."""
        import numpy as np

        table = np.asarray(rows, dtype=float)
        rate = float(table[:, 0].sum() / table[:, 1].sum())
        if sub_type == "avg":
            return rate
        if sub_type == "speedup":
            if table.shape[1] < 4:
                raise EvaluationError("speedup needs a baseline; none was measured beside the model")
            return rate / float(table[:, 2].sum() / table[:, 3].sum())
        rates = table[:, 0] / table[:, 1]
        if sub_type in ("max", "min"):
            return float(rates.max() if sub_type == "max" else rates.min())
        return float(np.percentile(rates, 100.0 - PERCENTILES[sub_type]))
