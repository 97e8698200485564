"""Low-rank linear layers with fewer passes over memory than peft's general form: same numbers, same gradients.

y = x W^T + s (x A^T) B^T. The update is added into the base layer's output in place, and in the backward pass into the
gradient of the input; only x and x A^T are kept. A and B stay float32 and are rounded to the compute type on use. A
four-bit W is unpacked where it is used, and never kept. Both directions are operators of their own, so that compiled
layers hold them as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from drupe.plugins.tuning.elastic import Ranks

__all__ = ["fuse"]


def fuse(model: Any, adapter: str = "default", ranks: Ranks | None = None) -> int:
    """Give every plain low-rank layer of a peft model the short forward; return how many there were.

    ranks: says which ranks each token uses, for elastic adapters.

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
        module.forward = MethodType(_forward(module, adapter, ranks), module)
        count += 1
    return count


def _forward(module: Any, adapter: str, ranks: Ranks | None) -> Callable[..., Any]:
    import torch

    base = module.get_base_layer()
    packing = _packing(base)
    operator = _operator()
    a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
    scale = float(module.scaling[adapter])
    compute = base.compute_dtype if packing[0] is not None else base.weight.dtype
    compute = compute if isinstance(compute, torch.dtype) else None

    def forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        if compute is not None and flat.dtype != compute:
            flat = flat.to(compute)
        out, _ = operator(flat, base.weight, base.bias, a, b, scale, None if ranks is None else ranks.mask, *packing)
        return out.view(*x.shape[:-1], out.shape[-1]).to(x.dtype)

    return forward


_Packing = tuple[Any, Any, Any, Any, int, int, int, str]


def _packing(base: Any) -> _Packing:
    """Return what unpacking a four-bit weight takes: absmax, its scales, code, offset, block, rows, columns, type.

    Nothing for a float weight.
    """
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return None, None, None, None, 0, 0, 0, ""
    nested = (state.state2.absmax, state.state2.code, state.offset.reshape(())) if state.nested else (None, None, None)
    return (state.absmax, *nested, state.blocksize, state.shape[0], state.shape[1], state.quant_type)


def _matrix(weight: Any, packing: Any, dtype: Any) -> Any:
    """Return the weight as a float matrix."""
    import torch

    absmax, scales, code, offset, block, rows, columns, kind = packing
    if absmax is None:
        return weight
    if scales is not None:
        absmax = torch.ops.bitsandbytes.dequantize_blockwise(absmax, scales, code, 256, torch.float32).add_(offset)
    return torch.ops.bitsandbytes.dequantize_4bit(weight, absmax, block, kind, [rows, columns], dtype)


_cached: Any = None


def _operator() -> Any:
    """Define the operators on first use: torch is not imported with the module."""
    global _cached
    if _cached is not None:
        return _cached
    import torch

    packed = "Tensor? absmax, Tensor? scales, Tensor? code, Tensor? offset, int block, int rows, int columns, str kind"

    @torch.library.custom_op(  # type: ignore[untyped-decorator]
        "drupe::low_rank",
        mutates_args=(),
        schema="(Tensor x, Tensor weight, Tensor? bias, Tensor a, Tensor b, float scale, Tensor? mask, "
        f"{packed}) -> (Tensor, Tensor)",
    )
    def low_rank(x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float, mask: Any, *packing: Any) -> Any:
        out = torch.nn.functional.linear(
            x, _matrix(weight, packing, x.dtype), None if bias is None else bias.to(x.dtype)
        )
        low = x @ a.to(x.dtype).t()
        if mask is not None:
            low.mul_(mask)
        out.addmm_(low, b.to(x.dtype).t(), alpha=scale)
        return out, low

    @low_rank.register_fake  # type: ignore[untyped-decorator]
    def _(x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float, mask: Any, *packing: Any) -> Any:
        return x.new_empty(x.shape[0], b.shape[0]), x.new_empty(x.shape[0], a.shape[0])

    @torch.library.custom_op(  # type: ignore[untyped-decorator]
        "drupe::low_rank_backward",
        mutates_args=(),
        schema="(Tensor slope, Tensor x, Tensor low, Tensor weight, Tensor a, Tensor b, float scale, Tensor? mask, "
        "bool wants_x, "
        f"{packed}) -> (Tensor, Tensor, Tensor)",
    )
    def low_rank_backward(
        slope: Any, x: Any, low: Any, weight: Any, a: Any, b: Any, scale: float, mask: Any, wants_x: bool, *packing: Any
    ) -> Any:
        back = (slope @ b.to(slope.dtype)).mul_(scale)
        if mask is not None:
            back.mul_(mask)
        grad = slope.new_empty(0)
        if wants_x:
            grad = slope @ _matrix(weight, packing, slope.dtype)
            grad.addmm_(back, a.to(slope.dtype))
        return grad, (back.t() @ x).to(a.dtype), (slope.t() @ low).mul_(scale).to(b.dtype)

    @low_rank_backward.register_fake  # type: ignore[untyped-decorator]
    def _(
        slope: Any, x: Any, low: Any, weight: Any, a: Any, b: Any, scale: float, mask: Any, wants_x: bool, *packing: Any
    ) -> Any:
        return slope.new_empty(x.shape if wants_x else (0,)), torch.empty_like(a), torch.empty_like(b)

    def keep(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _bias, a, b, scale, mask, *packing = inputs
        ctx.save_for_backward(x, output[1], weight, a, b, mask, *packing[:4])
        ctx.scale, ctx.packing = scale, packing[4:]
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, slope: Any, _low: Any) -> Any:
        x, low, weight, a, b, mask, *tensors = ctx.saved_tensors
        wants_x = ctx.needs_input_grad[0]
        grad, grad_a, grad_b = low_rank_backward(
            slope.contiguous(), x, low, weight, a, b, ctx.scale, mask, wants_x, *tensors, *ctx.packing
        )
        return grad if wants_x else None, None, None, grad_a, grad_b, *[None] * 10

    low_rank.register_autograd(backward, setup_context=keep)
    _cached = low_rank
    return _cached
