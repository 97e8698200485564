"""The encoder that MTEB asks for embeddings, answered by a session of whatever runtime serves the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mteb.models.model_meta import ModelMeta
from mteb.similarity_functions import cos_sim, pairwise_cos_sim

from drupe.core.errors import EvaluationError
from drupe.core.runtimes import Session
from drupe.plugins.metrics.embeddings import EmbeddingSimilarityConfig, embedded

if TYPE_CHECKING:
    from drupe.plugins.metrics.mteb_evaluator import MTEBEvaluatorConfig

__all__ = ["SessionEncoder"]

_DEFAULT_LENGTH = 512
_NO_LIMIT = 1_000_000
"""A tokenizer's length from here on means that nobody set one."""
_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
"""Flags of Sentence Transformers' older files; newer ones say `pooling_mode: mean`."""


class SessionEncoder:
    """Embeds texts by a session, as MTEB's own model classes do by theirs. Embeddings are float32.

    folder: the model's, with its tokenizer. note: how embeddings are made, for the report. progress: called with the
    texts done, and their number.
    """

    def __init__(
        self,
        session: Session,
        folder: Path,
        config: MTEBEvaluatorConfig,
        progress: Callable[[int, int, str], None],
    ) -> None:
        self._session = session
        self._progress = progress
        self._normalize = config.normalize
        self._batch_size = config.batch_size
        self._tokenizer = _tokenizer(folder)
        self._shapes = session.input_shapes()
        self._fixed = self._fixed_sizes()
        pooling = config.pooling or _told_pooling(folder) or "mean"
        self._how = EmbeddingSimilarityConfig(output=config.output, pooling=pooling)
        self._length = self._fixed[1] or config.max_length or _told_length(folder, self._tokenizer)
        self._named = config.output is not None
        self.note = (
            f"embeddings: {pooling} of the tokens where there is a vector per token, {self._length} tokens at most"
        )
        self.mteb_model_meta = ModelMeta.create_empty({"name": "drupe/model", "revision": "1"})

    def encode(self, inputs: Iterable[Mapping[str, Any]], *, task_metadata: Any, **kwargs: Any) -> np.ndarray:
        """Return the embeddings, (texts, size), of the batches of texts in `inputs`."""
        texts = [text for batch in inputs for text in batch["text"]]
        # Texts of similar length need little padding.
        order = sorted(range(len(texts)), key=lambda at: -len(texts[at]))
        size = self._fixed[0] or self._batch_size
        found: dict[int, np.ndarray] = {}
        for start in range(0, len(order), size):
            self._progress(start, len(texts), f"embedding for {task_metadata.name}")
            part = order[start : start + size]
            # A graph of a fixed batch gets its last one filled up.
            asked = [*part, *[part[-1]] * (size - len(part))] if self._fixed[0] else part
            found |= zip(part, self._embed([texts[at] for at in asked]), strict=False)
        return np.stack([found[at] for at in range(len(texts))]).astype(np.float32)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosines between all of the one and all of the other."""
        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosine of each pair."""
        return pairwise_cos_sim(embeddings1, embeddings2)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        encoded = self._tokenizer(
            list(texts),
            padding="max_length" if self._fixed[1] else True,
            truncation=True,
            max_length=self._length,
            return_tensors="np",
        )
        ids = encoded["input_ids"]
        offered = {
            "token_type_ids": np.zeros_like(ids),
            "position_ids": np.broadcast_to(np.arange(ids.shape[1], dtype=np.int64), ids.shape),
            **encoded,
        }
        lacking = [name for name in self._shapes if name not in offered]
        if lacking:
            raise EvaluationError(f"the model takes {', '.join(lacking)} beside texts, which the tasks do not have")
        batch = {name: np.asarray(offered[name], dtype=kind) for name, (_, kind) in self._shapes.items()}
        outputs = self._session.forward(batch).outputs
        if not self._named and next(iter(outputs)) == "logits" and "last_hidden_state" not in outputs:
            raise EvaluationError(
                f"the model gives {', '.join(outputs)} and no embedding; export or load it for feature-extraction, or "
                "name the output"
            )
        vectors = embedded(outputs, encoded["attention_mask"], self._how)
        if not np.isfinite(vectors).all():
            raise EvaluationError("the model gives embeddings with NaN or infinite numbers")
        if self._normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        return vectors

    def _fixed_sizes(self) -> tuple[int | None, int | None]:
        """Return batch and length of the graph where they are fixed."""
        if "input_ids" not in self._shapes:
            raise EvaluationError(f"the model takes {', '.join(self._shapes)}; expected input_ids of a tokenizer")
        batch, length = self._shapes["input_ids"][0]
        return (batch if isinstance(batch, int) else None, length if isinstance(length, int) else None)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        if not (folder / "tokenizer.json").is_file():
            raise EvaluationError(f"texts need a tokenizer beside the model, which can't be read: {error}") from error
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = next(iter(tokenizer.get_vocab()))
    return tokenizer


def _told_pooling(folder: Path) -> str | None:
    told = _json(folder / "1_Pooling" / "config.json")
    mode = str(told.get("pooling_mode", ""))
    if mode in ("cls", "mean", "max"):
        return mode
    if mode == "lasttoken":
        return "last"
    return next((pooling for flag, pooling in _POOLING.items() if told.get(flag)), None)


def _told_length(folder: Path, tokenizer: Any) -> int:
    own = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    if isinstance(own, int):
        return own
    limit = int(min(tokenizer.model_max_length, _NO_LIMIT))
    return limit if limit < _NO_LIMIT else _DEFAULT_LENGTH


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
