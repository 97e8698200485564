"""Discrepancy: how far a model's outputs are from the source model's on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.core.metrics import Metric, Rows, SubType
from drupe.core.model import Model
from drupe.core.runtimes import Session
from drupe.plugins.metrics.batches import array, spread
from drupe.plugins.metrics.config import DataMetricConfig
from drupe.plugins.metrics.differences import Differences, differences, unpadded
from drupe.plugins.metrics.outputs import looked_at
from drupe.plugins.metrics.references import compared_batches, reference_outputs

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Discrepancy"]


class DiscrepancyConfig(DataMetricConfig):
    """Which outputs are compared."""

    outputs: list[str] | None = Field(None, description="Output names; default: all that both models have.")
    made_up_num: int = Field(32, ge=1, description="How many batches of made-up input serve where there is no data.")

    def without_effect(self) -> Mapping[str, str]:
        """See DataMetricConfig."""
        if self.post_processing_func is None:
            return {}
        return {"outputs": "what post_processing_func makes of the outputs is compared"}


class Discrepancy(Metric):
    """Rows: (largest error, sum of errors, numbers, dot product, squared norm, squared norm of the reference, argmax
    flips, argmax decisions).

    Padding does not count: where a batch has an attention mask and an output has its length, masked positions are left
    out. A post_processing_func makes of both models' outputs what is compared. flips is the share of positions at which
    the two models' argmax over the last axis differs.
    """

    Config = DiscrepancyConfig
    version = 2
    needs_reference = True
    sub_types: ClassVar[Mapping[str, SubType]] = {
        "max_error": SubType("", "lower"),
        "mean_error": SubType("", "lower"),
        "cosine": SubType("", "higher"),
        "flips": SubType("", "lower"),
    }
    default_sub_type = "mean_error"

    def measure(
        self,
        model: Model,
        session: Session | None,
        samples: Sequence[Sample],
        config: DiscrepancyConfig,
        context: JobContext,
    ) -> Rows:
        """See Metric.measure. The reference is a sample's extras["reference"], else what the source model gives."""
        assert session is not None
        rows = {}
        for batch in compared_batches(session, samples, config, context, config.made_up_num):
            count = len(batch.ids)
            outputs = looked_at(session.forward(batch.inputs).outputs, config, context, count=count)
            reference = looked_at(reference_outputs("discrepancy", batch, context), config, context, count=count)
            names = _compared(outputs, reference, config)
            mask = batch.inputs.get("attention_mask")
            many = next((len(value) for value in (array(outputs[name]) for name in names) if value.ndim), 1)
            for key, position, _ in spread(batch, many if batch.whole else count):
                total = Differences()
                for name in names:
                    ours = _of_sample(array(outputs[name]), position, mask)
                    theirs = _of_sample(array(reference[name]), position, mask)
                    if ours.shape != theirs.shape:
                        raise EvaluationError(
                            f"output {name!r} of sample {key} has shape {ours.shape}; the reference has {theirs.shape}"
                        )
                    total += differences(ours, theirs)
                rows[key] = astuple(total)[:8]
        return rows

    def aggregate(self, rows: Sequence[tuple[float, ...]], sub_type: str, config: DiscrepancyConfig) -> float:
        """See Metric.aggregate."""
        import numpy as np

        table = np.asarray(rows, dtype=float)
        match sub_type:
            case "max_error":
                return float(table[:, 0].max())
            case "mean_error":
                return float(table[:, 1].sum() / table[:, 2].sum())
            case "cosine":
                norm = np.sqrt(table[:, 4] * table[:, 5])
                each = np.divide(table[:, 3], norm, out=np.zeros_like(norm), where=norm > 0)
                return float(each.mean())
            case _:
                return float(table[:, 6].sum() / table[:, 7].sum())


def _of_sample(output: np.ndarray, position: int, mask: np.ndarray | None) -> np.ndarray:
    """Return what an output says of a sample: its row, or all of an output that has none for each, such as a scale."""
    if output.ndim and position < len(output):
        return unpadded(output, position, mask)
    return output.reshape(-1)


def _compared(ours: Mapping[str, Any], theirs: Mapping[str, Any], config: DiscrepancyConfig) -> list[str]:
    told = config.outputs if config.post_processing_func is None else None
    names = told or [name for name in ours if name in theirs]
    absent = [name for name in names if name not in ours or name not in theirs]
    if absent or not names:
        raise EvaluationError(
            f"the outputs {', '.join(absent) or 'compared'} are not in both models; "
            f"this one has {', '.join(ours)}, the reference has {', '.join(theirs)}"
        )
    return names
