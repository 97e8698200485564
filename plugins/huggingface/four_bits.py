"""Holds a loaded model's linear layers in bitsandbytes' four bits, where transformers can't do so while loading."""

from __future__ import annotations

from typing import Any

__all__ = ["pack"]


def pack(network: Any, config: Any) -> None:
    """Exchange a network's linear layers, its output layer excepted, for four-bit ones, as transformers would.

    config: a transformers.BitsAndBytesConfig. The weights are rounded when the network is moved to a device.
    """
    import bitsandbytes
    import torch

    head = network.get_output_embeddings()
    layers = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    for name, layer in layers:
        packed = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            compute_dtype=config.bnb_4bit_compute_dtype,
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
            device="meta",
        )
        packed.weight = bitsandbytes.nn.Params4bit(
            layer.weight.data,
            requires_grad=False,
            quant_type=config.bnb_4bit_quant_type,
            compress_statistics=config.bnb_4bit_use_double_quant,
            module=packed,
        )
        packed.bias = layer.bias
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, packed)
    # peft looks here before it takes its own layers for four bits.
    network.is_loaded_in_4bit = True
