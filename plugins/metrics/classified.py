"""What a model's outputs say of classes: a row for each sample, or for each of its positions (tokens, pixels).

A row is (correct, target, predicted, number of classes) and, where there are scores, one for each class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from drupe.core.errors import EvaluationError
from drupe.core.metrics import Rows

if TYPE_CHECKING:
    import numpy as np


__all__ = ["IGNORED", "Judged", "class_row", "fitted"]

IGNORED = -100
"""The label of positions that do not count, as training has it."""

Options = Mapping[str, Any]


class Judged:
    """Gathers outputs with their targets, and makes rows of them once all are there.

    ignored: targets that no value counts. spared: targets that some value does not count; where they are no class, none
    can. logits: the outputs are known to be logits. Else, one number a sample is the chance of class 1 where all of
    them lie between 0 and 1, the number of a class where all are whole and one is above 1, and a logit otherwise.
    """

    def __init__(self, options: Options, ignored: Sequence[int], spared: Sequence[int], *, logits: bool) -> None:
        self._options = options
        self._ignored = ignored
        self._spared = spared
        self._logits = logits
        self._rows: dict[str, tuple[float, ...]] = {}
        self._single: dict[str, tuple[float, int]] = {}

    def add(self, key: str, output: np.ndarray, target: np.ndarray) -> None:
        """Take a sample's output and its target: a class, or a class for each position. Raises EvaluationError."""
        import numpy as np

        if target.dtype.kind not in "biuf" or not np.array_equal(target, np.trunc(target)):
            raise EvaluationError(
                f"the target {target.tolist()} of sample {key} is no class; expected whole numbers or names"
            )
        if output.ndim <= 1:
            target = np.squeeze(target) if target.size == 1 else target
        if target.ndim == 0:
            if int(target) not in self._ignored:
                self._take(key, _one(output, key), int(target))
            return
        flat = _by_position(output, target, key)
        for position, label in enumerate(target.reshape(-1)):
            if int(label) != IGNORED and int(label) not in self._ignored:
                self._take(f"{key}#{position}", np.asarray(flat[position]), int(label))

    def rows(self) -> Rows:
        """Return the rows of all that was taken."""
        import numpy as np

        values = np.asarray([value for value, _ in self._single.values()], dtype=float)
        between = bool(((values >= 0.0) & (values <= 1.0)).all())
        whole = bool(np.array_equal(values, np.trunc(values))) and bool(values.size and values.max() > 1)
        for key, (value, target) in self._single.items():
            if not self._logits and whole:
                self._rows[key] = _number_row(int(value), target, self._options)
                continue
            if target not in (0, 1):
                raise EvaluationError(
                    f"the target of sample {key} is {target}, but the model gives one number, which tells class 0 from "
                    "class 1; expected targets of 0 and 1; for a regression, judge by a custom metric"
                )
            chance = value if between and not self._logits else 1.0 / (1.0 + float(np.exp(-value)))
            self._rows[key] = _chance_row(chance, target)
        return self._rows

    def _take(self, key: str, output: np.ndarray, target: int) -> None:
        import numpy as np

        if target in self._spared and not 0 <= target < (len(output) if output.ndim else 2):
            return
        if output.ndim:
            known = self._options.get("num_classes")
            if known is not None and known != len(output):
                raise EvaluationError(f"num_classes is {known}, but the model gives scores for {len(output)} classes")
            self._rows[key] = class_row(target, output, key)
        elif np.issubdtype(output.dtype, np.floating) and self._options.get("num_classes") in (None, 1, 2):
            self._single[key] = (float(output), target)
        else:
            self._rows[key] = _number_row(int(output), target, self._options)


def class_row(target: int, scores: np.ndarray, key: str) -> tuple[float, ...]:
    """Return the row of a sample with a score for each class. Raises EvaluationError for a target that is none."""
    import numpy as np

    if not 0 <= target < len(scores):
        hint = "; -1 often says that a data set has no labels" if target == -1 else ""
        raise EvaluationError(
            f"the target of sample {key} is class {target}, but the model gives scores for {len(scores)} classes{hint}"
        )
    predicted = int(np.argsort(-scores, kind="stable")[0])
    return (float(predicted == target), float(target), float(predicted), float(len(scores)), *map(float, scores))


def fitted(rows: Rows, options: Options) -> Rows:
    """Return rows as the options of a value want them: threshold, top_k, ignore_index. Raises EvaluationError."""
    import numpy as np

    threshold, top_k = options.get("threshold"), options.get("top_k") or 1
    threshold = 0.5 if threshold is None else threshold
    ignored = options.get("ignore_index")
    if ignored is not None:
        rows = {key: row for key, row in rows.items() if row[1] != ignored}
    if threshold == 0.5 and top_k == 1:
        return rows
    found = {}
    for key, row in rows.items():
        target, classes, scores = row[1], row[3], np.asarray(row[4:])
        if not scores.size:
            raise EvaluationError("threshold and top_k need scores, and the model gives classes; leave them out")
        predicted = row[2]
        if threshold != 0.5:
            chances = scores if ((scores >= 0) & (scores <= 1)).all() and abs(scores.sum() - 1) < 1e-3 else None
            if len(scores) != 2 or chances is None:
                raise EvaluationError(
                    f"threshold {threshold:g} is for a model that gives the chance of class 1; this one gives "
                    f"{len(scores)} scores, of which the highest decides; leave threshold out"
                )
            predicted = float(chances[1] > threshold)
        if top_k > 1 and target in np.argsort(-scores, kind="stable")[:top_k]:
            predicted = target
        found[key] = (float(predicted == target), target, predicted, classes, *row[4:])
    return found


def _one(output: np.ndarray, key: str) -> np.ndarray:
    """Return the scores, or the one number, of a sample."""
    import numpy as np

    found = np.squeeze(output)
    if found.ndim > 1:
        raise EvaluationError(
            f"the output of sample {key} has shape {output.shape}, and its target is one class; expected a score per "
            "class; if it has scores per token, the target needs a class for each"
        )
    return found


def _by_position(output: np.ndarray, target: np.ndarray, key: str) -> np.ndarray:
    """Return the output with an entry for each of the target's positions: a number, or a score per class.

    Scores of a row of positions (tokens) stand behind them, (length, classes); those of a plane (pixels) before,
    (classes, height, width), or behind where only that fits.
    """
    import numpy as np

    shape = target.shape
    scored = output.ndim > 1 or (output.ndim == 1 and output.dtype.kind in "iu")
    if target.ndim == 1 and scored and output.shape[0] > target.size:
        # What a shorter sample was padded with in its batch; of scores of classes nothing is padding.
        output = output[: target.size]
    if output.shape == shape:
        return output.reshape(-1)
    behind, before = output.shape[:-1] == shape, output.shape[1:] == shape
    if behind and not (before and target.ndim > 1):
        return output.reshape(target.size, -1)
    if before:
        return np.moveaxis(output, 0, -1).reshape(target.size, -1)
    if output.size == target.size:
        return output.reshape(-1)
    raise EvaluationError(
        f"the target of sample {key} has shape {shape} and the output {output.shape}; expected the same positions, "
        "with a score per class for each"
    )


def _chance_row(chance: float, target: int) -> tuple[float, ...]:
    predicted = int(chance > 0.5)
    return (float(predicted == target), float(target), float(predicted), 2.0, 1.0 - chance, chance)


def _number_row(predicted: int, target: int, options: Options) -> tuple[float, ...]:
    size = float(options.get("num_classes") or max(predicted, target, 1) + 1)
    return (float(predicted == target), float(target), float(predicted), size)
