"""Example inputs of the shapes and types that an io_config tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drupe.core.errors import ConfigError
from drupe.plugins.huggingface.loading import torch_dtype

__all__ = ["told_inputs"]


def told_inputs(told: Mapping[str, Any], *, named: int = 1) -> dict[str, Any] | None:
    """Return zeros by input name, or None where names or shapes are not told. named: the size of axes that have a name.

    Raises ConfigError for lists of different lengths, and for types that PyTorch has not.
    """
    import torch

    names, shapes = told.get("input_names"), told.get("input_shapes")
    if not names or not shapes:
        return None
    kinds = told.get("input_types") or ["float32"] * len(names)
    if not len(names) == len(shapes) == len(kinds):
        raise ConfigError(
            f"io_config has {len(names)} input_names, {len(shapes)} input_shapes and {len(kinds)} input_types"
        )
    found = {}
    for name, shape, kind in zip(names, shapes, kinds, strict=True):
        try:
            dtype = torch_dtype(str(kind))
        except ConfigError:
            dtype = None
        if not isinstance(dtype, torch.dtype):
            raise ConfigError(
                f"io_config.input_types: {kind!r} for {name}; expected int64, float32, bool or another of PyTorch"
            )
        found[str(name)] = torch.zeros([size if isinstance(size, int) else named for size in shape], dtype=dtype)
    return found
