"""How tests judge what a pass made of a real model: with the plain libraries, on real inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sentences:
    """Pairs of sentences: tokens (n, length) by input name, and an encoder's embeddings, (n, width) of length 1."""

    batch: Batch
    embeddings: np.ndarray

    @classmethod
    def of(cls, batch: Batch, states: np.ndarray) -> Sentences:
        """Pool an encoder's last states (n, length, width) as sentence-transformers does: the mean over the tokens."""
        weights = batch["attention_mask"][..., None].astype(np.float64)
        pooled = (states.astype(np.float64) * weights).sum(1) / weights.sum(1)
        return cls(batch, pooled / np.linalg.norm(pooled, axis=1, keepdims=True))

    def again(self, states: np.ndarray) -> Sentences:
        """The same sentences as another encoder's states tell them."""
        return replace(self, embeddings=Sentences.of(self.batch, states).embeddings)

    def cosines(self, other: Sentences) -> np.ndarray:
        """How near the embeddings of each sentence are by two encoders."""
        near: np.ndarray = (self.embeddings * other.embeddings).sum(1)
        return near

    def found(self) -> int:
        """How many of the sentences have the other one of their pair as their nearest neighbour."""
        near = self.embeddings @ self.embeddings.T
        np.fill_diagonal(near, -1)
        return int((near.argmax(1) == (np.arange(len(near)) ^ 1)).sum())
