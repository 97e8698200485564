"""Samples that training, calibration and evaluation data share: what a model has seen can't measure it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Overlap", "find_overlaps"]


@dataclass(frozen=True)
class Overlap:
    """Contents that two sets of data share. share: of the second set's samples. examples: a few of the shared keys."""

    first: str
    second: str
    count: int
    share: float
    examples: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One line for a person."""
        return (
            f"{self.count} of the samples of {self.second} ({self.share:.1%}) are in {self.first} as well; what is "
            "measured on them flatters"
        )


def find_overlaps(
    keys: Mapping[str, Sequence[str]], roles: Mapping[str, str] | None = None, *, examples: int = 3
) -> list[Overlap]:
    """Return the pairs of data sets that share contents, the largest share first.

    keys: name → the content keys of its samples (the normalised content, so that case and space make no difference).
    roles: name → "train", "calibration", "selection" or "certification"; the set that teaches is named first, and two
    that both teach are passed over. Without roles every pair is looked at, in the order given.
    """
    sets = {name: set(values) for name, values in keys.items()}
    found = []
    for one, other in itertools.combinations(keys, 2):
        first, second = _ordered(one, other, roles or {})
        if roles and _teaches(first, roles) and _teaches(second, roles):
            continue
        shared = sets[first] & sets[second]
        if shared:
            count = _occurrences(keys[second], shared)
            found.append(Overlap(first, second, count, count / len(keys[second]), tuple(sorted(shared)[:examples])))
    return sorted(found, key=lambda overlap: -overlap.share)


def _ordered(one: str, other: str, roles: Mapping[str, str]) -> tuple[str, str]:
    order = ("train", "calibration", "selection", "certification")
    ranks = [order.index(roles[name]) if roles.get(name) in order else len(order) for name in (one, other)]
    return (one, other) if ranks[0] <= ranks[1] else (other, one)


def _teaches(name: str, roles: Mapping[str, str]) -> bool:
    return roles.get(name) in ("train", "calibration")


def _occurrences(values: Sequence[str], shared: Collection[str]) -> int:
    return sum(value in shared for value in values)
