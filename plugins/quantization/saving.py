"""Writes a decoder whose float weights were changed as transformers loads it, with its tokenizer and other files."""

from __future__ import annotations

from typing import Any

from drupe.core.context import PassContext
from drupe.core.model import Model

__all__ = ["save_decoder"]

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")


def save_decoder(network: Any, stored: Any, model: Model, context: PassContext) -> None:
    """Write a network, which is changed to the torch dtype `stored`, and what lies beside the source's weights."""
    from drupe.plugins.huggingface.files import copy_tree
    from drupe.plugins.huggingface.scrub import scrub_folder

    network.to("cpu", stored)
    network.config._name_or_path = ""
    network.save_pretrained(context.output_dir)
    copy_tree(
        model.folder,
        context.output_dir,
        context,
        lambda path: not path.name.endswith(_WEIGHTS) and not (context.output_dir / path.name).exists(),
    )
    context.report.pop("left_out", None)
    scrub_folder(context.output_dir)
