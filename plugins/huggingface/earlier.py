"""A model folder as transformers 4 reads it: version 5 writes settings of rotary positions under another name, and
version 4 would not miss them but take its defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe.plugins.huggingface.loading import read_config

__all__ = ["earlier_config", "earlier_folder"]

_PLAIN = ("rope_theta", "partial_rotary_factor")
_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
"""Model types whose configs have other names for them."""


def earlier_folder(folder: Path, target: Path) -> Path:
    """Make `target` a folder of links to a model's files whose config.json transformers 4 reads rightly; return it."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.name != "config.json":
            (target / path.name).symlink_to(path.absolute(), target_is_directory=path.is_dir())
    text = json.dumps(earlier_config(read_config(folder)), indent=2)
    (target / "config.json").write_text(text, encoding="utf-8")
    return target


def earlier_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with `rope_parameters` in the fields of transformers 4, those of its parts too."""
    found = {key: earlier_config(value) if key.endswith("_config") and isinstance(value, Mapping) else value
             for key, value in config.items()}  # fmt: skip
    told = found.pop("rope_parameters", None)
    if isinstance(told, Mapping):
        by_layer = {key: value for key, value in told.items() if isinstance(value, Mapping)}
        if local := by_layer.get("sliding_attention"):
            found.setdefault("rope_local_base_freq", local.get("rope_theta"))
        plain = dict(by_layer.get("full_attention") or told)
        names = _NAMES.get(str(found.get("model_type")), {})
        for name in _PLAIN:
            if plain.get(name) is not None:
                found.setdefault(names.get(name, name), plain[name])
            plain.pop(name, None)
        if plain.get("rope_type", "default") != "default":
            found.setdefault("rope_scaling", plain)
    if "dtype" in found:
        found.setdefault("torch_dtype", found["dtype"])
    return found
