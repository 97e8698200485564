"""Made-up data, for latency and for export: by given shapes, or token ids for a transformers model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from drupe.core.config import PluginConfig
from drupe.core.context import JobContext
from drupe.core.data import DataConfig, DataContainer, Sample
from drupe.core.digests import digest_of
from drupe.core.model import Model
from drupe.plugins.data.options import Dataloader

__all__ = ["DummyData", "DummyDataConfig", "TransformersDummyData", "TransformersDummyDataConfig"]


class DummyInputs(PluginConfig):
    """What is made up."""

    input_shapes: list[list[int]] = Field(description="A shape per input; the first axis is the batch.")
    input_names: list[str] | None = Field(None, description="A name per input; default: input_0, input_1, …")
    input_types: list[str] | None = Field(None, description="A numpy type per input; default: float32.")
    max_samples: int = Field(32, ge=1, description="How many batches.")

    @model_validator(mode="after")
    def _one_each(self) -> DummyInputs:
        for name in ("input_names", "input_types"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.input_shapes):
                raise ValueError(f"{name} has {len(values)} entries; input_shapes has {len(self.input_shapes)}")
        for kind in self.input_types or ():
            try:
                np.dtype(kind)
            except TypeError as error:
                raise ValueError(f"input_types: {kind!r} is no numpy type") from error
        batches = {shape[0] for shape in self.input_shapes if shape}
        if len(batches) != 1 or not all(self.input_shapes):
            raise ValueError(f"input_shapes: the first axis of all is the batch, but they are {self.input_shapes}")
        return self


class DummyDataConfig(DataConfig):
    """A data config of type DummyDataContainer."""

    load_dataset_config: DummyInputs = Field(description="Names, shapes and types of the arrays.")
    dataloader_config: Dataloader = Field(default_factory=Dataloader, description="How samples become batches.")


class DummyData(DataContainer):
    """Random arrays of given shapes: numbers from 0 to 1, or 0 and 1 where the type is whole. Nothing is read."""

    Config: ClassVar[type[DataConfig]] = DummyDataConfig
    version = 1

    def identity(self, config: DummyDataConfig, workflow_dir: Path) -> Any:
        """The config says it all."""
        return None

    def load(self, config: DummyDataConfig, model: Model | None, context: JobContext) -> Iterable[Sample]:
        """See DataContainer.load. Each row of a batch is a sample; the target is 0."""
        options = config.load_dataset_config
        count = len(options.input_shapes)
        names = options.input_names or [f"input_{index}" for index in range(count)]
        types = options.input_types or ["float32"] * count
        rows = options.max_samples * options.input_shapes[0][0]
        random = np.random.default_rng(context.seed)
        context.report["accounting"] = {"rows": rows, "dropped": {}, "origin": "made up"}
        for index in range(rows):
            inputs = {
                name: _numbers(random, shape[1:], kind)
                for name, shape, kind in zip(names, options.input_shapes, types, strict=True)
            }
            yield Sample(f"{index:07}", inputs, 0, digest_of(["made up", context.seed, index]))


class DummyTokens(PluginConfig):
    """What token ids are made up."""

    seq_len: int = Field(128, ge=1, description="Tokens a sample.")
    batch_size: int = Field(1, ge=1, description="Samples a batch: as many times max_samples are made.")
    max_samples: int = Field(32, ge=1, description="How many batches.")
    model_name: str | None = Field(None, description="The model measured says what ids there are; this is not asked.")


class TransformersDummyDataConfig(DataConfig):
    """A data config of type TransformersDummyDataContainer."""

    load_dataset_config: DummyTokens = Field(default_factory=DummyTokens, description="How many tokens, and of what.")
    dataloader_config: Dataloader = Field(default_factory=Dataloader, description="How samples become batches.")


class TransformersDummyData(DataContainer):
    """Random token ids below the model's vocabulary, with an attention mask of ones. Nothing is read."""

    Config: ClassVar[type[DataConfig]] = TransformersDummyDataConfig
    version = 1

    def identity(self, config: TransformersDummyDataConfig, workflow_dir: Path) -> Any:
        """The config says it all."""
        return None

    def load(self, config: TransformersDummyDataConfig, model: Model | None, context: JobContext) -> Iterable[Sample]:
        """See DataContainer.load. inputs: input_ids, attention_mask (int64, (seq_len,)); the target is 0."""
        options = config.load_dataset_config
        size = _vocabulary(model)
        rows = options.max_samples * options.batch_size
        random = np.random.default_rng(context.seed)
        context.report["accounting"] = {"rows": rows, "dropped": {}, "origin": "made up"}
        for index in range(rows):
            ids = random.integers(0, size, options.seq_len, dtype=np.int64)
            inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            yield Sample(f"{index:07}", inputs, 0, digest_of(["made up", context.seed, index]))


def _numbers(random: np.random.Generator, shape: Sequence[int], kind: str) -> np.ndarray:
    dtype = np.dtype(kind)
    if dtype.kind in "iub":
        return random.integers(0, 2, shape).astype(dtype)
    return random.random(shape).astype(dtype)


def _vocabulary(model: Model | None) -> int:
    """Return the size of the model's vocabulary; where its files don't tell, one that every tokenizer exceeds."""
    from drupe.plugins.huggingface.loading import read_config

    known = read_config(model.folder) if model is not None and model.path is not None else {}
    size = known.get("vocab_size") or (known.get("text_config") or {}).get("vocab_size")
    return int(size) if size else 256
