"""Word error rate: how many words must be changed, put in or taken out to make a model's text the expected one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.core.metrics import Metric, Rows, SubType
from drupe.core.model import Model
from drupe.core.runtimes import GenerateOptions, Session
from drupe.plugins.metrics import answers
from drupe.plugins.metrics.batches import batches, spread
from drupe.plugins.metrics.config import FORWARD_ONLY, DataMetricConfig
from drupe.plugins.metrics.outputs import made_of

__all__ = ["WordErrors", "WordErrorsConfig", "edits"]


class WordErrorsConfig(DataMetricConfig):
    """How texts are got and compared."""

    method: Literal["auto", "generate", "forward"] = Field(
        "auto",
        description="generate: the text after the sample's prompt; forward: what post_processing_func makes of the "
        "outputs, a text per sample. auto: forward where there is a post_processing_func.",
    )
    max_new_tokens: int = Field(128, ge=1, description="Longest generated text.")
    stop: list[str] | None = Field(None, description="Where a generated text ends; default: at the line's end.")
    ignore_case: bool = Field(True, description="Compare without case.")
    ignore_punctuation: bool = Field(True, description="Compare without punctuation.")

    @property
    def forward(self) -> bool:
        """Whether texts are what a function makes of a forward call's outputs."""
        return self.method == "forward" or (self.method == "auto" and self.post_processing_func is not None)

    def without_effect(self) -> Mapping[str, str]:
        """See DataMetricConfig."""
        if self.forward:
            return dict.fromkeys(("max_new_tokens", "stop"), "post_processing_func makes the texts")
        return dict.fromkeys(FORWARD_ONLY, "texts are generated to one prompt after the other")

    @model_validator(mode="after")
    def _texts_from_somewhere(self) -> WordErrorsConfig:
        if self.method == "forward" and self.post_processing_func is None:
            raise ValueError("method: forward needs a post_processing_func that makes texts of the outputs")
        if self.dataloader_func is not None and not self.forward:
            raise ValueError(
                "dataloader_func gives batches for forward calls; add a post_processing_func that makes texts of the "
                "outputs, or name a data config as data_config"
            )
        return self


class WordErrors(Metric):
    """Rows: (word errors, words expected, character errors, characters expected).

    Errors are the fewest substitutions, insertions and deletions (Levenshtein 1966). wer and cer are the errors of all
    samples by the words or characters of all expected texts, so long texts weigh more; either may exceed 1.
    """

    Config = WordErrorsConfig
    version = 1
    sub_types: ClassVar[Mapping[str, SubType]] = {
        "wer": SubType("", "lower"),
        "cer": SubType("", "lower"),
    }
    default_sub_type = "wer"

    def needs(self, config: WordErrorsConfig) -> Sequence[str]:
        """See Metric.needs."""
        return ("forward",) if config.forward else ("generate",)

    def needs_data(self, config: WordErrorsConfig) -> bool:
        """See Metric.needs_data: where no loader of the user's gives any."""
        return config.dataloader_func is None or not config.forward

    def measure(
        self,
        model: Model,
        session: Session | None,
        samples: Sequence[Sample],
        config: WordErrorsConfig,
        context: JobContext,
    ) -> Rows:
        """See Metric.measure."""
        assert session is not None
        if config.dataloader_func is None:
            # Before the model is asked: that takes long.
            for sample in samples:
                if sample.extras.get("whole_batch"):
                    continue
                self._wanted(_expected(sample.target, sample.id), sample.id, config)
        if config.forward:
            pairs = self._read(session, samples, config, context)
        else:
            pairs = self._generated(session, samples, config, context)
        rows = {}
        for key, (said, wanted) in pairs.items():
            ours, theirs = self._plain(said, config), self._wanted(wanted, key, config)
            rows[key] = (
                float(edits(ours.split(), theirs.split())),
                float(len(theirs.split())),
                float(edits(ours, theirs)),
                float(len(theirs)),
            )
        return rows

    def aggregate(self, rows: Sequence[tuple[float, ...]], sub_type: str, config: WordErrorsConfig) -> float:
        """See Metric.aggregate."""
        first = 0 if sub_type == "wer" else 2
        return math.fsum(row[first] for row in rows) / math.fsum(row[first + 1] for row in rows)

    def _wanted(self, text: str, key: str, config: WordErrorsConfig) -> str:
        plain = self._plain(text, config)
        if not plain:
            raise EvaluationError(
                f"the expected text of sample {key} ({text!r}) has no words, so no rate can be told; leave the row out"
            )
        return plain

    def _plain(self, text: str, config: WordErrorsConfig) -> str:
        return answers.normalised(text, ignore_case=config.ignore_case, ignore_punctuation=config.ignore_punctuation)

    def _generated(
        self, session: Session, samples: Sequence[Sample], config: WordErrorsConfig, context: JobContext
    ) -> Mapping[str, tuple[str, str]]:
        if not samples:
            raise EvaluationError("the metric has no data; name a data config as its data_config")
        stop = tuple(config.stop) if config.stop is not None else answers.stops_of(samples)
        options = GenerateOptions(max_new_tokens=config.max_new_tokens, stop=stop, seed=context.seed)
        given = answers.generated_answers(session, samples, options, context)
        return {sample.id: (given[sample.id], _expected(sample.target, sample.id)) for sample in samples}

    def _read(
        self, session: Session, samples: Sequence[Sample], config: WordErrorsConfig, context: JobContext
    ) -> Mapping[str, tuple[str, str]]:
        found = {}
        for batch in batches(session, samples, config, context):
            texts = made_of(session.forward(batch.inputs).outputs, config, context, list)
            if len(texts) < len(batch.ids) or not all(isinstance(text, str) for text in texts):
                raise EvaluationError(
                    f"{config.post_processing_func} must return a text for each of the {len(batch.ids)} samples of a "
                    f"batch, not {texts!r}"
                )
            for key, position, target in spread(batch, len(texts)):
                found[key] = (texts[position], _expected(target, key))
        return found


def edits(ours: Sequence[Any], theirs: Sequence[Any]) -> int:
    """Return the fewest substitutions, insertions and deletions that turn one sequence into the other."""
    import numpy as np

    number: dict[Any, int] = {}
    a, b = (np.asarray([number.setdefault(item, len(number)) for item in items]) for items in (ours, theirs))
    steps = np.arange(len(b) + 1)
    row = steps
    for item in a:
        # What a substitution or one put in comes to; then what is left out, from left to right.
        best = np.concatenate(([row[0] + 1], np.minimum(row[:-1] + (b != item), row[1:] + 1)))
        row = np.minimum.accumulate(best - steps) + steps
    return int(row[-1])


def _expected(target: Any, key: str) -> str:
    if target is None:
        raise EvaluationError(f"sample {key} has no target; its data config must name the expected text")
    return str(target)
