"""AddOliveMetadata: facts about the model in the graph's own metadata, where any tool can read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.model import Model
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig

__all__ = ["AddOliveMetadata", "AddOliveMetadataConfig"]

_FACTS = ("task", "architecture", "model_type", "precision", "quantization", "opset")


class AddOliveMetadataConfig(GraphPassConfig):
    """What is written."""

    graph_name: str | None = Field(None, min_length=1, description="Name of the graph.")
    custom_metadata: Mapping[str, str | int | float | bool] = Field(
        default_factory=dict, description="Entries of the graph's metadata, by key."
    )
    description: str | None = Field(None, description="What the model is for.")
    add_optimization_info: bool = Field(
        True, description="Write what is known of the model: task, architecture, precision, quantization."
    )


class AddOliveMetadata(GraphPass):
    """Writes metadata into the graph. No time and no place enters it, so that equal models stay equal."""

    Config: ClassVar[type[PassConfig]] = AddOliveMetadataConfig
    version = 1

    def rewrite(
        self, proto: Any, path: Path, model: Model, config: AddOliveMetadataConfig, context: PassContext
    ) -> Any:
        """Add the entries; one that is there is replaced."""
        known = {f"drupe.{key}": _text(model.attributes[key]) for key in _FACTS if key in model.attributes}
        entries = {entry.key: entry.value for entry in proto.metadata_props}
        entries |= {**(known if config.add_optimization_info else {}), **_entries(config)}
        del proto.metadata_props[:]
        for key in sorted(entries):
            proto.metadata_props.add(key=key, value=entries[key])
        if config.graph_name is not None:
            proto.graph.name = config.graph_name
        return proto


def _entries(config: AddOliveMetadataConfig) -> dict[str, str]:
    described = {"description": config.description} if config.description is not None else {}
    return {**described, **{key: _text(value) for key, value in config.custom_metadata.items()}}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
