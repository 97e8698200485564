"""The built-in metrics under the contract that every metric must keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from drupe.core.data import Sample
from drupe.core.runtimes import GenerateOptions, Result, Session
from drupe.core.testing import MetricContract


class Classifier(Session):
    """Two classes by the sign of x; reports device seconds."""

    capabilities = ("forward",)

    def forward(self, batch: Mapping[str, np.ndarray]) -> Result:
        x = batch["x"].astype(np.float32)
        return Result({"logits": np.concatenate([-x, x], axis=1)}, device_seconds=0.001)

    def input_shapes(self) -> Mapping[str, tuple[tuple[int | str, ...], str]]:
        return {"x": (("batch", 1), "float32")}


class Letters(Session):
    """Scores one character a token, -1 each; generates its prompt back."""

    capabilities = ("score", "generate")

    def tokenize(self, text: str, *, special_tokens: bool = True) -> np.ndarray:
        return np.array([ord(c) for c in text], dtype=np.int64)

    def score(self, input_ids: np.ndarray, labels: np.ndarray) -> Result:
        scores = np.where(labels == -100, np.nan, -1.0)
        scores[0] = np.nan
        return Result({"logprobs": scores})

    def generate(self, prompt: str | np.ndarray, options: GenerateOptions) -> Result:
        text = str(prompt)[: options.max_new_tokens]
        ids = self.tokenize(text)
        return Result({"text": text, "token_ids": ids, "token_seconds": np.arange(1, len(ids) + 1) * 0.001})


def classified(count: int = 8) -> Sequence[Sample]:
    return [
        Sample(f"s{i}", {"x": np.array([i - 2.5], dtype=np.float32)}, target=int(i > 1), content_key=f"k{i}")
        for i in range(count)
    ]


class TestAccuracy(MetricContract):
    name = "accuracy"

    @pytest.fixture
    def session(self) -> Session:
        return Classifier()

    @pytest.fixture
    def samples(self) -> Sequence[Sample]:
        return classified()

    @pytest.fixture
    def sub_type_names(self) -> Sequence[str]:
        return ("accuracy_score", "f1_score", "precision", "recall")


class TestPerplexity(MetricContract):
    name = "perplexity"

    @pytest.fixture
    def session(self) -> Session:
        return Letters()

    @pytest.fixture
    def samples(self) -> Sequence[Sample]:
        ids = np.arange(5, dtype=np.int64)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": np.ones(5, dtype=np.int64), "labels": ids}
        return [Sample(f"s{i}", inputs, content_key=f"k{i}") for i in range(3)]


class TestLatency(MetricContract):
    name = "latency"

    @pytest.fixture
    def session(self) -> Session:
        return Classifier()

    @pytest.fixture
    def samples(self) -> Sequence[Sample]:
        return classified()

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"warmup_num": 1, "repeat_test_num": 5}


class TestEmbeddingSimilarity(MetricContract):
    name = "embedding_similarity"

    @pytest.fixture
    def session(self) -> Session:
        return Classifier()

    @pytest.fixture
    def samples(self) -> Sequence[Sample]:
        reference = {"logits": np.array([0.5, 1.0])}
        return [replace(sample, extras={"reference": reference}) for sample in classified()]


class TestWordErrors(MetricContract):
    name = "wer"

    @pytest.fixture
    def session(self) -> Session:
        return Letters()

    @pytest.fixture
    def samples(self) -> Sequence[Sample]:
        return [Sample(f"s{i}", {"prompt": f"say {i}"}, target=f"say {i % 2}", content_key=f"k{i}") for i in range(4)]


class TestSizeOnDisk(MetricContract):
    name = "size_on_disk"
