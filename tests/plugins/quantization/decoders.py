"""Tiny decoders of several architectures, and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from drupe.core.model import Model
from drupe.plugins.huggingface.loading import load_model
from drupe.testing import tiny_causal_lm

IDS = torch.as_tensor(np.random.default_rng(3).integers(0, 250, (2, 24)))


def logits(model: Model) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = load_model(model, dtype="float32")(input_ids=IDS).logits.numpy()
    return found


def decoder(folder: Path, kind: str = "Llama", **config: Any) -> Model:
    """A decoder of one of several architectures, with the tiny Llama's tokenizer; its norms' gains differ."""
    import transformers

    made = tiny_causal_lm(folder)
    values = {
        "vocab_size": 264, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 258, "bos_token_id": 256,
        "eos_token_id": 257,
    }  # fmt: skip
    torch.manual_seed(0)
    made_by = getattr(transformers, f"{kind}ForCausalLM")
    network = made_by(made_by.config_class(**{**values, **config}))
    for name, parameter in network.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 2)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    network.save_pretrained(folder)
    return Model.from_dir("hf", folder, {**made.attributes, "architecture": f"{kind}ForCausalLM"})
