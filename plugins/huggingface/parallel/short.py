"""A model like another, with few layers and random weights: what a plan is tried on where the whole is large."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe.core.model import Model

__all__ = ["LAYERS", "short_config", "short_model"]

LAYERS = 4
"""How many layers are kept; architectures of several kinds of layers have them among the first few."""
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def short_config(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json's content with the first layers only; what it tells of each layer is cut with them."""
    short = {
        key: short_config(value) if key == "text_config" and isinstance(value, Mapping) else value
        for key, value in data.items()
    }
    for name in _COUNTS:
        whole = data.get(name)
        if isinstance(whole, int) and whole > LAYERS:
            short[name] = LAYERS
            listed = {key: value for key, value in short.items() if isinstance(value, list) and len(value) == whole}
            short |= {key: value[:LAYERS] for key, value in listed.items()}
    short.pop("torch_dtype", None)
    return {**short, "dtype": "float32"}


def short_model(model: Model, folder: Path, seed: int) -> Model:
    """Write a model of a model's widths. Its biases and norms are random too, so that a lost one shows."""
    import torch
    import transformers

    from drupe.plugins.huggingface.loading import auto_class

    data = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(short_config(data)), encoding="utf-8")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    auto = auto_class(model.attributes.get("task"), (config.architectures or [None])[0])
    made = auto.from_config(config, dtype=torch.float32)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
            parameter.normal_(std=scale, generator=random)
    made.save_pretrained(folder)
    known = {key: value for key, value in model.attributes.items() if key not in ("load_kwargs", "dtype")}
    return Model.from_dir("hf", folder, known)
