"""Perplexity: exp of the mean negative log-likelihood per token."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.core.metrics import Metric, Rows, SubType
from drupe.core.model import Model
from drupe.core.runtimes import Session
from drupe.plugins.metrics.batches import array, batches
from drupe.plugins.metrics.config import FORWARD_ONLY, DataMetricConfig, note

if TYPE_CHECKING:
    import numpy as np


__all__ = ["Perplexity", "PerplexityConfig"]


class PerplexityConfig(DataMetricConfig):
    """Which tokens count."""

    over: Literal["labels", "text"] = Field(
        "labels", description="labels: the tokens that training takes a loss on; text: all tokens of the sample."
    )
    max_length: int | None = Field(
        None, ge=2, description="Longer samples are scored in windows of this many tokens, each by itself."
    )

    def without_effect(self) -> Mapping[str, str]:
        """See DataMetricConfig. batch_size says how many windows are scored at once."""
        names = [name for name in FORWARD_ONLY if name not in ("batch_size", "dataloader_func")]
        return dict.fromkeys(names, "the runtime scores tokens by itself")


class Perplexity(Metric):
    """Rows: (negative log-likelihood in nats, tokens)."""

    Config = PerplexityConfig
    version = 1
    sub_types: ClassVar[Mapping[str, SubType]] = {
        "perplexity": SubType("", "lower"),
        "loss": SubType("nats/token", "lower"),
    }
    default_sub_type = "perplexity"

    def needs_data(self, config: PerplexityConfig) -> bool:
        """See Metric.needs_data: where no loader of the user's gives any."""
        return config.dataloader_func is None

    def measure(
        self,
        model: Model,
        session: Session | None,
        samples: Sequence[Sample],
        config: PerplexityConfig,
        context: JobContext,
    ) -> Rows:
        """See Metric.measure. Samples without a token to score are left out and told; if none has one, that is an
        error, and so is a token that the model gives no probability."""
        import numpy as np

        assert session is not None
        if config.dataloader_func is not None:
            samples = list(_loaded(session, config, context))
        rows: dict[str, tuple[float, float]] = {}
        windows = ((s.id, window) for s in _told(samples, context) for window in _windows(session, s, config))
        while part := list(itertools.islice(windows, config.batch_size)):
            results = session.score_batch([window for _, window in part])
            for (key, (_, labels)), result in zip(part, results, strict=True):
                logprobs = np.asarray(result.outputs["logprobs"], dtype=float)
                scored = logprobs[labels != -100]
                if np.isnan(scored).any():
                    raise EvaluationError(
                        f"the model gives NaN for {int(np.isnan(scored).sum())} of {len(scored)} tokens of sample "
                        f"{key}; its weights or its precision may be broken"
                    )
                nll, tokens = rows.get(key, (0.0, 0.0))
                rows[key] = (nll - float(scored.sum()), tokens + len(scored))
        rows = {key: row for key, row in rows.items() if row[1]}
        if not rows:
            raise EvaluationError(
                f"none of the {len(samples)} samples has a token to score; the data config should give text or labels"
            )
        if len(rows) < len(samples):
            left = len(samples) - len(rows)
            note(f"{left} of {len(samples)} samples have no token to score and are left out", context)
        return rows

    def aggregate(self, rows: Sequence[tuple[float, ...]], sub_type: str, config: PerplexityConfig) -> float:
        """See Metric.aggregate."""
        loss = math.fsum(row[0] for row in rows) / math.fsum(row[1] for row in rows)
        if sub_type == "loss":
            return loss
        # A broken model's perplexity passes the range of floats; the largest one still sorts it last.
        return math.exp(loss) if loss < 700 else sys.float_info.max


def _told(samples: Sequence[Sample], context: JobContext) -> Iterator[Sample]:
    for index, sample in enumerate(samples):
        context.progress(index, len(samples), "scoring text")
        yield sample


def _loaded(session: Session, config: PerplexityConfig, context: JobContext) -> Iterator[Sample]:
    """Yield the rows of the user's batches: input_ids, and attention_mask and labels (or targets) of the same shape."""
    for batch in batches(session, (), config, context):
        ids = batch.inputs.get("input_ids")
        if ids is None or ids.ndim != 2:
            raise EvaluationError(
                f"{config.dataloader_func} ({config.user_script}) gives batches of {', '.join(batch.inputs)}; expected "
                "input_ids of shape (batch, length)"
            )
        for position, key in enumerate(batch.ids):
            row = {name: value[position] for name, value in batch.inputs.items() if value.shape == ids.shape}
            target = batch.targets[position]
            if "labels" not in row and target is not None and array(target).shape == ids[position].shape:
                row["labels"] = array(target)
            yield Sample(key, row)


def _windows(session: Session, sample: Sample, config: PerplexityConfig) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    import numpy as np

    ids = sample.inputs.get("input_ids")
    labels = sample.inputs.get("labels")
    if not isinstance(ids, np.ndarray):
        text = sample.inputs.get("text")
        if not isinstance(text, str):
            raise EvaluationError(f"sample {sample.id} has neither input_ids nor text to score")
        ids, labels = session.tokenize(text), None
    mask = sample.inputs.get("attention_mask")
    if isinstance(mask, np.ndarray):
        keep = mask.astype(bool)
        ids = ids[keep]
        labels = labels[keep] if isinstance(labels, np.ndarray) else None
    if config.over == "text" or not isinstance(labels, np.ndarray):
        labels = ids
    size = config.max_length or max(len(ids), 1)
    for start in range(0, len(ids), size):
        window, wanted = ids[start : start + size], labels[start : start + size].copy()
        wanted[:1] = -100
        if (wanted != -100).any():
            yield np.asarray(window, dtype=np.int64), np.asarray(wanted, dtype=np.int64)
