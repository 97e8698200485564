"""Accuracy and its kin: generated answers, choice among labels by log-likelihood, classification."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.core.metrics import Metric, Rows, SubType
from drupe.core.model import Model
from drupe.core.runtimes import GenerateOptions, Session
from drupe.plugins.metrics import answers, classification
from drupe.plugins.metrics.batches import array, batches, spread
from drupe.plugins.metrics.classified import Judged, class_row, fitted
from drupe.plugins.metrics.config import FORWARD_ONLY, DataMetricConfig
from drupe.plugins.metrics.outputs import main_name, post_processed

__all__ = ["Accuracy", "AccuracyConfig"]

_PROPORTION = SubType("", "higher", proportion=True)
_SHARE = SubType("", "higher")
_OPTIONS = (
    "task", "num_classes", "average", "threshold", "top_k", "ignore_index", "multidim_average", "validate_args",
    "compute_params",
)  # fmt: skip
_OF_TEXTS = ("max_new_tokens", "stop", "ignore_case", "ignore_punctuation")
_OF_ANSWERS = (*_OF_TEXTS, "length_normalized")


class AccuracyConfig(DataMetricConfig):
    """How answers are asked for and compared."""

    method: Literal["auto", "generate", "choice", "classify"] = Field(
        "auto",
        description="generate: compare the generated answer; choice: the label of highest log-likelihood; "
        "classify: the class of highest output. auto: generate where samples have prompts and neither dataloader_func "
        "nor post_processing_func is given, else classify.",
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

    @property
    def own_functions(self) -> bool:
        """Whether functions of the user's deal with the inputs or outputs of forward calls."""
        return self.dataloader_func is not None or self.post_processing_func is not None

    def without_effect(self) -> Mapping[str, str]:
        """See DataMetricConfig."""
        if self.method in ("generate", "choice"):
            other = ("length_normalized",) if self.method == "generate" else _OF_TEXTS
            return {
                **dict.fromkeys(FORWARD_ONLY, f"method: {self.method} asks one prompt after the other"),
                **dict.fromkeys(("output", *other), f"method: {self.method} does not look at it"),
            }
        found: dict[str, str] = {}
        if self.method == "classify" or self.own_functions:
            found |= dict.fromkeys(_OF_ANSWERS, "the class of highest output is taken, and nothing is generated")
        if self.post_processing_func is not None:
            found["output"] = "post_processing_func makes the scores of the outputs"
        return found

    @field_validator("metric_config")
    @classmethod
    def _known_options(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name, value in values.items():
            inner = value if isinstance(value, Mapping) and name in Accuracy.sub_types else {name: value}
            for key in inner:
                if key not in _OPTIONS:
                    raise ValueError(f"unknown option {key!r}; known: {', '.join(_OPTIONS)}")
            task = inner.get("task", "multiclass")
            if task not in ("binary", "multiclass"):
                raise ValueError(f"task {task!r} is not supported; use binary or multiclass")
            if inner.get("multidim_average", "global") != "global":
                raise ValueError("multidim_average is not supported but for global: every position counts as a row")
            _check_numbers(inner)
            average = {**inner, **inner.get("compute_params", {})}.get("average")
            if average not in (None, "micro", "macro", "weighted", "binary"):
                raise ValueError(f"average {average!r} is not supported; use micro, macro, weighted or binary")
        return values

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, values: list[str] | None) -> list[str] | None:
        if values is not None and (len(values) < 2 or len(set(values)) != len(values)):
            raise ValueError(f"labels {values}: expected two classes at least, each once")
        return values

    def options_of(self, sub_type: str) -> Mapping[str, Any]:
        """Return metric_config as it applies to a sub-type: what is flat, then what stands under its name.

        The compute_params of huggingface metrics count as options.
        """
        flat = {key: value for key, value in self.metric_config.items() if key in _OPTIONS}
        merged = {**flat, **self.metric_config.get(sub_type, {})}
        return {**merged, **merged.pop("compute_params", {})}

    def shared_options(self) -> Mapping[str, Any]:
        """Return the options that hold for every value."""
        return {key: value for key, value in self.metric_config.items() if key in _OPTIONS}

    def ignored(self, *, everywhere: bool) -> Sequence[int]:
        """Return the targets that no value counts (everywhere), or that some value does not: their ignore_index."""
        told = [self.shared_options()]
        if not everywhere:
            told += [options for options in self.metric_config.values() if isinstance(options, Mapping)]
        return [options["ignore_index"] for options in told if options.get("ignore_index") is not None]

    def average(self, sub_type: str, classes: int) -> classification.Average:
        """Return how per-class values are averaged: as told, else class 1 of two, else micro."""
        options = self.options_of(sub_type)
        told: classification.Average | None = options.get("average")
        if options.get("task") == "binary" or (classes == 2 and told in (None, "binary")):
            return "binary"
        return told or "micro"


def _check_numbers(options: Mapping[str, Any]) -> None:
    for key, least in (("num_classes", 1), ("top_k", 1), ("ignore_index", None)):
        value = options.get(key)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and (not whole or (least is not None and value < least)):
            raise ValueError(
                f"{key} {value!r}: expected a whole number{'' if least is None else f' of at least {least}'}"
            )
    threshold = options.get("threshold")
    if threshold is None:
        return
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold!r}: expected a number from 0 to 1")


class Accuracy(Metric):
    """Right answers. Rows: (correct, target, predicted, number of classes, score of each class where there are some).

    The names of torchmetrics (accuracy_score, f1_score, …) and of Hugging Face's evaluate (accuracy, f1, exact_match)
    both work. An answer that is none of the labels is class -1.
    """

    Config = AccuracyConfig
    version = 3
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
            "auto": ("forward",) if config.own_functions else ("generate", "forward"),
        }[config.method]

    def needs_data(self, config: AccuracyConfig) -> bool:
        """See Metric.needs_data: where no loader of the user's gives any."""
        return config.dataloader_func is None

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
            asks = samples and isinstance(samples[0].inputs.get("prompt"), str) and not config.own_functions
            method = "generate" if asks and "generate" in session.capabilities else "classify"
        if method == "classify":
            return self._classified(model, session, samples, config, context)
        labels = config.labels or answers.labels_of(context.population or samples)
        if not samples:
            raise EvaluationError("the metric has no data; name a data config as its data_config")
        if method == "generate":
            return self._generated(session, samples, labels, config, context)
        return self._chosen(session, samples, labels, config, context)

    def rows_of(self, rows: Rows, sub_type: str, config: AccuracyConfig) -> Rows:
        """See Metric.rows_of: threshold, top_k and ignore_index may differ from value to value."""
        found = fitted(rows, config.options_of(sub_type))
        if sub_type == "auroc" and len({row[1] for row in found.values()}) == 1:
            label = int(next(iter(found.values()))[1])
            raise EvaluationError(
                f"auroc is not defined where all targets are of one class; all {len(found)} here are class {label}; "
                "take more data, or leave auroc out"
            )
        if rows and not found:
            raise EvaluationError(f"{sub_type}: ignore_index leaves out all {len(rows)} targets")
        return found

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
            rows[sample.id] = class_row(target, scores, sample.id)
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

        names = config.labels or _model_labels(model)
        if config.dataloader_func is None:
            _check_targets(samples, names)
        name = config.output
        judged: Judged | None = None
        for batch in batches(session, samples, config, context):
            outputs = session.forward(batch.inputs).outputs
            if judged is None:
                logits = config.post_processing_func is None and (name or main_name(outputs)) == "logits"
                everywhere, somewhere = (config.ignored(everywhere=all_values) for all_values in (True, False))
                judged = Judged(config.shared_options(), everywhere, somewhere, logits=logits)
            count = len(batch.ids)
            scores = post_processed(outputs, config, context, count=count, output=name)
            for key, position, target in spread(batch, len(scores)):
                if target is None:
                    raise EvaluationError(f"sample {key} has no target; its data config must name the label")
                wanted = np.asarray(_class_number(target, names, key)) if isinstance(target, str) else array(target)
                judged.add(key, np.asarray(scores[position]), wanted)
        return judged.rows() if judged is not None else {}


def _check_targets(samples: Sequence[Sample], names: Sequence[str] | None) -> None:
    """Raise EvaluationError for a target that is not there, or that no class goes by, before the model is asked."""
    without = [sample.id for sample in samples if sample.target is None]
    if without:
        raise EvaluationError(
            f"sample {without[0]} has no target ({len(without)} of {len(samples)} have none); its data config must "
            "name the label, and rows without one must be left out"
        )
    for sample in samples:
        if isinstance(sample.target, str):
            _class_number(sample.target, names, sample.id)


def _model_labels(model: Model) -> list[str] | None:
    """Return the class names of a model's config.json (id2label), or None."""
    if "config.json" not in model.files:
        return None
    data = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    names = data.get("id2label")
    if not isinstance(names, Mapping) or {str(key) for key in names} != {str(i) for i in range(len(names))}:
        return None
    return [str(names[str(i)]) for i in range(len(names))] or None


def _class_number(target: str, names: Sequence[str] | None, key: str) -> int:
    if names is None:
        raise EvaluationError(
            f"the target {target!r} of sample {key} is a name and the model has no class names; "
            "list them, in the model's order, as `labels` of the metric"
        )
    if target in names:
        return list(names).index(target)
    plain = [answers.normalised(name) for name in names]
    if answers.normalised(target) not in plain:
        raise EvaluationError(
            f"the target {target!r} of sample {key} is none of the classes {', '.join(names)}; list the names that the "
            "data has, in the model's order, as `labels` of the metric"
        )
    return plain.index(answers.normalised(target))
