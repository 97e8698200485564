"""What latency and throughput share: a row a repetition, of the model and, where there is one, of its baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.metrics import Metric, Rows
from drupe.core.model import Model
from drupe.core.runtimes import Session
from drupe.plugins.metrics.timing import Call, TimedMetricConfig, repeated

__all__ = ["PERCENTILES", "TimedMetric"]

PERCENTILES: Mapping[str, float] = {"p50": 50.0, "p75": 75.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}


class TimedMetric(Metric):
    """A metric of what calls take, made beside those of the baseline in turn."""

    Config: ClassVar[type[TimedMetricConfig]] = TimedMetricConfig

    def entries(self, call: Call) -> tuple[float, ...]:
        """Return what a row holds of a call."""
        raise NotImplementedError

    def needs(self, config: TimedMetricConfig) -> Sequence[str]:
        """See Metric.needs."""
        return config.wanted()

    def measure(
        self,
        model: Model,
        session: Session | None,
        samples: Sequence[Sample],
        config: TimedMetricConfig,
        context: JobContext,
    ) -> Rows:
        """See Metric.measure."""
        assert session is not None
        repetitions = repeated(session, samples, config, context, context.baseline_session)
        return {
            f"repetition-{index:05}": tuple(n for call in calls if call is not None for n in self.entries(call))
            for index, calls in enumerate(repetitions)
        }
