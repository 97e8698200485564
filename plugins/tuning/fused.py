"""Low-rank linear layers with fewer passes over memory than peft's general form: same numbers, same gradients.

y = x W^T + s (x A^T) B^T. The update is added into the base layer's output in place, and in the backward pass into the
gradient of the input; only x and x A^T are kept. A and B stay float32 and are rounded to the compute type on use.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

__all__ = ["fuse"]


def fuse(model: Any, adapter: str = "default") -> int:
    """Give every plain low-rank layer of a peft model the short forward; return how many there were.

    Layers with dropout, DoRA, a bias of their own, several adapters or another base than a linear layer keep peft's.
    """
    import torch
    from peft.tuners.lora.layer import LoraLayer

    count = 0
    for module in model.modules():
        if not isinstance(module, LoraLayer) or module.active_adapters != [adapter] or adapter not in module.lora_A:
            continue
        base = module.get_base_layer()
        plain = type(base) is torch.nn.Linear
        if not plain and type(base).__name__ != "Linear4bit":
            continue
        if (
            getattr(module, "lora_variant", None)
            or not isinstance(module.lora_dropout[adapter], torch.nn.Identity)
            or module.lora_B[adapter].bias is not None
            or base.weight.requires_grad
            or module.merged
        ):
            continue
        module.forward = MethodType(_forward(adapter, plain), module)
        count += 1
    return count


def _forward(adapter: str, plain: bool) -> Callable[..., Any]:
    def forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        base = self.get_base_layer()
        state = None if plain else base.weight.quant_state
        if not plain and x.dtype != base.compute_dtype and base.compute_dtype is not None:
            x = x.to(base.compute_dtype)
        return _function().apply(
            x,
            base.weight,
            state,
            base.bias,
            self.lora_A[adapter].weight,
            self.lora_B[adapter].weight,
            self.scaling[adapter],
        )

    return forward


_cached: Any = None


def _function() -> Any:
    """Define the autograd function on first use: torch is not imported with the module."""
    global _cached
    if _cached is not None:
        return _cached
    import torch

    def matrix(weight: Any, state: Any, dtype: Any) -> Any:
        if state is None:
            return weight
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight, state).to(dtype)

    class LowRankLinear(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, state: Any, bias: Any, a: Any, b: Any, scale: float) -> Any:
            flat = x.reshape(-1, x.shape[-1])
            out = torch.nn.functional.linear(
                flat, matrix(weight, state, x.dtype), None if bias is None else bias.to(x.dtype)
            )
            low = flat @ a.to(x.dtype).t()
            out.addmm_(low, b.to(x.dtype).t(), alpha=scale)
            ctx.save_for_backward(flat, low, weight, a, b)
            ctx.state, ctx.scale = state, scale
            return out.view(*x.shape[:-1], out.shape[-1])

        @staticmethod
        def backward(ctx: Any, upstream: Any) -> Any:
            flat, low, weight, a, b = ctx.saved_tensors
            slope = upstream.reshape(-1, upstream.shape[-1])
            back = (slope @ b.to(slope.dtype)).mul_(ctx.scale)
            grad = None
            if ctx.needs_input_grad[0]:
                grad = slope @ matrix(weight, ctx.state, slope.dtype)
                grad.addmm_(back, a.to(slope.dtype))
                grad = grad.view(*upstream.shape[:-1], grad.shape[-1])
            grad_a = (back.t() @ flat).to(a.dtype)
            grad_b = (slope.t() @ low).mul_(ctx.scale).to(b.dtype)
            return grad, None, None, None, grad_a, grad_b, None

    _cached = LowRankLinear
    return _cached
