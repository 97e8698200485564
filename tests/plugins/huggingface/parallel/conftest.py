"""Tiny decoders of several architectures, and one of them split over two ranks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from drupe.core.model import Model
from drupe.testing import tiny_causal_lm
from tests.plugins.onnx.graphs import run_pass

SIZES: dict[str, Any] = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 256, "eos_token_id": 257,
    "pad_token_id": 258,
}  # fmt: skip


def python_blocks() -> list[str]:
    """The Python of the page about models over several devices: a class with a plan, and a program for torchrun."""
    page = Path(__file__).parents[4] / "docs" / "tensor-parallel.md"
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def decoder(folder: Path, architecture: str, **config: Any) -> Model:
    """A decoder with random weights, biases and norms too, so that a lost one shows."""
    import torch
    import transformers

    made = getattr(transformers, architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = made(made.config_class(**{**SIZES, **config}))
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.5)
        net.save_pretrained(folder)
    known = {"task": "text-generation", "architecture": architecture, "model_type": net.config.model_type}
    return Model.from_dir("hf", folder, known)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A Llama of four heads, two of keys and values."""
    return tiny_causal_lm(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def halves(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The Llama split over two ranks."""
    return run_pass("PyTorchTensorParallel", tiny, tmp_path_factory.mktemp("halves"), world_size=2)
