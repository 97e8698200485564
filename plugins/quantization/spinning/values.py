"""Where a block's values lie: the rows that make them, head by head, and the layer that reads them joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from drupe.plugins.quantization.slicing.structure import Part

__all__ = ["Values", "find_values"]


@dataclass(frozen=True)
class Values:
    """layer, output: names in the block. rows: (key-value heads, size) rows of the layer. heads: those that the output
    joins."""

    layer: str
    rows: Any
    output: str
    heads: int


def find_values(block: Any, attention: Part, config: Any) -> Values | None:
    """Return where a block's values lie, None where its layers have another order than is known here."""
    import torch

    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if block.get_submodule(attention.writes).in_features != heads * size:
        return None
    named = {name.rpartition(".")[2]: name for name in attention.reads}
    kind = next((kind for kind in ("v_proj", "qkv_proj", "query_key_value") if kind in named), None)
    if kind is None:
        return None
    many, left = divmod(block.get_submodule(named[kind]).out_features, size)
    if kind == "v_proj":
        first = torch.arange(many) * size
    elif kind == "qkv_proj":
        # All queries, then all keys, then all values.
        many, odd = divmod(many - heads, 2)
        left += odd
        first = (torch.arange(many) + heads + many) * size
    else:
        # Each head's query, key and value follow each other.
        left += many != 3 * heads
        first = (3 * torch.arange(heads) + 2) * size
    if left or many < 1:
        return None
    return Values(named[kind], first[:, None] + torch.arange(size), attention.writes, heads)
