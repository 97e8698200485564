"""Which layers torchao quantizes, and on which grid each."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

from drupe.core.errors import ConfigError
from drupe.plugins.quantization.ao.config import FLOAT8, GROUPS, INTX, Grid, TorchAOConfig

__all__ = ["chosen_layers"]

_MULTIPLE = 16
"""What rows and columns must be multiples of for float8 kernels (torch._scaled_mm)."""


def chosen_layers(name: str, network: Any, config: TorchAOConfig, mixed: Mapping[str, int]) -> dict[str, Grid]:
    """Return the layers to quantize by name, in order, each with its grid.

    mixed: layer to bits, as an earlier pass chose them. Raises ConfigError where a pattern matches nothing, where no
    layer is left, and where a layer does not suit the scheme.
    """
    layers = _candidates(name, network, config)
    patterns = {"include": config.include, "exclude": config.exclude, "overrides": list(config.overrides)}
    for field, given in patterns.items():
        for pattern in given:
            if not fnmatch.filter(layers, pattern):
                raise ConfigError(f"{name}: {field}: {_nothing(pattern, layers)}")
    found = {
        layer: _grid(layer, config, mixed)
        for layer in layers
        if _matches(layer, config.include) and not _matches(layer, config.exclude)
    }
    if not found:
        raise ConfigError(f"{name}: include and exclude leave no layer to quantize; the model has {_some(layers)}")
    ends = {"lm_head": network.get_output_embeddings(), "embeddings": network.get_input_embeddings()}
    for field, module in ends.items():
        path = next((layer for layer, other in layers.items() if other is module), None)
        if getattr(config, field) and path not in found:
            raise ConfigError(f"{name}: {field}: true, and include and exclude leave {path} out; make them one")
    for layer, grid in found.items():
        _check(name, layer, layers[layer].weight.shape, grid, config)
    return found


def _candidates(name: str, network: Any, config: TorchAOConfig) -> dict[str, Any]:
    """Return what may be quantized: the linear layers, with head and embeddings only where they are asked for."""
    import torch

    head, table = network.get_output_embeddings(), network.get_input_embeddings()
    found = {}
    for path, module in network.named_modules():
        if module is head:
            wanted = config.lm_head and isinstance(module, torch.nn.Linear)
        elif module is table:
            wanted = config.embeddings and isinstance(module, torch.nn.Embedding)
        else:
            wanted = isinstance(module, torch.nn.Linear)
        if wanted:
            found[path] = module
    lacking = {"lm_head": config.lm_head and head, "embeddings": config.embeddings and table}
    for field, module in lacking.items():
        if getattr(config, field) and not any(module is layer for layer in found.values()):
            what = "linear head" if field == "lm_head" else "table of input embeddings"
            raise ConfigError(f"{name}: {type(network).__name__} has no {what}, so {field}: true can't be done")
    if not found:
        raise ConfigError(f"{name}: {type(network).__name__} has no linear layers (torch.nn.Linear) to quantize")
    return found


def _grid(layer: str, config: TorchAOConfig, mixed: Mapping[str, int]) -> Grid:
    common = config.common
    own: Mapping[str, Any] = next(
        (values for pattern, values in config.overrides.items() if fnmatch.fnmatchcase(layer, pattern)), {}
    )
    bits = own.get("bits", mixed.get(layer, common.bits) if config.scheme in INTX else common.bits)
    return Grid(bits, own.get("group_size", common.group_size), own.get("sym", common.sym))


def _check(name: str, layer: str, shape: tuple[int, int], grid: Grid, config: TorchAOConfig) -> None:
    """What the library would leave as it was without a word, or fail on in the middle of the work."""
    rows, columns = shape
    grouped = grid.group_size != -1 and (config.scheme in GROUPS)
    if grouped and columns % grid.group_size:
        fitting = [size for size in (256, 128, 64, 32, 16) if columns % size == 0 and size < grid.group_size]
        hint = f"; the largest that does is {fitting[0]}" if fitting else ""
        raise ConfigError(
            f"{name}: groups of {grid.group_size} do not divide the {columns} columns of {layer}{hint}; "
            "or leave the layer out by exclude"
        )
    if config.scheme == FLOAT8 and (rows % _MULTIPLE or columns % _MULTIPLE):
        raise ConfigError(
            f"{name}: {layer} has {rows} × {columns} weights, and float8 kernels take multiples of {_MULTIPLE}; leave "
            "the layer out by exclude"
        )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _nothing(pattern: str, layers: Mapping[str, Any]) -> str:
    import difflib

    near = difflib.get_close_matches(pattern, layers, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; it has {_some(layers)}"
    return f"no layer of the model matches {pattern!r}{hint}"


def _some(layers: Mapping[str, Any]) -> str:
    names = list(layers)
    return ", ".join(names[:4]) + (f", … ({len(names)} in all)" if len(names) > 4 else "")
