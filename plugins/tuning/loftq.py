"""LoftQ (arXiv 2310.08659): initial values that make up for the error of a base rounded to four bits.

Alternates Q = nf4(W - s B A) and s B A = the best rank-r approximation of W - Q. Runs on CPU and GPU.
"""

from __future__ import annotations

from typing import Any

__all__ = ["initialise"]


def initialise(model: Any, iterations: int, seed: int) -> int:
    """Set base weights to their four-bit values (kept as floats) and adapters to make up for it; return how many."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from peft.tuners.lora.layer import Linear

    torch.manual_seed(seed)
    count = 0
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, Linear):
                continue
            base = module.get_base_layer()
            weight = base.weight.data.float()
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            scale, rank = module.scaling["default"], a.shape[0]
            low = torch.zeros_like(weight)
            for _ in range(iterations):
                packed, state = quantize_4bit((weight - low).contiguous(), quant_type="nf4")
                rounded = dequantize_4bit(packed, state).to(weight)
                left, values, right = torch.svd_lowrank(weight - rounded, q=min(rank + 8, *weight.shape), niter=4)
                root = values[:rank].sqrt()
                low = (left[:, :rank] * values[:rank]) @ right[:, :rank].t()
                a.copy_(root[:, None] * right[:, :rank].t())
                b.copy_(left[:, :rank] * root / scale)
            base.weight.data.copy_(rounded)
            count += 1
    return count
