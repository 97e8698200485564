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
            summary="Rows of files or the hub, or a folder of images, for text generation or classification.",
            aliases=("DataContainer",),
            key_packages=("pillow", "tokenizers", "transformers"),
        ),
        DataSpec(
            name="ImageDataContainer",
            target="drupe.plugins.data.container:ImageContainer",
            summary="Pictures in folders, a folder per class, or in the rows of a table.",
            key_packages=("pillow", "transformers"),
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
        ),
        DataSpec(
            name="TransformersPromptDummyDataContainer",
            target="drupe.plugins.data.dummy:TransformersPromptDummyData",
            summary="A made-up prompt: token ids with nothing before them.",
        ),
        DataSpec(
            name="TransformersTokenDummyDataContainer",
            target="drupe.plugins.data.dummy:TransformersTokenDummyData",
            summary="A made-up next token after keys and values of others.",
        ),
        DataSpec(
            name="RawDataContainer",
            target="drupe.plugins.data.raw:RawData",
            summary="Tensors in raw binary files, one per input and sample.",
        ),
    ]
