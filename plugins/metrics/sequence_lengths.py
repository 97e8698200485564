"""The inputs by which graphs without an attention mask are told how long their rows are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LENGTHS", "sequence_lengths"]

LENGTHS = ("past_seq_len", "total_seq_len")
"""What the surgeon AttentionMaskToSequenceLengths puts in the mask's place."""


def sequence_lengths(name: str, tokens: Sequence[int], longest: int) -> np.ndarray:
    """Return one of LENGTHS: past_seq_len, int32 (batch, 1), or total_seq_len, int32 (1).

    tokens: how many each row has, those of its past among them; longest: to how many rows are padded.
    """
    import numpy as np

    if name == "total_seq_len":
        return np.array([longest], np.int32)
    return np.array(tokens, np.int32)[:, None] - 1
