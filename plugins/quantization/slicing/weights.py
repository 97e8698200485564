"""Writes the tensors of a sliced decoder, as the loader beside them reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["write_weights"]


def write_weights(network: Any, dtype: Any, folder: Path) -> None:
    """Write a sliced network's tensors below `folder`, those that hold floats in the torch type `dtype`."""
    from safetensors.torch import save_file

    from drupe.plugins.quantization.slicing.sliced_decoder import WEIGHTS

    state = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in sorted(network.state_dict().items())
    }
    save_file(state, folder / WEIGHTS, {"format": "pt"})
