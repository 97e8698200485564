"""How tests judge what a pass made of a real model: with the plain libraries, on real inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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


def by_transformers(model: Any, ids: np.ndarray) -> np.ndarray:
    """What a causal model of transformers says of each next token: log probabilities (n, vocabulary) of ids (n,)."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0]
        found: np.ndarray = torch.log_softmax(logits.double(), -1).numpy()
    return found


def by_genai(folder: Path, ids: np.ndarray, adapter: Path | None = None) -> np.ndarray:
    """What onnxruntime-genai says of each next token: log probabilities (n, vocabulary). adapter: an .onnx_adapter."""
    import onnxruntime_genai as og

    loaded = og.Model(str(folder))
    parameters = og.GeneratorParams(loaded)
    parameters.set_search_options(max_length=len(ids) + 1)
    generator = og.Generator(loaded, parameters)
    if adapter is not None:
        adapters = og.Adapters(loaded)
        adapters.load(str(adapter), "it")
        generator.set_active_adapter(adapters, "it")
    generator.append_tokens(ids.astype(np.int32))
    logits = np.asarray(generator.get_output("logits"))[0].astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def perplexity(log_probabilities: np.ndarray, ids: np.ndarray) -> float:
    """Perplexity of a text by what was said of each next token of it."""
    told = log_probabilities[np.arange(len(ids) - 1), ids[1:]]
    return float(np.exp(-told.mean()))


def divergence(found: np.ndarray, wanted: np.ndarray) -> float:
    """Kullback-Leibler divergence from what was wanted, in nats a token."""
    return float((np.exp(wanted) * (wanted - found)).sum(-1).mean())
