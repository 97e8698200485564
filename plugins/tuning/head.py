"""The loss at the answer tokens, with logits computed only there and never all at once."""

from __future__ import annotations

from typing import Any

__all__ = ["chunk_rows", "head_loss"]


def chunk_rows(vocabulary: int, device_type: str) -> int:
    """How many positions' logits are held at once: about 64 MiB of float32 on a CPU, 256 MiB on a GPU."""
    room = (256 if device_type == "cuda" else 64) * 2**20
    return max(16, room // (4 * vocabulary))


def head_loss(hidden: Any, weight: Any, bias: Any, targets: Any, smoothing: float = 0.0) -> Any:
    """Return the summed cross-entropy of `targets` (n,) under softmax(hidden @ weight.T + bias); hidden is (n, width).

    Targets below 0 count nothing.
    weight (vocabulary, width) is frozen: only the gradient of hidden is formed, chunk by chunk in the forward pass, so
    that memory holds the logits of one chunk and nothing is computed twice.
    """
    return _function().apply(hidden, weight, bias, targets, smoothing)


_cached: Any = None


def _function() -> Any:
    """Define the autograd function on first use: torch is not imported with the module."""
    global _cached
    if _cached is not None:
        return _cached
    import torch

    class FrozenHeadLoss(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any, smoothing: float) -> Any:
            wanted = ctx.needs_input_grad[0]
            grad = torch.empty_like(hidden) if wanted else None
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            step = chunk_rows(weight.shape[0], hidden.device.type)
            for start in range(0, hidden.shape[0], step):
                part = hidden[start : start + step]
                logits = torch.nn.functional.linear(part, weight, bias).float()
                goal = targets[start : start + step, None]
                counts = goal >= 0
                goal = goal.clamp(min=0)
                lse = torch.logsumexp(logits, dim=-1, keepdim=True)
                loss = lse - logits.gather(1, goal)
                if smoothing:
                    loss = (1 - smoothing) * loss + smoothing * (lse - logits.mean(-1, keepdim=True))
                total += (loss * counts).sum()
                if grad is not None:
                    slope = logits.sub_(lse).exp_()
                    if smoothing:
                        slope.sub_(smoothing / weight.shape[0])
                    slope.scatter_add_(1, goal, torch.full_like(goal, smoothing - 1.0, dtype=slope.dtype))
                    slope.mul_(counts)
                    torch.mm(slope.to(weight.dtype), weight, out=grad[start : start + step])
            ctx.save_for_backward(grad)
            return total

        @staticmethod
        def backward(ctx: Any, upstream: Any) -> Any:
            (grad,) = ctx.saved_tensors
            return grad * upstream.to(grad.dtype), None, None, None, None

    _cached = FrozenHeadLoss
    return _cached
