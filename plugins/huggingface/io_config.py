"""What an input model says of its inputs and outputs (Olive's io_config): checked, and read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

__all__ = ["checked_io_config", "named_axes", "told_shapes"]

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
        if key == "dynamic_shapes" and told is not None and not isinstance(told, Mapping):
            raise ValueError(f"io_config.dynamic_shapes is {told!r}; expected a mapping: input → {{axis: name}}")
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


def named_axes(told: Mapping[str, Any]) -> dict[str, dict[int, str]]:
    """Return input or output → axis → its name: of dynamic_axes, and of dynamic_shapes, where null is a fixed axis."""
    found: dict[str, dict[int, str]] = {}
    for key in ("dynamic_axes", "dynamic_shapes"):
        for name, axes in (told.get(key) or {}).items():
            if not axes:
                continue
            places = axes.items() if isinstance(axes, Mapping) else enumerate(axes)
            for axis, label in places:
                # A name with its bounds, [name, least, most]: the exporter finds bounds by itself.
                label = label[0] if isinstance(label, (list, tuple)) and label else label
                if label is not None:
                    found.setdefault(str(name), {})[int(axis)] = str(label)
    return found


def told_shapes(told: Mapping[str, Any]) -> dict[str, tuple[tuple[int | str, ...], str]]:
    """Return input → (shape, numpy dtype name), named axes as strings; {} where names or shapes are not told."""
    names, shapes = told.get("input_names"), told.get("input_shapes")
    if not names or not shapes or len(names) != len(shapes):
        return {}
    types, axes = told.get("input_types") or ["float32"] * len(names), named_axes(told)
    found: dict[str, tuple[tuple[int | str, ...], str]] = {}
    for name, shape, kind in zip(names, shapes, types, strict=True):
        named = axes.get(name, {})
        found[str(name)] = (tuple(named.get(axis, size) for axis, size in enumerate(shape)), str(kind))
    return found
