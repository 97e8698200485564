"""Checks what an input model says of its inputs and outputs (Olive's io_config)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

__all__ = ["checked_io_config"]

_LISTS = ("input_names", "input_shapes", "input_types", "output_names", "output_shapes", "output_types")
_KEYS = (*_LISTS, "dynamic_axes", "dynamic_shapes", "string_to_int_dim_params", "kv_cache")


def checked_io_config(value: Any) -> Any:
    """Return an io_config as it is; a text names a function that gives one. Raises ValueError naming the key."""
    if not isinstance(value, Mapping):
        return value
    for key, told in value.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"io_config.{key}: unknown key {key!r}; known: {', '.join(_KEYS)}{hint}")
        if key in _LISTS and told is not None and not isinstance(told, (list, tuple)):
            raise ValueError(f"io_config.{key} is {told!r}; expected a list")
        if key == "dynamic_axes" and told is not None:
            _check_axes(told)
    names = value.get("input_names")
    for key in ("input_shapes", "input_types"):
        told = value.get(key)
        if names and told and len(told) != len(names):
            raise ValueError(f"io_config.{key} has {len(told)} entries, and input_names has {len(names)}")
    return value


def _check_axes(axes: Any) -> None:
    if not isinstance(axes, Mapping):
        raise ValueError(f"io_config.dynamic_axes is {axes!r}; expected a mapping: input or output → {{axis: name}}")
    for name, named in axes.items():
        if not isinstance(named, Mapping) or not all(isinstance(label, str) for label in named.values()):
            raise ValueError(f"io_config.dynamic_axes.{name} is {named!r}; expected {{axis: name}}")
        if not all(str(axis).lstrip("-").isdigit() for axis in named):
            told = ", ".join(map(str, named))
            raise ValueError(f"io_config.dynamic_axes.{name} has the axes {told}; expected numbers")
