"""Recipes of llmcompressor: read and checked before the library is there, which ignores what it doesn't know."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["FILLERS", "QUANTIZERS", "modifiers", "read_recipe", "sparsity_of", "staged"]

QUANTIZERS = ("AutoRoundModifier", "GPTQModifier", "QuantizationModifier")
FILLERS = ("AutoRoundModifier", "GPTQModifier", "QuIPModifier", "SpinQuantModifier")
"""Modifiers after which weights that were zero are not."""
_TRANSFORMS = (
    "AWQModifier",
    "LogarithmicEqualizationModifier",
    "QuIPModifier",
    "SmoothQuantModifier",
    "SpinQuantModifier",
)
_PRUNERS = (
    "ConstantPruningModifier", "MagnitudePruningModifier", "REAPPruningModifier", "SparseGPTModifier",
    "WandaPruningModifier",
)  # fmt: skip
_KNOWN = (*QUANTIZERS, *_TRANSFORMS, *_PRUNERS)


def read_recipe(path: Path) -> Mapping[str, Any]:
    """Return a recipe file's content, checked. Raises ValueError saying what is wrong with it."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path.name} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is no text; expected a recipe in YAML or JSON") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is no YAML: {' '.join(str(error).split())}") from error
    return staged(data)


def staged(recipe: Any) -> Mapping[str, Any]:
    """Return a recipe with its stages, checked: modifiers that stand alone become the only stage.

    Raises ValueError with the place, what was found and what was expected. The modifiers' own arguments are checked by
    the library, where it is installed.
    """
    if not isinstance(recipe, Mapping) or not recipe:
        raise ValueError(f"a recipe is a mapping of stages or modifiers; found {_shown(recipe)}")
    if all(str(name).endswith("Modifier") for name in recipe):
        recipe = {"default_stage": {"default_modifiers": recipe}}
    found: Mapping[str, Any] = recipe
    if not list(modifiers(found)):
        raise ValueError("the recipe has no modifier; name at least one, such as GPTQModifier")
    return found


def modifiers(recipe: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the recipe's modifiers, each with its arguments. Raises ValueError for what the library would pass over."""
    for stage, groups in recipe.items():
        if not str(stage).endswith("_stage"):
            near = difflib.get_close_matches(str(stage), _KNOWN, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"the recipe has {stage!r}; expected stages (NAME_stage) or modifiers{hint}")
        if not isinstance(groups, Mapping):
            raise ValueError(f"{stage} is {_shown(groups)}; expected groups of modifiers (NAME_modifiers)")
        for group, entries in groups.items():
            if not str(group).endswith("_modifiers"):
                raise ValueError(f"{stage} has {group!r}; expected groups of modifiers (NAME_modifiers)")
            if not isinstance(entries, Mapping):
                raise ValueError(f"{stage}.{group} is {_shown(entries)}; expected modifiers by name")
            for name, arguments in entries.items():
                if name not in _KNOWN:
                    near = difflib.get_close_matches(str(name), _KNOWN, n=1)
                    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(_KNOWN))}"
                    raise ValueError(f"{stage}.{group} has no modifier {name!r} to offer; {hint}")
                if not isinstance(arguments, Mapping):
                    raise ValueError(f"{stage}.{group}.{name} is {_shown(arguments)}; expected its arguments by name")
                yield str(name), arguments


def sparsity_of(recipe: Mapping[str, Any]) -> float | list[int] | None:
    """Return how sparse a recipe leaves the weights: a share, [n, m] for n zeros in every m, None where it does not.

    A share that differs from layer to layer is told as its mean. REAPPruningModifier takes experts out and leaves the
    weights of the others as they are, ConstantPruningModifier keeps the zeros that there are.
    """
    found: float | list[int] | None = None
    for name, arguments in modifiers(recipe):
        if name in FILLERS:
            found = None
        elif name in ("MagnitudePruningModifier", "SparseGPTModifier", "WandaPruningModifier"):
            told = arguments.get("final_sparsity" if name.startswith("Magnitude") else "sparsity")
            zeros, _, of = str(arguments.get("mask_structure", "")).partition(":")
            if zeros.isdigit() and of.isdigit() and int(of):
                found = [int(zeros), int(of)]
            elif isinstance(told, list) and told and all(isinstance(one, (int, float)) for one in told):
                found = round(sum(told) / len(told), 6)
            elif isinstance(told, (int, float)) and not isinstance(told, bool):
                found = float(told) or None
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
