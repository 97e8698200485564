"""What the sessions that score have in common: sequences side by side in one batch, log-probabilities out of logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["Sequences", "right_padded", "scored", "scored_places"]

Sequences = Sequence[tuple[np.ndarray, np.ndarray]]
"""Sequences to score: (input_ids, labels) each, int64 (n,); labels -100 where nothing is scored."""


def right_padded(sequences: Sequences, filler: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (input_ids, attention_mask), int64 (batch, longest): shorter sequences are filled up on the right.

    A decoder's position sees only what stands before it, so the filling changes nothing of what comes earlier.
    """
    longest = max(len(ids) for ids, _ in sequences)
    padded = np.full((len(sequences), longest), filler, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for row, (ids, _) in enumerate(sequences):
        padded[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
    return padded, mask


def scored_places(labels: np.ndarray) -> np.ndarray:
    """Return the positions that are scored; the first never is, as nothing stands before it."""
    places = np.flatnonzero(np.asarray(labels) != -100)
    return places[places > 0]


def scored(logits: np.ndarray, labels: np.ndarray) -> Mapping[str, np.ndarray]:
    """Return what Session.score gives for one sequence. logits: (n or more, vocabulary); labels: int64 (n,)."""
    wanted = np.asarray(labels, dtype=np.int64)
    places = scored_places(wanted)
    rows = logits[places - 1].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    logprobs = np.full(len(wanted), np.nan)
    logprobs[places] = rows[np.arange(len(places)), wanted[places]] - np.log(np.exp(rows).sum(axis=1))
    greedy = np.zeros(len(wanted), dtype=bool)
    greedy[places] = rows.argmax(axis=1) == wanted[places]
    return {"logprobs": logprobs, "greedy": greedy}
