"""What the library llmcompressor is given: modifiers, made from a recipe or from Drupe's parameters, and texts."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from drupe.core.errors import ConfigError
from drupe.plugins.quantization.compressor.config import LLMCompressorConfig
from drupe.plugins.quantization.compressor.recipes import modifiers
from drupe.plugins.quantization.compressor.schemes import SCHEMES

__all__ = ["check_layers", "library_modifiers", "loader", "quiet", "recipe_of"]

_OWN = ("group", "index", "start", "end", "update", "requires_calibration_data")
"""Arguments that every modifier takes, declared or not."""


def quiet() -> None:
    """Keep the library from writing its log to the standard output, which it begins with when it is imported."""
    # Its log can't be switched off: GPTQ then misses a level that is made with it.
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def recipe_of(config: LLMCompressorConfig) -> Mapping[str, Any]:
    """Return the recipe that the parameters stand for."""
    layers = {"targets": list(config.targets), "ignore": list(config.ignore)}
    solver = {"block_size": config.block_size, "dampening_frac": config.dampening_frac}
    found: dict[str, Any] = {}
    if config.smoothing_strength is not None:
        found["SmoothQuantModifier"] = {"smoothing_strength": config.smoothing_strength}
    if config.sparsity is not None:
        found["SparseGPTModifier"] = {
            "sparsity": config.sparsity, "mask_structure": config.mask_structure, **layers, **solver
        }  # fmt: skip
    if config.scheme is not None:
        grid: dict[str, Any] = {"scheme": config.scheme, "targets": layers["targets"]}
        if config.group_size is not None:
            grid = {"config_groups": {"group_0": _with_groups(config.scheme, layers["targets"], config.group_size)}}
        own = {**grid, "ignore": layers["ignore"]}
        if config.algorithm == "gptq":
            found["GPTQModifier"] = {**own, **solver, "actorder": config.actorder}
        else:
            found["QuantizationModifier"] = own
    return {"default_stage": {"default_modifiers": found}}


def _with_groups(scheme: str, targets: Sequence[str], size: int) -> dict[str, Any]:
    """Return the library's preset as data, with groups of another size."""
    from compressed_tensors.quantization import preset_name_to_scheme

    data: dict[str, Any] = preset_name_to_scheme(scheme, list(targets)).model_dump()
    shape = {"group_size": None, "strategy": "channel"} if size == -1 else {"group_size": size, "strategy": "group"}
    return {**data, "weights": {**data["weights"], **shape}}


def library_modifiers(name: str, recipe: Mapping[str, Any]) -> list[Any]:
    """Return a recipe's modifiers as the library's objects. Raises ConfigError for what it would refuse or ignore."""
    from llmcompressor.modifiers.factory import ModifierFactory
    from pydantic import ValidationError

    if not ModifierFactory._loaded:
        ModifierFactory.refresh()
    found = []
    for kind, arguments in modifiers(recipe):
        known = ModifierFactory._main_registry.get(kind)
        if known is None:
            raise ConfigError(f"{name}: the installed llmcompressor has no {kind}; leave it out of the recipe")
        fields = [*known.model_fields, *_OWN]
        for argument in arguments:
            if argument not in fields:
                near = difflib.get_close_matches(str(argument), fields, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(sorted(known.model_fields))}"
                raise ConfigError(f"{name}: {kind} has no argument {argument!r}{hint}")
        given = {key: value for key, value in arguments.items() if key != "group"}
        try:
            found.append(known(**given))
        except (KeyError, TypeError, ValidationError, ValueError) as error:
            raise ConfigError(f"{name}: {kind}: {_told(error)}") from error
    return found


def _told(error: Exception) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place} is {first['input']!r}: {first['msg']}" if place else str(first["msg"])
    return " ".join(str(error).split()) or type(error).__name__


def check_layers(name: str, network: Any, config: LLMCompressorConfig) -> None:
    """Raise ConfigError where targets or ignore match nothing, and where groups do not divide a layer's width."""
    from compressed_tensors.utils import match_named_modules

    modules = dict(network.named_modules())
    default = type(config).model_fields["ignore"].default
    for field, patterns in (("targets", config.targets), ("ignore", config.ignore)):
        for pattern in patterns:
            if any(True for _ in match_named_modules(network, [pattern])):
                continue
            if field == "ignore" and pattern in default:
                # Encoders have no head of that name; what is not there is not quantized.
                continue
            near = difflib.get_close_matches(pattern.removeprefix("re:"), modules, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; patterns of names begin with re:"
            raise ConfigError(f"{name}: {field}: no layer of the model matches {pattern!r}{hint}")
    chosen = dict(match_named_modules(network, config.targets, config.ignore))
    if not chosen:
        raise ConfigError(f"{name}: targets and ignore leave no layer")
    scheme = SCHEMES.get(config.scheme or "")
    size = (config.group_size or scheme.group_size) if scheme else None
    for path, module in chosen.items() if size not in (None, -1) else ():
        columns = getattr(module, "in_features", None)
        if size and columns and columns % size:
            fitting = [other for other in (128, 64, 32) if columns % other == 0 and other < size]
            changeable = scheme is not None and scheme.changeable
            way = f"; the largest group_size that does is {fitting[0]}" if fitting and changeable else ""
            raise ConfigError(
                f"{name}: groups of {size} do not divide the {columns} columns of {path}{way}; or put the layer "
                "in ignore"
            )


def loader(tokens: Sequence[Any]) -> Any:
    """Return calibration texts, tensors (1, n) of token ids, as batches of one for the library."""
    import torch
    from torch.utils.data import DataLoader

    rows = [{"input_ids": row.cpu(), "attention_mask": torch.ones_like(row.cpu())} for row in tokens]
    return DataLoader(rows, batch_size=None, shuffle=False)
