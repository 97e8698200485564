"""What the source model gives for a batch, for metrics that compare with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.core.runtimes import Session
from drupe.plugins.metrics.batches import Batch, array, batches, made_up_batch
from drupe.plugins.metrics.config import DataMetricConfig

__all__ = ["compared_batches", "reference_outputs"]


def compared_batches(
    session: Session, samples: Sequence[Sample], config: DataMetricConfig, context: JobContext, made_up: int
) -> Iterator[Batch]:
    """Yield the batches on which both models are run; without data, `made_up` batches by the model's own shapes.

    They have no targets: the other model's outputs are those.
    """
    if samples or config.dataloader_func:
        for batch in batches(session, samples, config, context):
            yield replace(batch, targets=(None,) * len(batch.ids))
        return
    for number in range(made_up):
        batch = made_up_batch(session, config, context, context.seed + number)
        yield replace(batch, ids=tuple(f"{key}-{number}" for key in batch.ids))


def reference_outputs(metric: str, batch: Batch, context: JobContext) -> Mapping[str, Any]:
    """Return the reference: the samples' extras["reference"] where all have one, else what the source model gives.

    Raises EvaluationError when there is neither.
    """
    import numpy as np

    given = [r for r in batch.references if r is not None]
    if given and len(given) == len(batch.references):
        return {name: np.stack([array(r[name]) for r in given]) for name in given[0]}
    if context.reference_session is None:
        raise EvaluationError(f"{metric} compares with the source model, and none was given with this job")
    return context.reference_session.forward(batch.inputs).outputs
