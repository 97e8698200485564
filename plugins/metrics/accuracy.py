"""Accuracy and its kin: generated answers, choice among labels by log-likelihood, classification."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.core.metrics import Metric, Rows, SubType
from drupe.core.model import Model
from drupe.core.runtimes import GenerateOptions, Session
from drupe.plugins.metrics import answers, classification
from drupe.plugins.metrics.batches import array, batches
from drupe.plugins.metrics.config import DataMetricConfig
from drupe.plugins.metrics.outputs import post_processed

if TYPE_CHECKING:
    import numpy as np


__all__ = ["Accuracy", "AccuracyConfig"]

_PROPORTION = SubType("", "higher", proportion=True)
_SHARE = SubType("", "higher")
_OPTIONS = (
    "task", "num_classes", "average", "threshold", "top_k", "ignore_index", "multidim_average", "validate_args",
    "compute_params",
)  # fmt: skip


class AccuracyConfig(DataMetricConfig):
    """How answers are asked for and compared."""

    method: Literal["auto", "generate", "choice", "classify"] = Field(
        "auto",
        description="generate: compare the generated answer; choice: the label of highest log-likelihood; "
        "classify: the class of highest output. auto: generate where samples have prompts, else classify.",
    )
    metric_config: dict[str, Any] = Field(
        default_factory=dict, description="Options of sub-types (task, num_classes, average, …), flat or by sub-type."
    )
    labels: list[str] | None = Field(None, description="The classes, in order; default: the targets in the data.")
    max_new_tokens: int = Field(32, ge=1, description="Longest generated answer.")
    stop: list[str] | None = Field(None, description="Where a generated answer ends; default: at the line's end.")
    ignore_case: bool = Field(True, description="Compare generated answers without case.")
    ignore_punctuation: bool = Field(False, description="Compare generated answers without punctuation.")
    length_normalized: bool = Field(False, description="Choose by log-likelihood per token.")
    output: str | None = Field(None, description="The model output that classifies; default: logits, else the first.")

    @field_validator("metric_config")
    @classmethod
    def _known_options(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name, value in values.items():
            inner = value if isinstance(value, Mapping) and name in Accuracy.sub_types else {name: value}
            for key in inner:
                if key not in _OPTIONS:
                    raise ValueError(f"unknown option {key!r}; known: {', '.join(_OPTIONS)}")
            for key in ("num_classes", "top_k", "ignore_index"):
                number = inner.get(key)
                if number is not None and not str(number).lstrip("-").isdigit():
                    raise ValueError(f"{key} is {number!r}; expected a whole number")
            task = inner.get("task", "multiclass")
            if task not in ("binary", "multiclass"):
                raise ValueError(f"task {task!r} is not supported; use binary or multiclass")
            if inner.get("multidim_average", "global") != "global":
                raise ValueError("multidim_average is not supported but for global: every position counts as a row")
            average = {**inner, **inner.get("compute_params", {})}.get("average")
            if average not in (None, "micro", "macro", "weighted", "binary"):
                raise ValueError(f"average {average!r} is not supported; use micro, macro, weighted or binary")
        return values

    def options_of(self, sub_type: str) -> Mapping[str, Any]:
        """Return metric_config as it applies to a sub-type: what is flat, then what stands under its name.

        The compute_params of huggingface metrics count as options.
        """
        flat = {key: value for key, value in self.metric_config.items() if key in _OPTIONS}
        merged = {**flat, **self.metric_config.get(sub_type, {})}
        return {**merged, **merged.pop("compute_params", {})}

    def average(self, sub_type: str, classes: int) -> classification.Average:
        """Return how per-class values are averaged: as told, else class 1 of two, else micro."""
        options = self.options_of(sub_type)
        told: classification.Average | None = options.get("average")
        if options.get("task") == "binary" or (classes == 2 and told in (None, "binary")):
            return "binary"
        return told or "micro"


class Accuracy(Metric):
    """Right answers. Rows: (correct, target, predicted, number of classes, score of each class where there are some).

    The names of torchmetrics (accuracy_score, f1_score, …) and of Hugging Face's evaluate (accuracy, f1, exact_match)
    both work. An answer that is none of the labels is class -1.
    """

    Config = AccuracyConfig
    version = 2
    sub_types: ClassVar[Mapping[str, SubType]] = {
        "accuracy_score": _PROPORTION,
        "accuracy": _PROPORTION,
        "exact_match": _PROPORTION,
        "f1_score": _SHARE,
        "f1": _SHARE,
        "precision": _SHARE,
        "recall": _SHARE,
        "auroc": _SHARE,
    }
    default_sub_type = "accuracy_score"

    def needs(self, config: AccuracyConfig) -> Sequence[str]:
        """See Metric.needs."""
        return {
            "generate": ("generate",),
            "choice": ("score",),
            "classify": ("forward",),
            "auto": ("generate", "forward"),
        }[config.method]

    def sub_type(self, name: str, config: AccuracyConfig) -> SubType:
        """See Metric.sub_type: averaged over classes, accuracy is no proportion of samples."""
        if self.sub_types[name].proportion and config.options_of(name).get("average") in ("macro", "weighted"):
            return _SHARE
        return self.sub_types[name]

    def measure(
        self,
        model: Model,
        session: Session | None,
        samples: Sequence[Sample],
        config: AccuracyConfig,
        context: JobContext,
    ) -> Rows:
        """See Metric.measure."""
        assert session is not None
        method = config.method
        if method == "auto":
            asks = samples and isinstance(samples[0].inputs.get("prompt"), str) and config.dataloader_func is None
            method = "generate" if asks and "generate" in session.capabilities else "classify"
        if method == "classify":
            return self._classified(model, session, samples, config, context)
        labels = config.labels or answers.labels_of(context.population or samples)
        if not samples:
            raise EvaluationError("the metric has no data; name a data config as its data_config")
        if method == "generate":
            return self._generated(session, samples, labels, config, context)
        return self._chosen(session, samples, labels, config, context)

    def aggregate(self, rows: Sequence[tuple[float, ...]], sub_type: str, config: AccuracyConfig) -> float:
        """See Metric.aggregate."""
        import numpy as np

        table = np.asarray(rows, dtype=float)
        average = config.average(sub_type, int(table[:, 3].max()))
        match sub_type:
            case "f1_score" | "f1":
                return classification.f1(table, average)
            case "precision":
                return classification.precision(table, average)
            case "recall":
                return classification.recall(table, average)
            case "auroc":
                if table.shape[1] <= 4:
                    raise EvaluationError("auroc needs a score per class; use method: choice or classify")
                return classification.auroc(table, average)
            case _:
                if average in ("macro", "weighted"):
                    return classification.recall(table, average)
                return float(table[:, 0].mean())

    def _generated(
        self,
        session: Session,
        samples: Sequence[Sample],
        labels: Sequence[str],
        config: AccuracyConfig,
        context: JobContext,
    ) -> Rows:
        stop = tuple(config.stop) if config.stop is not None else answers.stops_of(samples)
        options = GenerateOptions(max_new_tokens=config.max_new_tokens, stop=stop, seed=context.seed)
        given = answers.generated_answers(session, samples, options, context)

        def plain(text: str) -> str:
            return answers.normalised(
                text, ignore_case=config.ignore_case, ignore_punctuation=config.ignore_punctuation
            )

        index = {plain(label): number for number, label in enumerate(labels)}
        rows = {}
        for sample in samples:
            answer, target = plain(given[sample.id]), plain(str(sample.target))
            if target not in index:
                raise EvaluationError(f"the target {sample.target!r} of sample {sample.id} is none of the labels")
            rows[sample.id] = (
                float(answer == target),
                float(index[target]),
                float(index.get(answer, -1)),
                float(len(index)),
            )
        return rows

    def _chosen(
        self,
        session: Session,
        samples: Sequence[Sample],
        labels: Sequence[str],
        config: AccuracyConfig,
        context: JobContext,
    ) -> Rows:
        index = {label.strip(): number for number, label in enumerate(labels)}
        rows = {}
        for number, sample in enumerate(samples):
            context.progress(number, len(samples), "scoring labels")
            target = index.get(str(sample.target).strip())
            if target is None:
                raise EvaluationError(f"the target {sample.target!r} of sample {sample.id} is none of the labels")
            scores = answers.choice_scores(session, sample, labels, length_normalised=config.length_normalized)
            rows[sample.id] = _row(target, scores, 1)
        return rows

    def _classified(
        self,
        model: Model,
        session: Session,
        samples: Sequence[Sample],
        config: AccuracyConfig,
        context: JobContext,
    ) -> Rows:
        import numpy as np

        options = config.options_of(self.default_sub_type)
        names = config.labels or _model_labels(model)
        rows: dict[str, tuple[float, ...]] = {}
        for batch in batches(session, samples, config, context):
            result = session.forward(batch.inputs)
            scores = post_processed(result.outputs, config, context, count=len(batch.ids), output=config.output)
            for position, (key, target) in enumerate(zip(batch.ids, batch.targets, strict=True)):
                if target is None:
                    raise EvaluationError(f"sample {key} has no target; its data config must name the label")
                wanted = np.asarray(_class_number(target, names, key)) if isinstance(target, str) else array(target)
                _add_rows(rows, key, scores[position], wanted, options)
        return rows


def _add_rows(
    rows: dict[str, tuple[float, ...]], key: str, output: np.ndarray, target: np.ndarray, options: Mapping[str, Any]
) -> None:
    """Add a sample's row, or one for each of its positions (tokens, pixels)."""
    import numpy as np

    target = np.squeeze(target)
    if target.dtype.kind in "US" or (target.dtype.kind == "f" and not np.array_equal(target, np.trunc(target))):
        raise EvaluationError(
            f"the target {target.tolist()} of sample {key} is no class; expected whole numbers or names"
        )
    if target.ndim == 0:
        if int(target) != options.get("ignore_index"):
            rows[key] = _classified_row(np.asarray(output), int(target), options)
        return
    ignored = options.get("ignore_index", -100)
    if target.ndim == 1 and output.ndim and output.shape[0] > target.size:
        # What a shorter sample was padded with in its batch.
        output = output[: target.size]
    for position, label in enumerate(target.reshape(-1)):
        if int(label) != ignored:
            flat = output.reshape(target.size, -1) if output.size != target.size else output.reshape(-1)
            rows[f"{key}#{position}"] = _classified_row(np.asarray(flat[position]), int(label), options)


def _classified_row(output: np.ndarray, target: int, options: Mapping[str, Any]) -> tuple[float, ...]:
    import numpy as np

    output = np.squeeze(output)
    classes = options.get("num_classes")
    if output.ndim == 0 and np.issubdtype(output.dtype, np.floating) and (classes in (None, 1, 2)):
        # One number is the chance of class 1, or its logit.
        chance = float(output) if 0.0 <= float(output) <= 1.0 else 1.0 / (1.0 + float(np.exp(-float(output))))
        predicted = int(chance > options.get("threshold", 0.5))
        return (float(predicted == target), float(target), float(predicted), 2.0, 1.0 - chance, chance)
    if output.ndim == 0:
        predicted = int(output)
        size = float(classes or max(predicted, target, 1) + 1)
        return (float(predicted == target), float(target), float(predicted), size)
    return _row(target, output.reshape(-1), options.get("top_k", 1) or 1)


def _row(target: int, scores: np.ndarray, top_k: int) -> tuple[float, ...]:
    import numpy as np

    if not 0 <= target < len(scores):
        raise EvaluationError(f"a target is class {target}, but the model gives scores for {len(scores)} classes")
    best = np.argsort(-scores, kind="stable")[:top_k]
    predicted = target if target in best else int(best[0])
    return (float(target in best), float(target), float(predicted), float(len(scores)), *(float(s) for s in scores))


def _model_labels(model: Model) -> list[str] | None:
    """Return the class names of a model's config.json (id2label), or None."""
    if "config.json" not in model.files:
        return None
    data = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    names = data.get("id2label")
    return [names[str(i)] for i in range(len(names))] if names else None


def _class_number(target: str, names: Sequence[str] | None, key: str) -> int:
    if names is None:
        raise EvaluationError(
            f"the target {target!r} of sample {key} is a name and the model has no class names; "
            "list them, in the model's order, as `labels` of the metric"
        )
    plain = [answers.normalised(name) for name in names]
    if answers.normalised(target) not in plain:
        raise EvaluationError(f"the target {target!r} of sample {key} is none of the classes {', '.join(names)}")
    return plain.index(answers.normalised(target))
