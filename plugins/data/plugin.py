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
    ]
