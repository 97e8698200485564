"""Asks a model for answers: generated, or chosen among labels by log-likelihood."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.core.runtimes import GenerateOptions, Session

if TYPE_CHECKING:
    import numpy as np


__all__ = ["choice_scores", "generated_answers", "labels_of", "normalised", "prompt_of", "stops_of"]


def prompt_of(sample: Sample) -> str:
    """Return the sample's prompt. Raises EvaluationError where it has none."""
    prompt = sample.inputs.get("prompt")
    if not isinstance(prompt, str):
        raise EvaluationError(
            f"sample {sample.id} has no prompt; give its data config a prompt_template and an answer_template, "
            "or name the columns that hold prompt and answer"
        )
    return prompt


def normalised(answer: str, *, ignore_case: bool = True, ignore_punctuation: bool = False) -> str:
    """Return an answer as it is compared: trimmed, white space collapsed, case and punctuation dropped if asked."""
    text = answer.casefold() if ignore_case else answer
    if ignore_punctuation:
        text = text.translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", text).strip()


def labels_of(samples: Sequence[Sample]) -> list[str]:
    """Return the distinct targets of the samples as text, sorted. Raises EvaluationError where one is missing."""
    for sample in samples:
        if sample.target is None:
            raise EvaluationError(f"sample {sample.id} has no target; its data config must name the answer or label")
    return sorted({str(sample.target).strip() for sample in samples})


def stops_of(samples: Sequence[Sample]) -> tuple[str, ...]:
    """Return where an answer ends by default: at a line's end, unless the expected answers span lines."""
    spans = any("\n" in str(sample.target).strip() or str(sample.target).startswith("\n") for sample in samples)
    return () if spans else ("\n",)


def generated_answers(
    session: Session, samples: Sequence[Sample], options: GenerateOptions, context: JobContext
) -> Mapping[str, str]:
    """Return sample id → the text that the model generates after the sample's prompt."""
    answers = {}
    for index, sample in enumerate(samples):
        context.progress(index, len(samples), "generating answers")
        answers[sample.id] = str(session.generate(prompt_of(sample), options).outputs["text"])
    return answers


def choice_scores(session: Session, sample: Sample, labels: Sequence[str], *, length_normalised: bool) -> np.ndarray:
    """Return the log-likelihood of each label after the sample's prompt; length_normalised: per token.

    All labels are scored from the same position: the first at which their tokens may differ from the prompt's. That
    matters where a label's first letters merge with the prompt's end into one token.
    """
    import numpy as np

    prompt = prompt_of(sample)
    gap = _gap(sample, prompt)
    start = session.tokenize(prompt)
    whole = [session.tokenize(prompt + gap + label.lstrip() if gap else prompt + label) for label in labels]
    shared = min(_common_prefix(start, ids) for ids in whole)
    if shared == 0:
        raise EvaluationError(f"sample {sample.id}: the prompt is empty, so no label can be scored after it")
    scores = []
    for label, ids in zip(labels, whole, strict=True):
        if len(ids) <= shared:
            raise EvaluationError(f"the label {label!r} adds no token to the prompt of sample {sample.id}")
        targets = np.where(np.arange(len(ids)) < shared, -100, ids)
        logprobs = np.asarray(session.score(ids, targets).outputs["logprobs"])[shared:]
        scores.append(float(logprobs.mean() if length_normalised else logprobs.sum()))
    return np.asarray(scores)


def _gap(sample: Sample, prompt: str) -> str:
    """Return the white space between prompt and answer as the training text has it."""
    text = sample.inputs.get("text")
    if isinstance(text, str) and text.startswith(prompt) and len(text) > len(prompt):
        rest = text[len(prompt) :]
        return rest[: len(rest) - len(rest.lstrip())]
    target = str(sample.target)
    return target[: len(target) - len(target.lstrip())]


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    import numpy as np

    size = min(len(a), len(b))
    differs = np.nonzero(np.asarray(a[:size]) != np.asarray(b[:size]))[0]
    return int(differs[0]) if len(differs) else size
