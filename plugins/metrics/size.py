"""Size on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.metrics import Metric, Rows, SubType
from drupe.core.model import Model
from drupe.core.runtimes import Session
from drupe.plugins.metrics.config import DataMetricConfig

__all__ = ["SizeOnDisk"]


class SizeOnDiskConfig(DataMetricConfig):
    """Nothing: what other metrics take is understood, and told to have no effect."""

    def without_effect(self) -> Mapping[str, str]:
        """See DataMetricConfig."""
        return dict.fromkeys(DataMetricConfig.model_fields, "files are looked at, and nothing is run")


class SizeOnDisk(Metric):
    """The bytes of all files of the model: what a user has to ship. One row: (bytes,)."""

    Config = SizeOnDiskConfig
    version = 1
    sub_types: ClassVar[Mapping[str, SubType]] = {"bytes": SubType("B", "lower", paired=False)}
    default_sub_type = "bytes"

    def measure(
        self,
        model: Model,
        session: Session | None,
        samples: Sequence[Sample],
        config: DataMetricConfig,
        context: JobContext,
    ) -> Rows:
        """See Metric.measure. A file that the model holds twice under two names counts twice."""
        total = sum((model.folder / name).stat().st_size for name in model.files)
        return {"model": (float(total),)}

    def aggregate(self, rows: Sequence[tuple[float, ...]], sub_type: str, config: DataMetricConfig) -> float:
        """See Metric.aggregate."""
        return rows[0][0]
