"""Optimizers and learning-rate schedules by the names of TrainingArguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drupe.core.errors import ConfigError
from drupe.plugins.tuning.arguments import TrainingArgs
from drupe.plugins.tuning.library_names import parsed_arguments

__all__ = ["GPU_ONLY", "make_optimizer", "make_scheduler", "optimized", "warmup_steps"]

GPU_ONLY = ("paged_adamw_8bit",)
"""Optimizers that page a GPU's memory, so that on a CPU they would be others than was asked for."""


_ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit", "paged_adamw", "sgd", "adagrad", "rmsprop")
"""Optimizers that treat every number alone: what is trained may lie in one piece."""


def make_optimizer(model: Any, args: TrainingArgs, device: Any) -> tuple[Any, list[str]]:
    """Return an optimizer over the trainable parameters, and notices. Biases and norms are not decayed.

    Every parameter has a gradient of zeros afterwards, which keeps its place in memory. Where the optimizer allows it,
    parameters and gradients are made views of few long tensors: hundreds of small ones cost a GPU more time in launches
    than in arithmetic.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices, others = [p for _, p in named if p.ndim >= 2], [p for _, p in named if p.ndim < 2]
    join = _in_one_piece if args.optim in _ELEMENTWISE else _with_gradients
    groups = [
        {"params": join(matrices), "weight_decay": args.weight_decay},
        {"params": join(others), "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    name, notices = args.optim, []
    if name in ("paged_adamw_32bit", "paged_adamw") and device.type != "cuda":
        notices.append(
            f"training_args.optim {name} pages a GPU's memory; on a CPU adamw_torch_fused does the same sums"
        )
        name = "adamw_torch_fused"
    try:
        return _built(name, groups, args), notices
    except (TypeError, ValueError, RuntimeError) as fault:
        if not args.optim_args:
            raise
        raise ConfigError(f"training_args.optim_args {args.optim_args!r}: {name} refuses them: {fault}") from None


def _built(name: str, groups: Sequence[Any], args: TrainingArgs) -> Any:
    import torch

    extra = parsed_arguments(args.optim_args)
    adam: dict[str, Any] = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }
    if name.startswith(("adamw_torch", "paged", "adamw")):
        if name in ("adamw_torch", "adamw_torch_fused"):
            return torch.optim.AdamW(groups, fused=True, **{**adam, **extra})
        import bitsandbytes.optim as bnb

        kinds = {"adamw_bnb_8bit": "AdamW8bit", "adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}
        kind = kinds.get(name, "PagedAdamW32bit")
        return getattr(bnb, kind)(groups, **{**adam, **extra})
    if name == "adafactor":
        from transformers.optimization import Adafactor

        defaults = {"scale_parameter": False, "relative_step": False}
        return Adafactor(groups, lr=args.learning_rate, **{**defaults, **extra})
    kinds_of_torch = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rmsprop": torch.optim.RMSprop}
    return kinds_of_torch[name](groups, lr=args.learning_rate, **extra)


def _with_gradients(parameters: Sequence[Any]) -> list[Any]:
    import torch

    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    return list(parameters)


def _in_one_piece(parameters: Sequence[Any]) -> list[Any]:
    """Make the parameters of each type views of one tensor, their gradients of another; return the long tensors."""
    import torch

    pieces = []
    for dtype in sorted({p.dtype for p in parameters}, key=str):
        alike = [p for p in parameters if p.dtype == dtype]
        piece = torch.nn.Parameter(torch.cat([p.detach().reshape(-1) for p in alike]))
        piece.grad = torch.zeros_like(piece)
        start = 0
        for parameter in alike:
            end = start + parameter.numel()
            parameter.data = piece.data[start:end].view(parameter.shape)
            parameter.grad = piece.grad[start:end].view(parameter.shape)
            start = end
        pieces.append(piece)
    return pieces


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


def optimized(optimizer: Any) -> list[Any]:
    """Return the tensors that the optimizer changes, each with its gradient."""
    return [p for group in optimizer.param_groups for p in group["params"]]
