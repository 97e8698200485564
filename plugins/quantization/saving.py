"""Writes what lies beside a model's weights, and decoders whose float weights were changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drupe.core.context import PassContext
from drupe.core.model import Model

__all__ = ["copy_beside", "save_decoder"]

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")


def copy_beside(model: Model, context: PassContext) -> None:
    """Copy what lies beside the source's weights (tokenizer, …), except for files that the pass has written itself."""
    from drupe.plugins.huggingface.files import copy_tree, plain_files

    def wanted(path: Path) -> bool:
        return not path.name.endswith(_WEIGHTS) and not (context.output_dir / path).exists()

    # There may be nothing: a model needs no tokenizer beside it.
    if any(wanted(path) for path in plain_files(model.folder)):
        copy_tree(model.folder, context.output_dir, context, wanted)
        context.report.pop("left_out", None)


def save_decoder(network: Any, stored: Any, model: Model, context: PassContext) -> None:
    """Write a network, which is changed to the torch dtype `stored`, and what lies beside the source's weights."""
    from drupe.plugins.huggingface.scrub import scrub_folder

    network.to("cpu", stored)
    network.save_pretrained(context.output_dir)
    copy_beside(model, context)
    scrub_folder(context.output_dir)
