"""Energy: joules per sample, as the device counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from drupe import EvaluationError, Metric, MetricConfig, Model, PassContext, Sample, Session, SubType
from pydantic import Field

__all__ = ["Energy"]


class EnergyConfig(MetricConfig):
    """How often the device is asked."""

    repeat_test_num: int = Field(10, ge=1, description="Calls that are counted.")


class Energy(Metric):
    """Rows, one a call: (joules, samples in the batch)."""

    Config = EnergyConfig
    version = 1
    sub_types: ClassVar[Mapping[str, SubType]] = {
        "per_sample": SubType("J", "lower"),
        "max": SubType("J", "lower"),
    }
    default_sub_type = "per_sample"

    def measure(
        self,
        model: Model,
        session: Session | None,
        samples: Sequence[Sample],
        config: EnergyConfig,
        context: PassContext,
    ) -> Mapping[str, tuple[float, ...]]:
        """See Metric.measure. Raises EvaluationError for a device that does not count energy."""
        assert session is not None
        shapes = session.input_shapes()
        rows = {}
        for index in range(config.repeat_test_num):
            batch = _batch(samples, index, shapes)
            counters = session.forward(batch).counters
            if "energy" not in counters:
                raise EvaluationError("this runtime counts no energy; measure on a target whose device does")
            rows[f"call-{index:04}"] = (counters["energy"], float(next(iter(batch.values())).shape[0]))
        return rows

    def aggregate(self, rows: Sequence[tuple[float, ...]], sub_type: str, config: EnergyConfig) -> float:
        """See Metric.aggregate."""
        if sub_type == "max":
            return max(joules / count for joules, count in rows)
        return sum(row[0] for row in rows) / sum(row[1] for row in rows)


def _batch(
    samples: Sequence[Sample], index: int, shapes: Mapping[str, tuple[tuple[int | str, ...], str]]
) -> dict[str, np.ndarray]:
    """Return the index-th batch of the samples, in turn; zeros where there are no samples."""
    batch = {}
    for name, (shape, dtype) in shapes.items():
        sizes = [size if isinstance(size, int) else 1 for size in shape]
        if samples:
            chosen = [samples[(index * sizes[0] + i) % len(samples)].inputs[name] for i in range(sizes[0])]
            batch[name] = np.stack([np.asarray(value, dtype=dtype) for value in chosen])
        else:
            batch[name] = np.zeros(sizes, dtype)
    return batch
