"""What the installed model builder makes of an architecture: which it builds, and what it has to be told of windows."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from drupe.core.introspect import module_source

__all__ = ["buildable", "told_windows"]

_WHOLLY_SLIDING = frozenset({"MistralForCausalLM", "Phi3ForCausalLM"})
"""Architectures all of whose layers look no further back than config.sliding_window, where it is set."""


def buildable() -> frozenset[str]:
    """Return the architectures that the installed builder compares with; empty where it can't be read."""
    try:
        tree = ast.parse(module_source("onnxruntime_genai.models.builder").read_bytes())
    except LookupError:
        return frozenset()
    return frozenset(
        str(value.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and ast.unparse(node.left) == "config.architectures[0]"
        for value in node.comparators
        if isinstance(value, ast.Constant)
    )


def told_windows(folder: Path, scratch: Path) -> Path:
    """Return a folder whose config.json says of each layer that its attention slides, where all do and it is not said.

    The builder (onnxruntime-genai 0.18) takes layers of which nothing is said for full attention, and gives other
    logits than the model from the window's length on. scratch: where such a folder may be made, of links.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    window, longest = config.get("sliding_window"), config.get("max_position_embeddings")
    wholly = (config.get("architectures") or [None])[0] in _WHOLLY_SLIDING and not config.get("layer_types")
    if not wholly or not isinstance(window, int) or window < 1 or (isinstance(longest, int) and longest <= window):
        return folder
    scratch.mkdir(parents=True)
    for entry in folder.iterdir():
        if entry.name != "config.json":
            (scratch / entry.name).symlink_to(entry.resolve())
    told = {**config, "layer_types": ["sliding_attention"] * int(config["num_hidden_layers"])}
    (scratch / "config.json").write_text(json.dumps(told), encoding="utf-8")
    return scratch
