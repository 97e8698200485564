"""Layouts of fixed size: what a captured graph can be replayed with.

A layout is filled up to one of a few sizes: tokens that nobody sees, in rows of their own at the end, and answers that
count nothing (target -100). The loss and its gradients stay what they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drupe.plugins.tuning.batches import Layout
from drupe.plugins.tuning.rows import IGNORED

__all__ = ["Size", "filled", "size_for"]


@dataclass(frozen=True)
class Size:
    """batch, width: of input_ids. rows: how many rows fit (packed). answers: how many. longest: no row is longer."""

    batch: int
    width: int
    rows: int
    answers: int
    longest: int


def size_for(layout: Layout, budget: int, longest: int) -> Size:
    """Return the size that a layout is filled up to: few sizes serve a whole run.

    budget: the most tokens a layout has. Widths go in eighths of it, rows in eights, answers in steps of 64.
    """
    batch, width = layout.input_ids.shape
    answers = _up(layout.predict.size, 64)
    if not layout.packed:
        return Size(batch, width, batch, min(answers, _up(batch * width, 64)), width)
    step = max(32, _up(budget // 8, 32))
    wide = _up(width, step)
    longest = _up(longest, 32)
    # What is filled up makes rows of its own, none longer than the longest.
    rows = _up(len(layout.rows) + -(-(wide - width) // longest), 8)
    return Size(1, wide, rows, min(answers, _up(wide, 64)), longest)


def filled(layout: Layout, size: Size, pad_id: int) -> Layout:
    """Return the layout filled up to `size`; packed ones get `size.rows` rows, the last of them perhaps empty."""
    extra = size.answers - layout.predict.size
    predict = np.concatenate([layout.predict, np.zeros(extra, dtype=np.int64)])
    targets = np.concatenate([layout.targets, np.full(extra, IGNORED, dtype=np.int64)])
    if not layout.packed:
        return Layout(
            layout.input_ids, layout.position_ids, layout.rows, predict, targets, packed=False, ranks=layout.ranks
        )
    start = layout.input_ids.shape[1]
    blank = size.width - start
    rows = list(layout.rows)
    positions: list[Sequence[int]] = [layout.position_ids[0].tolist()]
    while start < size.width:
        length = min(size.longest, size.width - start)
        rows.append((start, length))
        positions.append(range(length))
        start += length
    rows += [(size.width, 0)] * (size.rows - len(rows))
    return Layout(
        np.concatenate([layout.input_ids, np.full((1, blank), pad_id, dtype=np.int64)], axis=1),
        np.concatenate([np.asarray(part, dtype=np.int64) for part in positions])[None],
        tuple(rows),
        predict,
        targets,
        packed=True,
        ranks=layout.ranks,
    )


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
