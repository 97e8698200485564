"""Registers the data containers."""

from __future__ import annotations

from collections.abc import Sequence

from drupe.core.hookspecs import hookimpl
from drupe.core.specs import DataSpec


@hookimpl
def drupe_data_containers() -> Sequence[DataSpec]:
    """The containers."""
    return [
        DataSpec(
            name="HuggingfaceContainer",
            target="drupe.plugins.data.container:HuggingfaceContainer",
            summary="Rows of JSON, csv, Parquet, Arrow, text files or the hub, for text generation or classification.",
            aliases=("DataContainer",),
            key_packages=("tokenizers", "transformers"),
        ),
        DataSpec(
            name="DummyDataContainer",
            target="drupe.plugins.data.dummy:DummyData",
            summary="Made-up arrays of given shapes.",
        ),
        DataSpec(
            name="TransformersDummyDataContainer",
            target="drupe.plugins.data.dummy:TransformersDummyData",
            summary="Made-up token ids for transformers models.",
            aliases=("TransformersPromptDummyDataContainer",),
        ),
        DataSpec(
            name="RawDataContainer",
            target="drupe.plugins.data.raw:RawData",
            summary="Tensors in raw binary files, one per input and sample.",
        ),
    ]
