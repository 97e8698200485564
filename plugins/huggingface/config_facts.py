"""What a model's config.json tells of its classes and of how much it takes in at once. Light: needs no library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["label_numbers", "places", "text_config"]

_OFFSET = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "xlm-roberta-xl", "roberta-prelayernorm")
"""Model types whose positions begin after that of padding."""


def label_numbers(config: Mapping[str, Any]) -> dict[str, int]:
    """Return name of a class → its number: label2id, else id2label the other way round; {} where there are none."""
    told = config.get("label2id")
    if isinstance(told, Mapping) and told:
        return {str(name): int(number) for name, number in told.items()}
    names = config.get("id2label")
    return {str(name): int(number) for number, name in names.items()} if isinstance(names, Mapping) else {}


def places(config: Mapping[str, Any]) -> int | None:
    """Return the most tokens that the model has positions for, or None where the config does not tell."""
    size = config.get("max_position_embeddings") or config.get("n_positions")
    if not isinstance(size, int) or size < 1:
        return None
    return size - (int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in _OFFSET else 0)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a config.json that tells of the decoder."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config
