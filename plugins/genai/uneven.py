"""Which layers of a quantized checkpoint the model builder can't join."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["uneven_attention"]


def uneven_attention(folder: Path) -> str | None:
    """Return the first attention whose projections of queries, keys and values are rounded differently; None: there is
    none, or the model is not quantized.

    The builder joins these projections layer by layer, and of a layer that it joins after one that it did not it reads
    the earlier one's keys and values (seen with onnxruntime-genai 0.18): such a graph does not load.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")).get("quantization_config") or {}
    overrides: dict[str, Any] = told.get("overrides") or {}
    usual = {key: told.get(key) for key in ("bits", "group_size")}
    for name in sorted(overrides):
        attention, _, projection = name.rpartition(".")
        if projection in ("q_proj", "k_proj", "v_proj"):
            schemes = [{**usual, **overrides.get(f"{attention}.{part}_proj", {})} for part in "qkv"]
            if len({(scheme["bits"], scheme["group_size"]) for scheme in schemes}) > 1:
                return attention
    return None
