"""Embedding similarity: the cosine between a model's embedding of each sample and the source model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.core.metrics import Metric, Rows, SubType
from drupe.core.model import Model
from drupe.core.runtimes import Session
from drupe.plugins.metrics.batches import array, spread
from drupe.plugins.metrics.config import DataMetricConfig
from drupe.plugins.metrics.outputs import looked_at
from drupe.plugins.metrics.references import compared_batches, reference_outputs

if TYPE_CHECKING:
    import numpy as np


__all__ = ["EmbeddingSimilarity", "EmbeddingSimilarityConfig", "embedded"]

_POOLED = ("sentence_embedding", "embeddings", "image_embeds", "text_embeds")
"""Outputs that are an embedding already, the most wanted first."""


class EmbeddingSimilarityConfig(DataMetricConfig):
    """What the embedding of a sample is."""

    output: str | None = Field(
        None,
        description="The output that holds it; default: sentence_embedding, embeddings, image_embeds or text_embeds "
        "where the model has one, else last_hidden_state, else the first output.",
    )
    pooling: Literal["mean", "cls", "max", "last"] = Field(
        "mean",
        description="How an output with a vector per token becomes one vector: the mean or the maximum over the tokens "
        "that are no padding, or the vector of the first or of the last of them.",
    )
    made_up_num: int = Field(32, ge=1, description="How many batches of made-up input serve where there is no data.")

    def without_effect(self) -> Mapping[str, str]:
        """See DataMetricConfig."""
        if self.post_processing_func is None:
            return {}
        return {"output": "post_processing_func makes the embedding of the outputs"}


class EmbeddingSimilarity(Metric):
    """Rows: (cosine,), the cosine between the two models' embeddings of one sample.

    A post_processing_func makes the embeddings of both models' outputs. An output with a vector per token is pooled
    over the tokens that the attention mask keeps. Where exactly one of the two embeddings is all zeros the cosine is 0,
    where both are it is 1. NaN or infinite embeddings are an error.
    """

    Config = EmbeddingSimilarityConfig
    version = 2
    needs_reference = True
    sub_types: ClassVar[Mapping[str, SubType]] = {
        "cosine": SubType("", "higher"),
        "min_cosine": SubType("", "higher"),
    }
    default_sub_type = "cosine"

    def measure(
        self,
        model: Model,
        session: Session | None,
        samples: Sequence[Sample],
        config: EmbeddingSimilarityConfig,
        context: JobContext,
    ) -> Rows:
        """See Metric.measure. The reference is a sample's extras["reference"], else what the source model gives."""
        assert session is not None
        rows = {}
        for batch in compared_batches(session, samples, config, context, config.made_up_num):
            mask = batch.inputs.get("attention_mask")
            count = len(batch.ids)
            outputs = session.forward(batch.inputs).outputs
            reference = reference_outputs("embedding_similarity", batch, context)
            ours = embedded(looked_at(outputs, config, context, count=count), mask, config)
            theirs = embedded(looked_at(reference, config, context, count=count), mask, config)
            if ours.shape[1:] != theirs.shape[1:]:
                raise EvaluationError(
                    f"the embedding has {ours.shape[1]} numbers, the source model's has {theirs.shape[1]}"
                )
            for key, position, _ in spread(batch, len(ours)):
                rows[key] = (_cosine(ours[position], theirs[position], key),)
        return rows

    def aggregate(self, rows: Sequence[tuple[float, ...]], sub_type: str, config: EmbeddingSimilarityConfig) -> float:
        """See Metric.aggregate."""
        cosines = [row[0] for row in rows]
        return min(cosines) if sub_type == "min_cosine" else sum(cosines) / len(cosines)


def embedded(outputs: Mapping[str, Any], mask: np.ndarray | None, config: EmbeddingSimilarityConfig) -> np.ndarray:
    """Return the embeddings of a batch: float64, (batch, size). Raises EvaluationError for an absent output."""
    import numpy as np

    name = config.output if config.post_processing_func is None else None
    if name is None:
        known = [n for n in (*_POOLED, "last_hidden_state") if n in outputs]
        name = known[0] if known else next(iter(outputs))
    if name not in outputs:
        raise EvaluationError(f"the model has no output {name!r}; it has: {', '.join(outputs)}")
    values = np.asarray(array(outputs[name]), dtype=np.float64)
    if values.ndim == 3:
        values = _pooled(values, mask, config.pooling)
    elif values.ndim > 3:
        # Feature maps of an image: one vector of all their numbers.
        values = values.reshape(len(values), -1)
    if values.ndim != 2:
        raise EvaluationError(f"the output {name!r} has shape {values.shape}; expected a vector per sample or token")
    return values


def _pooled(values: np.ndarray, mask: np.ndarray | None, pooling: str) -> np.ndarray:
    import numpy as np

    fits = mask is not None and mask.shape == values.shape[:2]
    kept = np.asarray(mask, dtype=bool) if fits else np.ones(values.shape[:2], dtype=bool)
    rows = []
    for vectors, keep in zip(values, kept, strict=True):
        chosen = vectors[keep] if keep.any() else vectors
        match pooling:
            case "mean":
                rows.append(chosen.mean(axis=0))
            case "max":
                rows.append(chosen.max(axis=0))
            case "cls":
                rows.append(chosen[0])
            case _:
                rows.append(chosen[-1])
    return np.stack(rows)


def _cosine(ours: np.ndarray, theirs: np.ndarray, key: str) -> float:
    import numpy as np

    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise EvaluationError(f"the embedding of sample {key} holds NaN or infinite numbers")
    norms = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    if norms == 0.0:
        return float(not ours.any() and not theirs.any())
    return min(1.0, max(-1.0, float(ours @ theirs) / norms))
