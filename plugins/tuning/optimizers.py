"""Optimizers and learning-rate schedules by the names of TrainingArguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drupe.core.errors import ConfigError
from drupe.plugins.tuning.arguments import TrainingArgs

__all__ = ["GPU_ONLY", "make_optimizer", "make_scheduler", "warmup_steps"]

GPU_ONLY = ("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit")
"""Optimizers whose state is packed by GPU kernels."""


def make_optimizer(model: Any, args: TrainingArgs, device: Any) -> tuple[Any, list[str]]:
    """Return an optimizer over the trainable parameters, and notices. Biases and norms are not decayed."""
    import torch

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": args.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    extra = _arguments(args.optim_args)
    adam: dict[str, Any] = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }
    name, notices = args.optim, []
    if name in ("paged_adamw_32bit", "paged_adamw") and device.type != "cuda":
        notices.append(
            f"training_args.optim {name} pages a GPU's memory; on a CPU adamw_torch_fused does the same sums"
        )
        name = "adamw_torch_fused"
    if name.startswith(("adamw_torch", "paged", "adamw")):
        if name in ("adamw_torch", "adamw_torch_fused"):
            return torch.optim.AdamW(groups, fused=True, **{**adam, **extra}), notices
        import bitsandbytes.optim as bnb

        kinds = {"adamw_bnb_8bit": "AdamW8bit", "adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}
        kind = kinds.get(name, "PagedAdamW32bit")
        return getattr(bnb, kind)(groups, **{**adam, **extra}), notices
    if name == "adafactor":
        from transformers.optimization import Adafactor

        defaults = {"scale_parameter": False, "relative_step": False}
        return Adafactor(groups, lr=args.learning_rate, **{**defaults, **extra}), notices
    kinds_of_torch = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rmsprop": torch.optim.RMSprop}
    return kinds_of_torch[name](groups, lr=args.learning_rate, **extra), notices


def _arguments(text: str | None) -> dict[str, Any]:
    import ast

    result: dict[str, Any] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"training_args.optim_args {text!r}: expected 'key=value,key=value', found {part!r}")
        try:
            result[name.strip()] = ast.literal_eval(value.strip())
        except (SyntaxError, ValueError):
            result[name.strip()] = value.strip()
    return result


def warmup_steps(args: TrainingArgs, total: int) -> int:
    """Return the warm-up in steps; a value below 1 is a share of all steps, rounded up."""
    import math

    return math.ceil(args.warmup_steps * total) if args.warmup_steps < 1 else int(args.warmup_steps)


def make_scheduler(optimizer: Any, args: TrainingArgs, total: int) -> Any:
    """Return transformers' schedule of that name over `total` steps."""
    from transformers import get_scheduler

    try:
        return get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=warmup_steps(args, total),
            num_training_steps=total,
            scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
        )
    except TypeError as fault:
        raise ConfigError(
            f"training_args.lr_scheduler_kwargs: {args.lr_scheduler_type} refuses them: {fault}"
        ) from None


def trainable(model: Any) -> Sequence[Any]:
    """Return the parameters that take gradients."""
    return [p for p in model.parameters() if p.requires_grad]
