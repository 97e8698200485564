"""How far two arrays are apart: sums that add up over samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Differences", "differences", "unpadded"]


@dataclass(frozen=True)
class Differences:
    """largest: the largest absolute error. total: the sum of errors over `count` numbers. dot, ours, theirs: the
    product of both and their squared norms. flips: at how many of `decisions` positions the argmax over the last axis
    differs. tenths, hundredths: how many errors exceed 0.1 and 0.01.
    """

    largest: float = 0.0
    total: float = 0.0
    count: float = 0.0
    dot: float = 0.0
    ours: float = 0.0
    theirs: float = 0.0
    flips: float = 0.0
    decisions: float = 0.0
    tenths: int = 0
    hundredths: int = 0

    def __add__(self, other: Differences) -> Differences:
        return Differences(
            max(self.largest, other.largest),
            self.total + other.total,
            self.count + other.count,
            self.dot + other.dot,
            self.ours + other.ours,
            self.theirs + other.theirs,
            self.flips + other.flips,
            self.decisions + other.decisions,
            self.tenths + other.tenths,
            self.hundredths + other.hundredths,
        )

    @property
    def mean(self) -> float:
        """The mean absolute error."""
        return self.total / self.count if self.count else 0.0

    @property
    def cosine(self) -> float:
        """The cosine of the two, 0 where one is nothing but zeros; none (NaN) where one has what is no number."""
        norm = math.sqrt(self.ours * self.theirs)
        return self.dot / norm if norm != 0 else 0.0

    @property
    def flip_share(self) -> float:
        """The share of positions at which the argmax differs."""
        return self.flips / self.decisions if self.decisions else 0.0


def differences(ours: np.ndarray, theirs: np.ndarray) -> Differences:
    """Return how far two arrays of one shape, of one axis or more, are apart."""
    import numpy as np

    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.abs(a - b)
    # No number against a number is as far apart as can be; none against none, or one infinity against itself, is equal.
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    error = np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))
    flips = a.argmax(-1) != b.argmax(-1) if a.size else np.zeros(0, dtype=bool)
    return Differences(
        float(error.max(initial=0.0)),
        float(error.sum()),
        float(error.size),
        float((a * b).sum()),
        float((a * a).sum()),
        float((b * b).sum()),
        float(flips.sum()),
        float(flips.size),
        int((error > 0.1).sum()),
        int((error > 0.01).sum()),
    )


def unpadded(output: np.ndarray, position: int, mask: np.ndarray | None) -> np.ndarray:
    """Return one sample of an output, less what the attention mask leaves out where it has the mask's length."""
    import numpy as np

    one = np.atleast_1d(np.asarray(output[position], dtype=np.float64))
    if mask is not None and one.ndim >= 2 and one.shape[0] == mask.shape[1]:
        kept: np.ndarray = one[mask[position].astype(bool)]
        return kept
    return one
