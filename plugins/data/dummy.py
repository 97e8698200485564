"""Made-up data, for latency and for export: by given shapes, or token ids for a transformers model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from drupe.core.config import PluginConfig
from drupe.core.context import JobContext
from drupe.core.data import DataConfig, DataContainer, Sample
from drupe.core.digests import digest_of
from drupe.core.model import Model
from drupe.plugins.data.options import Dataloader
from drupe.plugins.data.raw import is_number_type

__all__ = [
    "DummyData",
    "DummyDataConfig",
    "TransformersDummyData",
    "TransformersDummyDataConfig",
    "TransformersPromptDummyData",
    "TransformersPromptDummyDataConfig",
    "TransformersTokenDummyData",
    "TransformersTokenDummyDataConfig",
]


class DummyInputs(PluginConfig):
    """What is made up."""

    type: Literal["dummy_dataset"] | None = Field(None, description="Olive's name of this component.")
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
            if not is_number_type(kind):
                raise ValueError(f"input_types: {kind!r} is no numpy type of numbers")
        names = self.input_names or []
        if len(set(names)) != len(names):
            raise ValueError(f"input_names {names}: expected each once")
        batches = {shape[0] for shape in self.input_shapes if shape}
        if len(batches) != 1 or not all(self.input_shapes):
            raise ValueError(f"input_shapes: the first axis of all is the batch, but they are {self.input_shapes}")
        if min(batches) < 1 or any(size < 0 for shape in self.input_shapes for size in shape):
            raise ValueError(f"input_shapes {self.input_shapes}: expected a batch of at least 1, and no size below 0")
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

    type: (
        Literal["transformers_dummy_dataset", "transformers_prompt_dummy_dataset", "transformers_token_dummy_dataset"]
        | None
    ) = Field(None, description="Olive's name of this component; the container's type says which it is.")
    seq_len: int = Field(128, ge=1, description="Tokens a sample.")
    past_seq_len: int = Field(
        0, ge=0, description="Tokens before them, given as keys and values to graphs that take such."
    )
    max_seq_len: int | None = Field(None, ge=1, description="Longest sample and past together; more is refused.")
    batch_size: int = Field(1, ge=1, description="Samples a batch: as many times max_samples are made.")
    max_samples: int = Field(32, ge=1, description="How many batches.")
    model_name: str | None = Field(None, description="The model measured says what ids there are; this is not asked.")
    trust_remote_code: bool = Field(False, description="Nothing of model_name is loaded, so nothing of it is run.")
    use_fp16: bool = Field(False, description="Keys and values in half precision; a session's own type wins.")
    ort_past_key_name: str = Field(
        "past_key_values.<id>.key", description="Names of inputs with keys; <id>: the layer."
    )
    ort_past_value_name: str = Field("past_key_values.<id>.value", description="Names of inputs with values.")

    @model_validator(mode="after")
    def _within(self) -> DummyTokens:
        if self.max_seq_len is not None and self.seq_len + self.past_seq_len > self.max_seq_len:
            raise ValueError(
                f"seq_len {self.seq_len} and past_seq_len {self.past_seq_len} pass max_seq_len {self.max_seq_len}"
            )
        for name in ("ort_past_key_name", "ort_past_value_name"):
            if "<id>" not in getattr(self, name):
                raise ValueError(f"{name}: {getattr(self, name)!r} has no <id> where the layer's number goes")
        return self


class PromptTokens(DummyTokens):
    """A prompt: nothing comes before it."""

    @model_validator(mode="after")
    def _no_past(self) -> PromptTokens:
        if self.past_seq_len:
            raise ValueError("a prompt has no tokens before it; use TransformersTokenDummyDataContainer")
        return self


class NextToken(DummyTokens):
    """One token after others."""

    seq_len: int = Field(1, ge=1, description="Tokens a sample.")
    past_seq_len: int = Field(127, ge=0, description="Tokens before them, given as keys and values.")


class TransformersDummyDataConfig(DataConfig):
    """A data config of type TransformersDummyDataContainer."""

    load_dataset_config: DummyTokens = Field(default_factory=DummyTokens, description="How many tokens, and of what.")
    dataloader_config: Dataloader = Field(default_factory=Dataloader, description="How samples become batches.")


class TransformersPromptDummyDataConfig(TransformersDummyDataConfig):
    """A data config of type TransformersPromptDummyDataContainer."""

    load_dataset_config: PromptTokens = Field(default_factory=PromptTokens, description="How many tokens, and of what.")


class TransformersTokenDummyDataConfig(TransformersDummyDataConfig):
    """A data config of type TransformersTokenDummyDataContainer."""

    load_dataset_config: NextToken = Field(default_factory=NextToken, description="How many tokens, and of what.")


class TransformersDummyData(DataContainer):
    """Random token ids below the model's vocabulary, with an attention mask of ones. Nothing is read.

    An ONNX model whose config.json tells its layers also gets position ids, and the keys and values of past_seq_len
    tokens, for graphs that take them.
    """

    Config: ClassVar[type[DataConfig]] = TransformersDummyDataConfig
    version = 2

    def identity(self, config: TransformersDummyDataConfig, workflow_dir: Path) -> Any:
        """The config says it all."""
        return None

    def load(self, config: TransformersDummyDataConfig, model: Model | None, context: JobContext) -> Iterable[Sample]:
        """See DataContainer.load. inputs: input_ids (int64, (seq_len,)), attention_mask (int64, (past + seq_len,)), and
        keys and values (float, (heads, past, size)); the target is 0."""
        options = config.load_dataset_config
        known = _known(model)
        size = _vocabulary(known)
        rows = options.max_samples * options.batch_size
        random = np.random.default_rng(context.seed)
        context.report["accounting"] = {"rows": rows, "dropped": {}, "origin": "made up"}
        for index in range(rows):
            ids = random.integers(0, size, options.seq_len, dtype=np.int64)
            past = options.past_seq_len
            inputs = {"input_ids": ids, "attention_mask": np.ones(past + options.seq_len, dtype=np.int64)}
            if model is not None and model.kind == "onnx":
                inputs["position_ids"] = np.arange(past, past + options.seq_len, dtype=np.int64)
                inputs |= _past(random, known, options)
            yield Sample(f"{index:07}", inputs, 0, digest_of(["made up", context.seed, index]))


class TransformersPromptDummyData(TransformersDummyData):
    """The prompt of a text: made-up tokens with nothing before them."""

    Config: ClassVar[type[DataConfig]] = TransformersPromptDummyDataConfig


class TransformersTokenDummyData(TransformersDummyData):
    """The next token of a text: one made-up token after the keys and values of others."""

    Config: ClassVar[type[DataConfig]] = TransformersTokenDummyDataConfig


def _numbers(random: np.random.Generator, shape: Sequence[int], kind: str) -> np.ndarray:
    dtype = np.dtype(kind)
    if dtype.kind in "iub":
        return random.integers(0, 2, shape).astype(dtype)
    return random.random(shape).astype(dtype)


def _known(model: Model | None) -> dict[str, Any]:
    """Return what config.json tells of the text model; {} where there is none."""
    from drupe.plugins.huggingface.loading import read_config

    found = read_config(model.folder) if model is not None and model.path is not None else {}
    return {**found, **(found.get("text_config") or {})}


def _vocabulary(known: Mapping[str, Any]) -> int:
    """Return the size of the vocabulary; where it is not told, one that every tokenizer exceeds."""
    return int(known.get("vocab_size") or 256)


def _past(random: np.random.Generator, known: Mapping[str, Any], options: DummyTokens) -> dict[str, np.ndarray]:
    """Return keys and values by input name, as the layers, heads and sizes of a config have them."""
    layers = known.get("num_hidden_layers") or known.get("n_layer")
    heads = known.get("num_attention_heads") or known.get("n_head")
    width = known.get("hidden_size") or known.get("n_embd")
    if not layers or not heads or not width:
        return {}
    shape = (
        int(known.get("num_key_value_heads") or heads),
        options.past_seq_len,
        int(known.get("head_dim") or width // heads),
    )
    dtype = np.float16 if options.use_fp16 else np.float32
    return {
        name.replace("<id>", str(layer)): random.standard_normal(shape).astype(dtype)
        for layer in range(int(layers))
        for name in (options.ort_past_key_name, options.ort_past_value_name)
    }
