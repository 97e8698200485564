"""The type in which a Hugging Face model's weights are stored, told by its files without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drupe.core.model import Model
from drupe.plugins.huggingface.files import HEADER_TYPES, weight_types
from drupe.plugins.huggingface.loading import load_model, read_config, torch_dtype

__all__ = ["stored_dtype"]


def stored_dtype(model: Model) -> Any:
    """Return the torch dtype that `load_model` gives a model's weights where it is told none.

    That is what the input model's load_kwargs say, else its config.json (its own type, or that of a part), else the
    header of its weights. Where none of them tells (pickled weights), the model is loaded.
    """
    for name in (model.attributes.get("load_kwargs", {}).get("dtype"), *_of_config(read_config(model.folder))):
        if name not in (None, "auto"):
            return torch_dtype(str(name))
    kinds = (kind for _, kind in weight_types(model.folder) if kind in HEADER_TYPES)
    if (found := next(kinds, None)) is not None:
        return torch_dtype(HEADER_TYPES[found])
    return load_model(model, with_adapter=False).dtype


def _of_config(config: Mapping[str, Any]) -> list[Any]:
    parts = [part for key, part in config.items() if key.endswith("_config") and isinstance(part, Mapping)]
    return [part.get(key) for part in (config, *parts) for key in ("dtype", "torch_dtype")]
