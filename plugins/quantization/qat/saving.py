"""Keeps what a training made beside the model that it started from, and puts the two together again.

A trained model is its source (script, weights, config) with the folder qat/: recipe.json says what was fused and
rounded, state.safetensors has the weights, on their grids, and the scales. So a model keeps its class, and what its
source needs (consent, a loader) is what it needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drupe.core.errors import ConfigError
from drupe.plugins.quantization.qat.preparing import Recipe, apply, freeze

__all__ = ["FOLDER", "restore", "save"]

FOLDER = "qat"
_RECIPE, _STATE = "recipe.json", "state.safetensors"


def save(module: Any, recipe: Recipe, folder: Path) -> None:
    """Write a finished module's recipe and state."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # Shared weights are written once for each name, as strict loading wants them.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in sorted(module.state_dict().items())}
    save_file(state, str(folder / _STATE))
    text = json.dumps(recipe.to_json(), indent=1, sort_keys=True)
    (folder / _RECIPE).write_text(text + "\n", encoding="utf-8")


def restore(module: Any, folder: Path) -> Any:
    """Return the module as its training left it, in evaluation mode. module: freshly loaded from its source.

    Raises ConfigError where the source now makes another module than it did.
    """
    from safetensors.torch import load_file

    recipe = Recipe.from_json(json.loads((folder / _RECIPE).read_text(encoding="utf-8")))
    try:
        apply(module, recipe, folded=False)
        module.load_state_dict(load_file(str(folder / _STATE)), strict=True)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ConfigError(
            f"the model that the source makes now is not the one that was trained ({type(module).__name__}): {error}"
        ) from error
    module.eval()
    freeze(module)
    return module
