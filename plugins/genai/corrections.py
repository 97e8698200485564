"""Faults of onnxruntime-genai's model builder that are put right while it builds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["corrected_builder"]


@contextlib.contextmanager
def corrected_builder(builder: Any) -> Iterator[None]:
    """Let the builder of onnxruntime-genai 0.18 build SmolLM3, some of whose layers have no rotary embedding.

    It says of such a layer that attention does not rotate, which it otherwise takes for: a node before it does. That
    node needs position ids, which the graph does not have. A builder that tells the two apart is left as it is.
    builder: the library's module.
    """
    kind = getattr(builder, "SmolLM3Model", None)
    original = getattr(kind, "make_attention", None)
    if kind is None or original is None or "rope" in original.__code__.co_consts:
        yield
        return

    def make_attention(self: Any, layer_id: int, attention: Any, root_input: Any, **options: Any) -> Any:
        kept, window = dict(self.attention_attrs), self.window_size
        rotates = bool(self.no_rope_layers[layer_id])  # 1 where the layer has one, in spite of the name.
        self.attention_attrs["rope"] = kept["rope"] and rotates
        self.attention_attrs["use_rope_in_attn"] = kept["use_rope_in_attn"] and rotates
        if self.layer_types[layer_id] == "full_attention":
            self.window_size = -1
        try:
            return super(kind, self).make_attention(layer_id, attention, root_input, **options)
        finally:
            self.attention_attrs.update({name: kept[name] for name in ("rope", "use_rope_in_attn")})
            self.window_size = window

    kind.make_attention = make_attention
    try:
        yield
    finally:
        kind.make_attention = original
