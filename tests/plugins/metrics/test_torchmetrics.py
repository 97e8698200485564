"""The values that Olive's files name are those of torchmetrics, with its defaults and options."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.data import Sample
from tests.plugins.metrics.sessions import ForwardSession, configured, context, metric, model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torchmetrics

CLASSES = {
    "accuracy_score": "Accuracy",
    "f1_score": "F1Score",
    "precision": "Precision",
    "recall": "Recall",
    "auroc": "AUROC",
}


def scores(classes: int, count: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Logits that tend to be right, and targets of unequal frequency; the last of many classes never occurs."""
    random = np.random.default_rng(classes)
    shares = np.array([2.0 ** -(c + 1) if c < max(classes - 1, 2) else 0.0 for c in range(classes)])
    targets = random.choice(classes, count, p=shares / shares.sum())
    logits = random.normal(0, 1, (count, classes)) + 1.2 * np.eye(classes)[targets]
    return logits, targets


def ours(sub_type: str, logits: np.ndarray, targets: np.ndarray, options: dict[str, Any], folder: Path) -> float:
    made = metric("accuracy")
    config = configured(made, method="classify", batch_size=16, metric_config={sub_type: options})
    samples = [Sample(str(i), {"x": x}, int(t)) for i, (x, t) in enumerate(zip(logits, targets, strict=True))]
    session = ForwardSession(lambda batch: {"logits": batch["x"]})
    rows = made.measure(model(folder), session, samples, config, context(folder))
    return made.aggregate(list(made.rows_of(rows, sub_type, config).values()), sub_type, config)


def theirs(sub_type: str, logits: np.ndarray, targets: np.ndarray, options: dict[str, Any]) -> float:
    import torch

    judge = getattr(torchmetrics, CLASSES[sub_type])(**options)
    chances = torch.softmax(torch.from_numpy(logits), -1)
    given = chances[:, 1] if options["task"] == "binary" else chances
    return float(judge(given, torch.from_numpy(targets)))


@pytest.mark.parametrize("sub_type", list(CLASSES))
@pytest.mark.parametrize("average", [None, "micro", "macro", "weighted"])
def test_many_classes(sub_type: str, average: str | None, tmp_path: Path) -> None:
    if sub_type == "auroc" and average == "micro":
        pytest.skip("torchmetrics has no micro-averaged area")
    logits, targets = scores(5)
    options: dict[str, Any] = {"task": "multiclass", "num_classes": 5}
    options |= {} if average is None else {"average": average}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs(sub_type, logits, targets, options)
    if sub_type == "auroc" and average != "weighted":
        # A class that never occurs has no area; torchmetrics counts it as 0 in the mean, which says nothing of a model.
        expected = expected * 5 / 4
    assert ours(sub_type, logits, targets, options, tmp_path) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("sub_type", list(CLASSES))
def test_two_classes(sub_type: str, tmp_path: Path) -> None:
    logits, targets = scores(2)
    options = {"task": "binary"}
    expected = theirs(sub_type, logits, targets, options)
    assert ours(sub_type, logits, targets, options, tmp_path) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("options", [{"top_k": 2, "average": "micro"}, {"ignore_index": 0, "average": "micro"}])
def test_options_of_accuracy(options: dict[str, Any], tmp_path: Path) -> None:
    logits, targets = scores(5)
    full = {"task": "multiclass", "num_classes": 5, **options}
    expected = theirs("accuracy_score", logits, targets, full)
    assert ours("accuracy_score", logits, targets, full, tmp_path) == pytest.approx(expected, abs=1e-6)
