"""The arithmetic of classification metrics, by the definitions that torchmetrics and scikit-learn share.

A row is (correct, target, predicted, number of classes) and, where there are scores, one for each class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np


__all__ = ["Average", "auroc", "f1", "precision", "recall"]

Average = Literal["micro", "macro", "weighted", "binary"]
"""micro: over all decisions; macro: the mean over classes that some row has as prediction or target; weighted: by how
often a class is the target; binary: of class 1."""


def precision(rows: np.ndarray, average: Average) -> float:
    """Return TP / (TP + FP); a class that was never predicted counts as 0."""
    hits, predicted, actual = _counts(rows)
    return _averaged(hits, predicted, predicted, actual, average)


def recall(rows: np.ndarray, average: Average) -> float:
    """Return TP / (TP + FN); a class that never was the target counts as 0."""
    hits, predicted, actual = _counts(rows)
    return _averaged(hits, actual, predicted, actual, average)


def f1(rows: np.ndarray, average: Average) -> float:
    """Return 2 TP / (2 TP + FP + FN)."""
    hits, predicted, actual = _counts(rows)
    return _averaged(2 * hits, predicted + actual, predicted, actual, average)


def auroc(rows: np.ndarray, average: Average) -> float:
    """Return the area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Scores are chances; a row of logits or log-likelihoods is made one by softmax, since rows are compared with each
    other. Binary: by the chance of class 1. Otherwise one class against the rest, macro or weighted over the
    classes that are the target of some but not all rows. NaN where no class is.
    """
    import numpy as np

    targets, scores = rows[:, 1].astype(int), _chances(rows[:, 4:])
    classes: Sequence[int] = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    areas, weights = [], []
    for label in classes:
        positive = targets == label
        if positive.any() and not positive.all():
            areas.append(_area(scores[:, label], positive))
            weights.append(float(positive.sum()))
    if not areas:
        return float("nan")
    return float(np.average(areas, weights=weights if average == "weighted" else None))


def _chances(scores: np.ndarray) -> np.ndarray:
    import numpy as np

    known = (scores >= 0).all(axis=1) & (np.abs(scores.sum(axis=1) - 1) < 1e-3)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.where(known[:, None], scores, powers / powers.sum(axis=1, keepdims=True))


def _counts(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return per class: hits, predictions, targets. An answer that is no class is -1."""
    import numpy as np

    targets, predictions = rows[:, 1].astype(int), rows[:, 2].astype(int)
    size = int(rows[:, 3].max())
    hits = np.bincount(targets[targets == predictions], minlength=size).astype(float)
    predicted = np.bincount(predictions[predictions >= 0], minlength=size).astype(float)
    actual = np.bincount(targets, minlength=size).astype(float)
    return hits, predicted, actual


def _averaged(
    numerator: np.ndarray, denominator: np.ndarray, predicted: np.ndarray, actual: np.ndarray, average: Average
) -> float:
    import numpy as np

    if average == "micro":
        total = denominator.sum()
        return float(numerator.sum() / total) if total else 0.0
    each = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
    if average == "binary":
        return float(each[1])
    if average == "weighted":
        return float(np.average(each, weights=actual))
    occurs = (predicted + actual) > 0
    return float(each[occurs].mean()) if occurs.any() else 0.0


def _area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the Mann-Whitney statistic, scaled to 0…1."""
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    n, m = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))
