"""Rows to train on: what a sample feeds the model and where loss is taken; cutting, checking, holding out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drupe.core.data import Sample
from drupe.core.errors import ConfigError

__all__ = ["Accounting", "Row", "hold_out", "rows_of"]

IGNORED = -100


@dataclass(frozen=True)
class Row:
    """One text. ids: its tokens. positions: where a prediction is judged. targets: what should follow there.

    rank: how many ranks of an elastic adapter it trains; 0: all.
    """

    id: str
    ids: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    content_key: str
    rank: int = 0

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return int(self.ids.shape[0])


@dataclass(frozen=True)
class Accounting:
    """What became of the samples: counts of rows and tokens, before and after."""

    rows: int
    tokens: int
    answer_tokens: int
    longest: int
    cut_rows: int
    cut_tokens: int
    dropped_rows: int

    def to_json(self) -> dict[str, int]:
        """Return JSON data."""
        return dict(vars(self))


def rows_of(samples: Sequence[Sample], max_length: int | None, name: str) -> tuple[list[Row], Accounting]:
    """Turn samples into rows of at most `max_length` tokens.

    Padding is taken off. A row that is cut loses its end; a row without a token to learn is dropped. Raises ConfigError
    when samples are not token sequences with labels of the same length, or when nothing is left to learn.
    """
    rows: list[Row] = []
    cut_rows = cut_tokens = dropped = 0
    for sample in samples:
        ids, labels = _tokens(sample, name)
        if max_length is not None and ids.shape[0] > max_length:
            cut_rows += 1
            cut_tokens += int(ids.shape[0]) - max_length
            ids, labels = ids[:max_length], labels[:max_length]
        positions = np.flatnonzero(labels[1:] != IGNORED)
        if positions.size == 0:
            dropped += 1
            continue
        # A prediction is made one place before the token that it is judged by.
        rows.append(Row(sample.id, ids, positions, labels[positions + 1], sample.content_key or sample.id))
    if not rows:
        raise ConfigError(_nothing(name, len(samples), cut_rows, max_length))
    return rows, Accounting(
        rows=len(rows),
        tokens=sum(row.length for row in rows),
        answer_tokens=sum(int(row.targets.size) for row in rows),
        longest=max(row.length for row in rows),
        cut_rows=cut_rows,
        cut_tokens=cut_tokens,
        dropped_rows=dropped,
    )


def _tokens(sample: Sample, name: str) -> tuple[np.ndarray, np.ndarray]:
    inputs: Mapping[str, Any] = sample.inputs
    ids, labels = inputs.get("input_ids"), inputs.get("labels")
    if (
        not isinstance(ids, np.ndarray)
        or not isinstance(labels, np.ndarray)
        or ids.ndim != 1
        or ids.shape != labels.shape
    ):
        raise ConfigError(
            f"data config {name!r}, sample {sample.id}: a tuning pass needs input_ids and labels of one length and "
            f"dimension; found {', '.join(sorted(inputs)) or 'nothing'}; set the data config's task to text-generation"
        )
    mask = inputs.get("attention_mask")
    if isinstance(mask, np.ndarray):
        keep = mask.astype(bool)
        ids, labels = ids[keep], labels[keep]
    return ids.astype(np.int64), labels.astype(np.int64)


def _nothing(name: str, samples: int, cut: int, max_length: int | None) -> str:
    if samples == 0:
        return f"data config {name!r} gives no samples; check its files, split and max_samples"
    if cut:
        return (
            f"data config {name!r}: none of its {samples} rows has a token to learn; {cut} were cut at {max_length} "
            "tokens, which removed their answers; raise max_length, or shorten the prompts"
        )
    return (
        f"data config {name!r}: none of its {samples} rows has a token to learn (all labels are {IGNORED}); "
        "check the prompt masking and the answer column"
    )


def hold_out(rows: Sequence[Row], size: float | int, seed: int, name: str) -> tuple[list[Row], list[Row]]:
    """Split rows into (train, held out) by unique content, so that a repeated row never sits on both sides.

    size: a share of the unique contents below 1, or a number of rows. Raises ConfigError when one side would be empty.
    """
    keys = sorted({row.content_key for row in rows})
    order = [keys[i] for i in np.random.default_rng(seed).permutation(len(keys))]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.content_key] = counts.get(row.content_key, 0) + 1
    held: set[str] = set()
    if size < 1:
        held.update(order[: max(1, round(size * len(keys)))])
    else:
        taken = 0
        for key in order:
            if taken >= size:
                break
            held.add(key)
            taken += counts[key]
    train = [row for row in rows if row.content_key not in held]
    if not train or not held:
        raise ConfigError(
            f"eval_dataset_size {size} leaves {len(train)} of {len(rows)} rows ({len(keys)} unique) of {name!r} to "
            "train on; lower it, or give more data"
        )
    return train, [row for row in rows if row.content_key in held]
