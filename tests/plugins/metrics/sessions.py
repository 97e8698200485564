"""Small sessions whose answers a test can compute by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.metrics import Metric
from drupe.core.model import Model
from drupe.core.registry import Registry
from drupe.core.runtimes import GenerateOptions, Result, Session


class AnsweringSession(Session):
    """Generates what `answer(prompt)` says, one character a token, honouring max_new_tokens and stop."""

    capabilities = ("generate",)

    def __init__(self, answer: Callable[[str], str], *, device_seconds: float | None = None) -> None:
        self.answer = answer
        self.device_seconds = device_seconds
        self.prompts: list[Any] = []

    def generate(self, prompt: str | np.ndarray, options: GenerateOptions) -> Result:
        self.prompts.append(prompt)
        text = self.answer(str(prompt))[: options.max_new_tokens]
        for stop in options.stop:
            text = text.split(stop)[0]
        ids = np.array([ord(c) for c in text], dtype=np.int64)
        seconds = 0.001 * np.arange(1, len(ids) + 1)
        return Result({"text": text, "token_ids": ids, "token_seconds": seconds}, self.device_seconds)


class LetterSession(Session):
    """Scores text, one character a token, each with a fixed log-probability (-1 where none is given)."""

    capabilities = ("score",)

    def __init__(self, logprobs: Mapping[str, float]) -> None:
        self.logprobs = logprobs
        self.scored: list[tuple[np.ndarray, np.ndarray]] = []

    def tokenize(self, text: str, *, special_tokens: bool = True) -> np.ndarray:
        return np.array([ord(c) for c in text], dtype=np.int64)

    def score(self, input_ids: np.ndarray, labels: np.ndarray) -> Result:
        self.scored.append((input_ids, labels))
        out = np.array([self.logprobs.get(chr(max(x, 0)), -1.0) for x in labels], dtype=np.float64)
        out[labels == -100] = np.nan
        out[0] = np.nan
        return Result({"logprobs": out})


class ForwardSession(Session):
    """Runs a function on the batch."""

    capabilities = ("forward",)

    def __init__(
        self,
        function: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
        shapes: Mapping[str, tuple[tuple[int | str, ...], str]] | None = None,
        *,
        sleep: float = 0.0,
        device_seconds: float | None = None,
    ) -> None:
        self.function, self.shapes = function, shapes
        self.sleep, self.device_seconds = sleep, device_seconds
        self.batches: list[Mapping[str, np.ndarray]] = []

    def input_shapes(self) -> Mapping[str, tuple[tuple[int | str, ...], str]]:
        if self.shapes is None:
            raise NotImplementedError
        return self.shapes

    def forward(self, batch: Mapping[str, np.ndarray]) -> Result:
        self.batches.append(batch)
        if self.sleep:
            time.sleep(self.sleep)
        return Result(self.function(batch), self.device_seconds)


def metric(name: str) -> Metric:
    """Return a metric as the registry makes it."""
    made: Metric = Registry.discover().create("drupe_metrics", name)
    return made


def configured(made: Metric, **values: Any) -> Any:
    return made.Config.model_validate(values)


def context(folder: Path, **values: Any) -> JobContext:
    return JobContext(folder, folder, workflow_dir=folder, **values)


def model(folder: Path, **files: str) -> Model:
    """Return a model whose files hold the given text; a name's double underscore stands for a dot."""
    for name, text in (files or {"weights__bin": "x"}).items():
        (folder / name.replace("__", ".")).write_text(text)
    return Model.from_dir("hf", folder)


def questions(pairs: Sequence[tuple[str, str]]) -> list[Sample]:
    """Return samples with a prompt and the answer that belongs to it."""
    return [
        Sample(f"q{i}", {"prompt": prompt, "text": prompt + target}, target, str(i))
        for i, (prompt, target) in enumerate(pairs)
    ]
