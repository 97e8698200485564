"""What PyTorch's compiler, schedules and optimizers take, read from the installed sources without importing them."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from typing import Any

from drupe.core.introspect import function_parameters, module_source

__all__ = ["compile_modes", "optimizer_arguments", "parsed_arguments", "schedule_arguments"]

_SCHEDULES = {
    "linear": "get_linear_schedule_with_warmup",
    "cosine": "get_cosine_schedule_with_warmup",
    "cosine_with_restarts": "get_cosine_with_hard_restarts_schedule_with_warmup",
    "polynomial": "get_polynomial_decay_schedule_with_warmup",
    "constant": "get_constant_schedule",
    "inverse_sqrt": "get_inverse_sqrt_schedule",
    "cosine_with_min_lr": "get_cosine_with_min_lr_schedule_with_warmup",
    "cosine_warmup_with_min_lr": "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
    "warmup_stable_decay": "get_wsd_schedule",
}
_OPTIMIZERS = {
    "adamw_torch": ("torch.optim.adamw", "AdamW"),
    "adamw_torch_fused": ("torch.optim.adamw", "AdamW"),
    "adamw_bnb_8bit": ("bitsandbytes.optim.adamw", "AdamW8bit"),
    "adamw_8bit": ("bitsandbytes.optim.adamw", "AdamW8bit"),
    "paged_adamw_32bit": ("bitsandbytes.optim.adamw", "PagedAdamW32bit"),
    "paged_adamw_8bit": ("bitsandbytes.optim.adamw", "PagedAdamW8bit"),
    "paged_adamw": ("bitsandbytes.optim.adamw", "PagedAdamW32bit"),
    "adafactor": ("transformers.optimization", "Adafactor"),
    "sgd": ("torch.optim.sgd", "SGD"),
    "adagrad": ("torch.optim.adagrad", "Adagrad"),
    "rmsprop": ("torch.optim.rmsprop", "RMSprop"),
}
_GIVEN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "params", "lr", "weight_decay", "fused"}
"""Arguments that other training arguments say."""


@cache
def compile_modes() -> tuple[str, ...]:
    """Return the modes of torch.compile; empty where PyTorch is not installed or lists them otherwise."""
    try:
        tree = ast.parse(module_source("torch._inductor").read_bytes())
    except (LookupError, OSError, SyntaxError):
        return ()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Dict):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "mode_options" for target in targets):
                return tuple(str(key.value) for key in node.value.keys if isinstance(key, ast.Constant))
    return ()


def schedule_arguments(name: str) -> frozenset[str] | None:
    """Return what lr_scheduler_kwargs may hold for a schedule; None where it can't be read."""
    # transformers hands the warm-up of a constant rate nothing else.
    return frozenset() if name == "constant_with_warmup" else _free("transformers.optimization", _SCHEDULES.get(name))


def optimizer_arguments(name: str) -> frozenset[str] | None:
    """Return what optim_args may hold for an optimizer; None where it can't be read."""
    module, kind = _OPTIMIZERS.get(name, ("", ""))
    return _free(module, f"{kind}.__init__") if kind else None


def _free(module: str, function: str | None) -> frozenset[str] | None:
    if function is None:
        return None
    try:
        return frozenset(function_parameters(module, function)) - _GIVEN
    except LookupError:
        return None


def parsed_arguments(text: str | None) -> Mapping[str, Any]:
    """Return 'key=value,key=value' as a mapping. Raises ValueError for anything else."""
    result: dict[str, Any] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: expected 'key=value,key=value', found {part!r}")
        try:
            result[name.strip()] = ast.literal_eval(value.strip())
        except (SyntaxError, ValueError):
            result[name.strip()] = value.strip()
    return result
