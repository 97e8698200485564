"""Log-likelihoods of many sequences, scored several at a time where the session gains by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from drupe.core.errors import EvaluationError
from drupe.core.runtimes import Result, Session

__all__ = ["BatchSize", "BatchedScores", "Scored"]

BatchSize = int | Literal["auto"]
Scored = tuple[tuple[int, ...], int]
"""The tokens of a sequence, and how many of them, at its end, are scored."""

_AUTO_SEQUENCES = 64
_AUTO_TOKENS = {"cpu": 512}
_AUTO_TOKENS_ELSEWHERE = 4096
"""What "auto" puts into one batch at most, filling included, by device. A token has as many logits as the vocabulary
has words; on a CPU, batches whose logits outgrow its caches were measured to be slower again."""


class BatchedScores:
    """Scores by a session. A batch that fails, for want of memory or since the graph takes one sequence only, is halved
    and tried again; so are those after it.

    size: sequences in a batch, or "auto": as many as hold 512 tokens together on a CPU, 4,096 elsewhere; 64 at
    most. progress: called with the sequences done, and their number. note: called with a sentence where batches get
    smaller.
    """

    def __init__(
        self,
        session: Session,
        size: BatchSize,
        progress: Callable[[int, int], None],
        note: Callable[[str], None],
        *,
        device: str = "cpu",
    ) -> None:
        self._session = session
        self._most_tokens = _AUTO_TOKENS.get(device, _AUTO_TOKENS_ELSEWHERE) if size == "auto" else None
        self._size = _AUTO_SEQUENCES if size == "auto" else size
        self._progress = progress
        self._note = note

    def of(self, sequences: Sequence[Scored]) -> list[tuple[float, bool]]:
        """Return the log-likelihood of what is scored of each sequence, and whether each such token is the likeliest.

        Equal sequences are scored once.
        """
        found: dict[Scored, tuple[float, bool]] = {}
        # Sequences of similar length need little filling; the longest ones first show at once whether memory suffices.
        waiting = sorted(dict.fromkeys(sequences), key=lambda item: (-len(item[0]), item))
        for batch in self._batches(waiting):
            self._progress(len(found), len(waiting))
            found |= zip(batch, self._scores(batch), strict=True)
        return [found[sequence] for sequence in sequences]

    def _batches(self, sequences: Sequence[Scored]) -> Iterator[Sequence[Scored]]:
        at = 0
        while at < len(sequences):
            size = self._size
            if self._most_tokens is not None:
                size = max(1, min(size, self._most_tokens // len(sequences[at][0])))
            yield sequences[at : at + size]
            at += size

    def _scores(self, batch: Sequence[Scored]) -> list[tuple[float, bool]]:
        given = []
        for tokens, scored in batch:
            ids = np.asarray(tokens, dtype=np.int64)
            given.append((ids, np.where(np.arange(len(ids)) < len(ids) - scored, -100, ids)))
        try:
            results = self._session.score_batch(given)
        except (EvaluationError, MemoryError, RuntimeError) as error:
            if len(batch) == 1:
                raise
            half = (len(batch) + 1) // 2
            if half < self._size:
                self._size = half
                reason = str(error).strip().splitlines() or [type(error).__name__]
                self._note(f"{len(batch)} sequences can't be scored at once, {half} are tried: {reason[0][:200]}")
            return [*self._scores(batch[:half]), *self._scores(batch[half:])]
        return [_told(scored, result) for (_, scored), result in zip(batch, results, strict=True)]


def _told(scored: int, result: Result) -> tuple[float, bool]:
    """Return the log-likelihood of the last `scored` tokens, and whether each of them is the likeliest."""
    if "greedy" not in result.outputs:
        raise EvaluationError(
            "the runtime's sessions do not tell which of the scored tokens are the likeliest ones (the output 'greedy' "
            "of score), which tasks count"
        )
    logprobs, greedy = (np.asarray(result.outputs[name]) for name in ("logprobs", "greedy"))
    start = len(logprobs) - scored
    return float(logprobs[start:].sum()), bool(greedy[start:].all())
