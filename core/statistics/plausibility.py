"""Gains too good to be true: mostly a leak between training and evaluation, a broken baseline, or a broken metric."""

from __future__ import annotations

import math

from drupe.core.metrics import Measurement

__all__ = ["implausible"]

_LARGE_SHARE = 0.5
"""A compressed model that takes away half of its baseline's error has hardly been compressed only."""


def implausible(
    candidate: Measurement, baseline: Measurement | None, *, trained: bool, timed: bool = False
) -> str | None:
    """Return why a measurement is hard to believe, for a person; None where it is not.

    trained: a pass of the chain learns from labelled data, so that gains over the baseline are what is hoped for.
    timed: the metric is a time; only impossible ones are told then.
    """
    value = candidate.value
    if not math.isfinite(value):
        return f"{candidate.metric} is {value}"
    if candidate.proportion and not 0 <= value <= 1:
        return f"{candidate.metric} is a proportion and reads {value:.4g}"
    if timed:
        return f"{candidate.metric} is {value:.4g} {candidate.unit}: no time passes in none" if value <= 0 else None
    if trained or baseline is None:
        return None
    return _gain(candidate, baseline)


def _gain(candidate: Measurement, baseline: Measurement) -> str | None:
    """A chain without training can repair little: a gain beyond noise that removes half of the error is told."""
    higher = candidate.direction == "higher"
    gain = candidate.value - baseline.value if higher else baseline.value - candidate.value
    if gain <= 0:
        return None
    if candidate.proportion:
        error = 1 - baseline.value if higher else baseline.value
        if not _beyond_noise(candidate, baseline):
            return None
    else:
        error = abs(baseline.value)
    if error <= 0 or gain < _LARGE_SHARE * error:
        return None
    return (
        f"{candidate.metric} {candidate.value:.4g} is far better than the baseline's {baseline.value:.4g}, though "
        "nothing in this chain learns; check the baseline, the metric, and that both saw the same data"
    )


def _beyond_noise(candidate: Measurement, baseline: Measurement) -> bool:
    ids = candidate.rows.keys() & baseline.rows.keys()
    gained = sum(candidate.rows[i][0] != baseline.rows[i][0] for i in ids)
    if not ids:
        spread = math.sqrt(baseline.value * (1 - baseline.value) / max(1, baseline.n))
        return abs(candidate.value - baseline.value) > 3 * spread
    return abs(candidate.value - baseline.value) * len(ids) > 3 * math.sqrt(gained)
