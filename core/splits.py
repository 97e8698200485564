"""Splits data by content: the same content always falls on the same side, whatever the order of the rows.

A split reads {"train": 120, "selection": 0.25, "certification": "rest", "seed": 7}: counts, shares (below 1) or "rest"
of the unique contents. Each content gets its place by a hash of seed and content, so rows that are added or reordered
don't reshuffle the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from drupe.core.errors import ConfigError

__all__ = ["EVALUATION", "PARTS", "assign", "check_split", "empty_parts"]

PARTS = ("train", "selection", "certification")
"""The parts of a split, in the order in which they take their contents."""
EVALUATION = "evaluation"
"""Names selection and certification together: everything that does not train."""


def check_split(split: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the faults of a split as (key, found, expected). Empty: it is well-formed."""
    faults = []
    rests = [name for name in PARTS if split.get(name) == "rest"]
    shares = 0.0
    for name, size in split.items():
        if name == "seed":
            if not isinstance(size, int) or isinstance(size, bool):
                faults.append((name, repr(size), "a whole number"))
        elif name not in PARTS:
            faults.append((name, f"unknown part {name!r}", f"{', '.join(PARTS)} or seed"))
        elif not _is_size(size):
            faults.append((name, repr(size), 'a count, a share between 0 and 1, or "rest"'))
        elif isinstance(size, float):
            shares += size
    if len(rests) > 1:
        faults.append((rests[1], '"rest"', f'one "rest" only; {rests[0]} has it'))
    if shares > 1 + 1e-9:
        faults.append(("", f"shares that add up to {shares:g}", "at most 1"))
    return faults


def assign(content_keys: Iterable[str], split: Mapping[str, Any], part: str | None) -> list[int]:
    """Return the positions that belong to a part, in order.

    part: one of PARTS, EVALUATION, or None for everything; without a split every part is everything. In `train` a
    repeated content stands as often as in the data; elsewhere only its first position counts, so that no item is
    judged twice. Where no part has "rest", one that is not named takes it: train, else certification, else selection.
    Raises ConfigError when the split asks for more contents than there are.
    """
    keys = list(content_keys)
    if not split or part is None:
        return list(range(len(keys)))
    if part not in (*PARTS, EVALUATION):
        raise ConfigError(f"unknown part {part!r} of a split; expected {', '.join(PARTS)} or {EVALUATION}")
    faults = check_split(split)
    if faults:
        raise ConfigError("; ".join(f"split.{key}: {found}; expected {wanted}" for key, found, wanted in faults))
    places = _places(keys, split)
    wanted = ("selection", "certification") if part == EVALUATION else (part,)
    chosen = set().union(*(places[name] for name in wanted))
    positions = [index for index, key in enumerate(keys) if key in chosen]
    return positions if part == "train" else _first_of_each(positions, keys)


def empty_parts(split: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the parts of a well-formed split that get nothing, whatever the data."""
    named = _with_rest(split)
    whole = sum(size for size in named.values() if isinstance(size, float)) > 1 - 1e-9
    return tuple(name for name in PARTS if named.get(name, 0) == 0 or (named[name] == "rest" and whole))


def _with_rest(split: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of the parts, one that is not named having the rest where no other has it."""
    named = {name: split[name] for name in PARTS if name in split}
    if "rest" not in named.values():
        unnamed = [name for name in ("train", "certification", "selection") if name not in named]
        named |= dict.fromkeys(unnamed[:1], "rest")
    return named


def _is_size(size: Any) -> bool:
    if isinstance(size, bool):
        return False
    if isinstance(size, int):
        return size >= 0
    return (isinstance(size, float) and 0 < size <= 1) or size == "rest"


def _places(keys: Sequence[str], split: Mapping[str, Any]) -> dict[str, set[str]]:
    seed = split.get("seed", 0)
    order = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    named = _with_rest(split)
    sizes: dict[str, int] = {}
    share = 0.0
    for name, size in named.items():
        if isinstance(size, float):
            # The bounds are rounded, not the sizes, so that shares which make a whole use every content.
            sizes[name] = round((share + size) * len(order)) - round(share * len(order))
            share += size
        elif size != "rest":
            sizes[name] = size
    asked = sum(sizes.values())
    if asked > len(order):
        counts = " + ".join(f"{name} {size}" for name, size in sizes.items())
        raise ConfigError(
            f"the split asks for {asked} contents ({counts}); the data has {len(order)} different ones among "
            f"{len(keys)} rows; lower the counts, or give shares"
        )
    places: dict[str, set[str]] = {name: set() for name in PARTS}
    start = 0
    for name in PARTS:
        if name in sizes:
            places[name] = set(order[start : start + sizes[name]])
            start += sizes[name]
    for name, size in named.items():
        if size == "rest":
            places[name] = set(order[start:])
    return places


def _first_of_each(positions: Sequence[int], keys: Sequence[str]) -> list[int]:
    seen: set[str] = set()
    first = []
    for index in positions:
        if keys[index] not in seen:
            seen.add(keys[index])
            first.append(index)
    return first
