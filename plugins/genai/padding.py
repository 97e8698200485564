"""The token that fills the last chunk of a prompt.

onnxruntime-genai takes the first of it in a prompt for the prompt's end. The token that models name for it is often one
that occurs in prompts (the end of a turn), so one is chosen that no prompt has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["padding_token"]


def padding_token(folder: Path, model: Mapping[str, Any]) -> int | None:
    """Return the id of a token that no prompt has; None where there is none. model: `model` of genai_config.json."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = data.get("model", {}).get("vocab") or {}
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    added = data.get("added_tokens") or []
    template = _templates(folder)
    ends = model.get("eos_token_id")
    taken = {model.get("bos_token_id"), *(ends if isinstance(ends, list) else [ends])}
    unused = [
        int(token["id"])
        for token in added
        if token.get("special") and token["id"] not in taken and token["content"] not in template
    ]
    if model.get("pad_token_id") in unused:
        return int(model["pad_token_id"])
    # A row of the embedding that no text leads to is the safest.
    beyond = max([-1, *map(int, ids), *(int(token["id"]) for token in added)]) + 1
    if beyond < int(model.get("vocab_size") or 0):
        return beyond
    return unused[0] if unused else None


def _templates(folder: Path) -> str:
    names = ("chat_template.jinja", "tokenizer_config.json")
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in names if (folder / name).is_file()}
    settings = json.loads(texts.pop("tokenizer_config.json", "{}"))
    return "".join(texts.values()) + json.dumps(settings.get("chat_template") or "", ensure_ascii=False)
