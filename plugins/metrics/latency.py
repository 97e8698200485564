"""Latency: milliseconds per call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from drupe.core.errors import EvaluationError
from drupe.core.metrics import SubType
from drupe.plugins.metrics.timed import PERCENTILES, TimedMetric
from drupe.plugins.metrics.timing import Call, TimedMetricConfig

if TYPE_CHECKING:
    import numpy as np


__all__ = ["Latency"]

_MS = SubType("ms", "lower")


class Latency(TimedMetric):
    """Rows, one a repetition: (ms, ms to the first token, tokens or samples) and the same three of the baseline, where
    there is one. Of a forward call the first output is the whole, so both times are equal.

    speedup is the ratio of the medians, baseline over model.
    """

    version = 1
    sub_types: ClassVar[Mapping[str, SubType]] = {
        "avg": _MS,
        "max": _MS,
        "min": _MS,
        **dict.fromkeys(PERCENTILES, _MS),
        "ttft_avg": _MS,
        "ttft_p50": _MS,
        "ttft_p90": _MS,
        "speedup": SubType("x", "higher"),
    }
    default_sub_type = "avg"

    def entries(self, call: Call) -> tuple[float, ...]:
        """See TimedMetric.entries."""
        return call.seconds * 1e3, call.first * 1e3, float(call.amount)

    def aggregate(self, rows: Sequence[tuple[float, ...]], sub_type: str, config: TimedMetricConfig) -> float:
        """See Metric.aggregate."""
        import numpy as np

        table = np.asarray(rows, dtype=float)
        if sub_type == "speedup":
            if table.shape[1] < 6:
                raise EvaluationError("speedup needs a baseline; none was measured beside the model")
            return float(np.median(table[:, 3]) / np.median(table[:, 0]))
        column = table[:, 1] if sub_type.startswith("ttft_") else table[:, 0]
        return _statistic(column, sub_type.removeprefix("ttft_"))


def _statistic(values: np.ndarray, name: str) -> float:
    import numpy as np

    match name:
        case "avg":
            return float(values.mean())
        case "max":
            return float(values.max())
        case "min":
            return float(values.min())
        case _:
            return float(np.percentile(values, PERCENTILES[name]))
