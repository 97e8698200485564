"""Reads and writes the OpenVINO IR in a model's folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drupe import ConfigError, Model, PassContext

from drupe_openvino.libraries import openvino

__all__ = ["WEIGHT_SUFFIXES", "ir_name", "replaced", "save_ir", "single_file"]

WEIGHT_SUFFIXES = (
    ".safetensors",
    ".safetensors.index.json",
    ".onnx",
    ".onnx.data",
    ".onnx_data",
    ".pt",
    ".bin",
    ".gguf",
)
"""Files that hold a model's weights or graph; tokenizer and configuration stay beside a converted model."""


def single_file(model: Model, suffix: str) -> str:
    """Return the one file at the model's root that ends with suffix. Raises ConfigError when there is none, or more."""
    names = [name for name in model.files if name.endswith(suffix) and "/" not in name]
    if len(names) != 1:
        found = ", ".join(sorted(names)) or "none"
        raise ConfigError(f"the {model.kind} model should hold one {suffix} file; it holds: {found}")
    return names[0]


def ir_name(model: Model) -> str:
    """Return the IR's file name, less .xml."""
    return single_file(model, ".xml").removesuffix(".xml")


def save_ir(graph: Any, folder: Path, name: str, *, fp16: bool = False) -> None:
    """Write an IR as name.xml and name.bin; the same graph gives the same bytes."""
    _number_unnamed(graph)
    openvino().save_model(graph, folder / f"{name}.xml", compress_to_fp16=fp16)


def _number_unnamed(graph: Any) -> None:
    """Name the graph, and operations without a name of their own by their place in it.

    OpenVINO numbers them with a counter of the process, so that equal work would give different files.
    """
    if re.fullmatch(r"Model\d+", graph.get_friendly_name()):
        graph.set_friendly_name("Model")
    for position, op in enumerate(graph.get_ordered_ops()):
        kind = op.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", op.get_friendly_name()):
            op.set_friendly_name(f"{kind}_{position}")


def replaced(model: Model, context: PassContext, remove: Iterable[str], **attributes: Any) -> Model:
    """Return the model with the files of the pass's output folder in place of those removed."""
    return model.derive(kind="openvino", add_dir=context.output_dir, remove=remove, attributes=attributes)
