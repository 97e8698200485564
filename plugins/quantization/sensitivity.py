"""Which layers' rounding changes a model's answers most, by the gradient of their divergence from its own."""

from __future__ import annotations

from typing import Any

from drupe.core.context import PassContext
from drupe.core.model import Model

__all__ = ["sensitive_layers"]


def sensitive_layers(
    pass_name: str,
    model: Model,
    context: PassContext,
    *,
    data: str | None,
    sequences: tuple[int, int],
    bits: tuple[int, int],
    group_size: int,
    symmetric: bool,
    ratio: float,
) -> set[str]:
    """Return the layers that are worth more bits, up to `ratio` of the weights, and the head.

    data: a data config, or None for text that the model writes. sequences: how many, and tokens of each. bits: few and
    more. A layer's worth is the first-order change of the Kullback-Leibler divergence between the rounded model's
    next-token distribution and its own when the layer gets more bits, for each weight.
    """
    import torch

    from drupe.plugins.huggingface.loading import load_model
    from drupe.plugins.quantization.calibration import calibration_tokens
    from drupe.plugins.quantization.layers import Scheme, linear_layers
    from drupe.plugins.quantization.rtn import round_layer

    torch.set_num_threads(context.resources.thread_count)
    network = load_model(model, dtype="float32")
    tokens = calibration_tokens(pass_name, network, model, data, *sequences, context)
    with torch.inference_mode():
        own = [torch.log_softmax(network(input_ids=ids, use_cache=False).logits, -1).clone() for ids in tokens]
    layers = linear_layers(network, lm_head=False)
    gains: dict[str, Any] = {}
    for number, (name, layer) in enumerate(layers.items()):
        context.progress(number, len(layers), f"rounding {name}")
        width = layer.in_features
        group = width if group_size == -1 or width % group_size else group_size
        low, high = (
            round_layer(layer.weight.detach(), Scheme(width_of_grid, group, symmetric), search=False).weights()
            for width_of_grid in bits
        )
        gains[name] = high - low
        layer.weight.data = low
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    for number, (ids, expected) in enumerate(zip(tokens, own, strict=True)):
        context.progress(number, len(tokens), "measuring")
        given = torch.log_softmax(network(input_ids=ids, use_cache=False).logits, -1)
        divergence = (expected.exp() * (expected - given)).sum(-1).mean()
        divergence.backward()
    worth = {
        name: -float((layer.weight.grad * gains[name]).sum()) / layer.weight.numel() for name, layer in layers.items()
    }
    room = ratio * sum(layer.weight.numel() for layer in layers.values())
    chosen: set[str] = set()
    for name in sorted(worth, key=lambda key: (-worth[key], key)):
        size = layers[name].weight.numel()
        if size <= room:
            chosen.add(name)
            room -= size
    return {*chosen, "lm_head"}
