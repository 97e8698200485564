"""Which rows make a step, and how a step's rows are laid out for the device.

A step is what the training arguments say: micro-batches of `per_device_train_batch_size` rows, as many as
`gradient_accumulation_steps`. Its loss is the mean over its answer tokens, so how the rows are then laid out (packed
end to end, or padded in groups of like length) changes speed and memory, not the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from drupe.plugins.tuning.rows import Row

__all__ = ["Layout", "Order", "layouts", "pack", "padded"]


@dataclass(frozen=True)
class Order:
    """The rows of every step of a run: a pure function of its fields, so that a resumed run goes on alike."""

    lengths: tuple[int, ...]
    batch_size: int
    accumulation: int
    seed: int
    sampling: str = "random"
    drop_last: bool = False

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches of an epoch."""
        rows = len(self.lengths)
        return max(1, rows // self.batch_size if self.drop_last else math.ceil(rows / self.batch_size))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; its last step may have fewer micro-batches."""
        return math.ceil(self.batches_per_epoch / self.accumulation)

    def epoch(self, number: int) -> list[list[int]]:
        """Return the row numbers of each step of an epoch."""
        rows = len(self.lengths)
        rng = np.random.default_rng((self.seed, number))
        if self.sampling == "sequential":
            order = np.arange(rows)
        else:
            order = rng.permutation(rows)
            if self.sampling == "group_by_length":
                order = self._by_length(order, rng)
        if self.drop_last and rows >= self.batch_size:
            order = order[: self.batches_per_epoch * self.batch_size]
        step = self.batch_size * self.accumulation
        return [order[start : start + step].tolist() for start in range(0, len(order), step)]

    def steps(self, first: int = 0) -> Iterator[list[int]]:
        """Yield the row numbers of step `first`, `first` + 1, … without end."""
        epoch, offset = divmod(first, self.steps_per_epoch)
        while True:
            yield from self.epoch(epoch)[offset:]
            epoch, offset = epoch + 1, 0

    def _by_length(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sort within pools of fifty steps, then shuffle the steps: like lengths meet, yet the order stays random."""
        step = self.batch_size * self.accumulation
        lengths = np.asarray(self.lengths)
        groups: list[np.ndarray] = []
        for start in range(0, len(order), step * 50):
            pool = order[start : start + step * 50]
            pool = pool[np.argsort(-lengths[pool], kind="stable")]
            groups += [pool[i : i + step] for i in range(0, len(pool), step)]
        short = [group for group in groups if len(group) < step]
        full = [group for group in groups if len(group) == step]
        rng.shuffle(full)
        return np.concatenate([*full, *short])


@dataclass(frozen=True)
class Layout:
    """Rows laid out for one forward pass.

    input_ids, position_ids: (batch, width). rows: (first token, length) of each row within the flattened tokens.
    predict: flat positions at which a prediction is judged; targets: what should follow there. ranks: of each row, for
    elastic adapters; 0 stands for all.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    rows: tuple[tuple[int, int], ...]
    predict: np.ndarray
    targets: np.ndarray
    packed: bool
    ranks: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that belong to rows, padding not counted."""
        return sum(length for _, length in self.rows)

    def token_ranks(self) -> np.ndarray:
        """Return the rank of each token of the flattened input; 0 for all ranks, as padding has."""
        result = np.zeros(self.input_ids.size, dtype=np.int64)
        for (start, length), rank in zip(self.rows, self.ranks, strict=False):
            result[start : start + length] = rank
        return result


def layouts(rows: Sequence[Row], budget: int, *, packing: bool, pad_id: int) -> list[Layout]:
    """Lay out the rows of a step in forward passes of at most `budget` tokens each (or one row, if that is longer)."""
    if packing:
        return [pack(group) for group in _bins(rows, budget)]
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -row.length):
        # Sorted by falling length: the first row of a group is its width.
        if groups and groups[-1][0].length * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [padded(group, pad_id) for group in groups]


def _bins(rows: Sequence[Row], budget: int) -> list[list[Row]]:
    """First fit, longest first: nearly the fewest bins, and the same ones each time."""
    bins: list[tuple[int, list[Row]]] = []
    for row in sorted(rows, key=lambda row: -row.length):
        for number, (used, members) in enumerate(bins):
            if used + row.length <= budget:
                members.append(row)
                bins[number] = (used + row.length, members)
                break
        else:
            bins.append((row.length, [row]))
    return [members for _, members in bins]


def pack(rows: Sequence[Row]) -> Layout:
    """Lay rows end to end in one sequence; positions start anew with each row."""
    starts = np.cumsum([0, *(row.length for row in rows)])
    return Layout(
        input_ids=np.concatenate([row.ids for row in rows])[None],
        position_ids=np.concatenate([np.arange(row.length) for row in rows])[None],
        rows=tuple((int(start), row.length) for start, row in zip(starts, rows, strict=False)),
        predict=np.concatenate([start + row.positions for start, row in zip(starts, rows, strict=False)]),
        targets=np.concatenate([row.targets for row in rows]),
        packed=True,
        ranks=tuple(row.rank for row in rows),
    )


def padded(rows: Sequence[Row], pad_id: int) -> Layout:
    """Lay rows side by side, padded on the right to the longest; causal attention never looks at what follows."""
    width = max(row.length for row in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : row.length] = row.ids
    return Layout(
        input_ids=ids,
        position_ids=np.broadcast_to(np.arange(width), ids.shape).copy(),
        rows=tuple((number * width, row.length) for number, row in enumerate(rows)),
        predict=np.concatenate([number * width + row.positions for number, row in enumerate(rows)]),
        targets=np.concatenate([row.targets for row in rows]),
        packed=False,
        ranks=tuple(row.rank for row in rows),
    )
