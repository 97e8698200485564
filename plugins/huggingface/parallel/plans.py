"""Which architectures transformers has a tensor-parallel plan for, and which numbers of ranks fit a model. Light."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from typing import Any

from drupe.core.errors import ConfigError
from drupe.core.introspect import module_source

__all__ = ["base_plan", "check_plan", "check_sizes", "copies_of_heads"]

_ROOTS = ("PreTrainedConfig", "PretrainedConfig")


def base_plan(model_type: str) -> Mapping[str, str] | None:
    """Return a model type's plan as the installed transformers states it, {} where it has none; None: can't be read.

    The library's source is read and not imported.
    """
    folder = model_type.replace("-", "_")
    try:
        path = module_source(f"transformers.models.{folder}.configuration_{folder}")
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (LookupError, OSError, SyntaxError):
        return None
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        values = {name: value for name, value in map(_assigned, node.body) if name}
        told = values.get("model_type")
        if not (isinstance(told, ast.Constant) and told.value == model_type):
            continue
        if "base_model_tp_plan" in values:
            try:
                plan = ast.literal_eval(values["base_model_tp_plan"] or ast.Constant(None))
            except ValueError:
                return None
            return plan if isinstance(plan, dict) else {}
        own = all(isinstance(base, ast.Name) and base.id in _ROOTS for base in node.bases)
        # A config of several has its plan in one of them; one on another's class may inherit a plan.
        return {} if own and "sub_configs" not in values else None
    return None


def _assigned(node: ast.stmt) -> tuple[str, ast.expr | None]:
    target = (
        node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
    )
    return (
        (target.id, node.value)
        if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign)
        else ("", None)
    )


def check_plan(name: str, model_type: str | None) -> None:
    """Raise ConfigError where the installed transformers has no plan for a model type."""
    if model_type is not None and base_plan(model_type) == {}:
        raise ConfigError(
            f"{name}: the installed transformers has no tensor-parallel plan for {model_type}; name a class of yours "
            "that has one as class_name (see docs/tensor-parallel.md), or leave the model whole"
        )


def check_sizes(name: str, sizes: Mapping[str, Any], plan: Mapping[str, str], world_size: int) -> None:
    """Raise ConfigError where heads or the MLP's width don't divide among the ranks.

    sizes: what config.json says of the decoder. plan: which layers are split.
    """
    faults = [fault for fault in (_fault(sizes, plan, world_size, part) for part in ("heads", "width")) if fault]
    if faults:
        heads = sizes.get("num_attention_heads")
        most = heads if isinstance(heads, int) else 64
        fits = [
            str(size)
            for size in range(2, most + 1)
            if not any(_fault(sizes, plan, size, part) for part in ("heads", "width"))
        ]
        told = f"world_size may be {', '.join(fits)}" if fits else "there is no number of ranks that they divide by"
        raise ConfigError(f"{name}: world_size {world_size}: {' and '.join(faults)}; {told}")


def _fault(sizes: Mapping[str, Any], plan: Mapping[str, str], ranks: int, part: str) -> str | None:
    if part == "width":
        width = sizes.get("intermediate_size")
        # Experts have a width of their own, and an architecture with experts need not have layers without.
        split = any("mlp" in key.split(".") for key in plan) and not any("experts" in key for key in plan)
        if isinstance(width, int) and width % ranks and split:
            return f"intermediate_size {width} does not divide by {ranks}"
        return None
    heads = sizes.get("num_attention_heads")
    if not isinstance(heads, int) or not any(_is_attention(key) and style == "colwise" for key, style in plan.items()):
        return None
    if heads % ranks:
        return f"{heads} attention heads do not divide by {ranks}"
    groups = sizes.get("num_key_value_heads")
    if not isinstance(groups, int) or groups % ranks == 0:
        return None
    if ranks % groups:
        return f"{groups} heads of keys and values neither divide by {ranks} nor {ranks} by {groups}"
    if not {"k_proj", "v_proj"} <= {key.rsplit(".", 1)[-1] for key, style in plan.items() if style == "colwise"}:
        return f"{groups} heads of keys and values, in one layer with the queries, do not divide by {ranks}"
    return None


def _is_attention(key: str) -> bool:
    return any("attn" in step or "attention" in step for step in key.split("."))


def copies_of_heads(sizes: Mapping[str, Any], plan: Mapping[str, str], world_size: int) -> int:
    """Return how many copies of each head of keys and values there are to be, so that every rank has one; mostly 1."""
    groups = sizes.get("num_key_value_heads")
    split = any(key.rsplit(".", 1)[-1] == "k_proj" and style == "colwise" for key, style in plan.items())
    return world_size // math.gcd(groups, world_size) if isinstance(groups, int) and groups and split else 1
