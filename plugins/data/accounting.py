"""Counts what becomes of rows: how many, how many tokens, what was dropped or cut, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from drupe.core.data import Sample
from drupe.core.errors import ConfigError

if TYPE_CHECKING:
    pass


__all__ = ["Accounting"]


class Accounting:
    """The account of one load; `report` gives it as JSON data."""

    def __init__(self, rows: int, origin: str) -> None:
        self.rows = rows
        self.origin = origin
        self.tokens = 0
        self.dropped: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.notes: dict[str, Any] = {}

    def drop(self, why: str, count: int = 1) -> None:
        """Count items that were left out."""
        if count:
            self.dropped[why] += count

    def cut_tokens(self, why: str, count: int) -> None:
        """Count tokens that were left out of items that stay."""
        if count > 0:
            self.cut[why] += count

    def report(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return the account: rows → tokens → blocks → dropped."""
        import numpy as np

        lengths = [len(ids) for s in samples if isinstance(ids := s.inputs.get("input_ids"), np.ndarray) and ids.ndim]
        labels = [ids for s in samples if isinstance(ids := s.inputs.get("labels"), np.ndarray)]
        found: dict[str, Any] = {
            "origin": self.origin,
            "rows": self.rows,
            "tokens": self.tokens,
            "blocks": len(samples),
            "dropped": dict(self.dropped),
        }
        if self.cut:
            found["cut_tokens"] = dict(self.cut)
        if lengths:
            found["tokens_used"] = int(sum(lengths))
            found["longest"] = int(max(lengths))
        if labels:
            found["label_tokens"] = int(sum(int((part != -100).sum()) for part in labels))
        return found | self.notes

    def check(self, samples: Sequence[Sample]) -> None:
        """Raise ConfigError when nothing is left, saying what happened to the rows."""
        if samples:
            return
        if self.rows == 0:
            raise ConfigError(f"{self.origin or 'the data'} has no rows")
        reasons = "; ".join(f"{count} {why}" for why, count in self.dropped.items()) or "none gave any text"
        raise ConfigError(f"none of the {self.rows} rows of {self.origin or 'the data'} gives a sample: {reasons}")
