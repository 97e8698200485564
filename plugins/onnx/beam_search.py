"""InsertBeamSearch: an encoder with the decoder's first step, and the decoder with its past → one graph that generates.

The beams are ONNX Runtime's operators BeamSearch and WhisperBeamSearch (com.microsoft, docs/ContribOperators.md there).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.onnx.graph_pass import GraphPassConfig, check_loads
from drupe.plugins.onnx.graphs import byte_size, companions, external_files, graph_paths, save_graph, scrub_graph

__all__ = ["InsertBeamSearch", "InsertBeamSearchConfig"]

_TOKENS = {
    "translate_token_id": "<|translate|>",
    "transcribe_token_id": "<|transcribe|>",
    "start_of_lm_token_id": "<|startoflm|>",
    "no_timestamps_token_id": "<|notimestamps|>",
    "beginning_timestamp_token_id": "<|0.00|>",
}
"""Attribute of WhisperBeamSearch → the token of Whisper's tokenizers that it means."""
_WHISPER_ONLY = ("use_forced_decoder_ids", "use_logits_processor", "use_temperature")


class InsertBeamSearchConfig(GraphPassConfig):
    """Which inputs the generating graph has beside max_length, min_length, num_beams, num_return_sequences,
    length_penalty and repetition_penalty."""

    no_repeat_ngram_size: int = Field(
        0, ge=0, description="Runs of so many tokens occur once at most; 0 allows every repetition."
    )
    use_vocab_mask: bool = Field(False, description="The input vocab_mask: 0 for tokens that are never generated.")
    use_prefix_vocab_mask: bool = Field(
        False, description="The input prefix_vocab_mask: 0 for tokens that are not generated first, row by row."
    )
    use_forced_decoder_ids: bool = Field(
        False, description="The input decoder_input_ids: the tokens with which the text starts (Whisper)."
    )
    use_logits_processor: bool = Field(
        False, description="The input logits_processor: 1 for Whisper's rules of timestamps."
    )
    use_temperature: bool = Field(False, description="The input temperature, by which logits are divided (Whisper).")
    fp16: bool | None = Field(None, description="Whether the graphs are of half precision; not given: as they are.")
    use_gpu: bool | None = Field(
        None,
        description="Attention of the decoder's steps as CUDA's kernels want it; not given: where the target is a GPU.",
    )


class InsertBeamSearch(Pass):
    """Puts both graphs into an operator that runs the first once and the second for each token.

    Rules: 1. The inputs and outputs of the graphs have ONNX Runtime's names; their order does not matter. 2. Weights
    that both graphs hold are kept once. 3. Token ids come from the model's generation_config.json and config.json.
    """

    Config: ClassVar[type[PassConfig]] = InsertBeamSearchConfig
    version = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse what is for another device."""
        planned = super().plan(info, config, accelerator)
        if not config.all_tensors_to_one_file:
            raise ConfigError(f"{self.spec.name} writes weights to one file; leave all_tensors_to_one_file true")
        if config.use_gpu and accelerator.device != "gpu":
            raise ConfigError(
                f"{self.spec.name}: use_gpu is for GPUs; the target's device is {accelerator.device}: leave it out"
            )
        if (config.fp16 or info.attributes.get("precision") == "fp16") and accelerator.device == "cpu":
            raise ConfigError(
                f"{self.spec.name}: ONNX Runtime has no beam search of half precision for CPUs; leave fp16 and the "
                "pass that makes half precision out"
            )
        components = info.attributes.get("components")
        if components and len(components) != 2:
            raise ConfigError(
                f"{self.spec.name} takes an encoder and a decoder; the model has {len(components)} graphs"
            )
        return planned.with_(components=None, outputs=None)

    def requirements(self, config: Any, accelerator: Accelerator) -> Sequence[str]:
        """What makes attention for CUDA's kernels is in a module of onnxruntime that imports both."""
        gpu = accelerator.device == "gpu" and config.use_gpu is not False
        return ("torch>=2.7", "transformers>=5.10") if gpu else ()

    def run(self, model: Model, config: InsertBeamSearchConfig, context: PassContext) -> Model:
        """Write model.onnx."""
        import onnx

        from drupe.plugins.onnx.beam_graph import beam_graph, prepare

        name = self.spec.name
        paths = graph_paths(model)
        if len(paths) != 2:
            raise ConfigError(f"{name} takes an encoder and a decoder; the model has {len(paths)} graphs")
        encoder, decoder = (onnx.load(str(path)) for path in paths)
        told = _told(model.folder)
        shape = prepare(name, encoder, decoder, told)
        self._check(shape, config, context)
        if config.use_gpu or (config.use_gpu is None and context.accelerator.device == "gpu"):
            _mask_attention(name, decoder, context)
        proto = beam_graph(
            name, encoder, decoder, shape, self._attributes(shape, config, told, model.folder), self._extras(config)
        )
        scrub_graph(proto)
        external = any(external_files(path) for path in paths)
        # Saving takes out what is written beside the graph.
        size = byte_size(proto)
        path = save_graph(
            proto,
            context.output_dir,
            external=config.save_as_external_data or external,
            data_name=config.external_data_name,
            threshold=config.size_threshold,
            attributes=config.convert_attribute,
        )
        check_loads(name, path, size, {}, context)
        companions(model.folder, context.output_dir)
        gone = ("components", "outputs", "io_config")
        kept = {key: value for key, value in model.attributes.items() if key not in gone}
        return Model.from_dir("onnx", context.output_dir, {**kept, "onnx_file": path.name})

    def _check(self, shape: Any, config: InsertBeamSearchConfig, context: PassContext) -> None:
        """Raise ConfigError where the graphs are not what the config takes them for."""
        name = self.spec.name
        if not shape.whisper and (given := [field for field in _WHISPER_ONLY if getattr(config, field)]):
            raise ConfigError(f"{name}: {', '.join(given)}: only for Whisper, whose encoder takes features of audio")
        if config.fp16 is not None and config.fp16 != shape.half:
            raise ConfigError(f"{name}: fp16 is {config.fp16}, but the graphs are float{16 if shape.half else 32}")
        if shape.half and context.accelerator.device == "cpu":
            raise ConfigError(f"{name}: ONNX Runtime has no beam search of half precision for CPUs")

    def _attributes(
        self, shape: Any, config: InsertBeamSearchConfig, told: Mapping[str, Any], folder: Path
    ) -> dict[str, int]:
        """Return the attributes of the operator. Raises ConfigError for token ids that the model does not tell."""
        found: dict[str, int] = {}
        for field in ("eos_token_id", "pad_token_id", "decoder_start_token_id"):
            value = told.get(field)
            value = value[0] if isinstance(value, list) and value else value
            if not isinstance(value, int):
                raise ConfigError(
                    f"{self.spec.name}: neither generation_config.json nor config.json of the model tells {field}"
                )
            found[field] = value
        if shape.whisper:
            ids = _token_ids(folder)
            absent = [token for token in _TOKENS.values() if token not in ids]
            if absent and config.use_logits_processor:
                raise ConfigError(
                    f"{self.spec.name}: use_logits_processor needs Whisper's tokens, and the model's tokenizer lacks "
                    f"{', '.join(absent)}"
                )
            found |= {field: ids[token] for field, token in _TOKENS.items() if token in ids}
        found |= {"no_repeat_ngram_size": config.no_repeat_ngram_size, "early_stopping": 1}
        return found

    def _extras(self, config: InsertBeamSearchConfig) -> frozenset[str]:
        """Return the names of the inputs that the config adds."""
        named = {
            "vocab_mask": config.use_vocab_mask,
            "prefix_vocab_mask": config.use_prefix_vocab_mask,
            "decoder_input_ids": config.use_forced_decoder_ids,
            "logits_processor": config.use_logits_processor,
            "temperature": config.use_temperature,
        }
        return frozenset(name for name, used in named.items() if used)


def _told(folder: Path) -> dict[str, Any]:
    """Return what config.json says, and generation_config.json, which is asked first."""
    found: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if path.is_file():
            data = json.loads(path.read_text(encoding="utf-8"))
            found |= {key: value for key, value in data.items() if value is not None}
    return found


def _token_ids(folder: Path) -> dict[str, int]:
    """Return token → id of the special tokens of a tokenizer, from its files alone; {} where there are none."""
    path = folder / "tokenizer.json"
    if path.is_file():
        data = json.loads(path.read_text(encoding="utf-8"))
        return {str(token["content"]): int(token["id"]) for token in data.get("added_tokens", ())}
    path = folder / "added_tokens.json"
    if path.is_file():
        return {str(token): int(number) for token, number in json.loads(path.read_text(encoding="utf-8")).items()}
    return {}


def _mask_attention(name: str, decoder: Any, context: PassContext) -> None:
    """Let the decoder keep past and present in one buffer, as CUDA's DecoderMaskedMultiHeadAttention does."""
    from onnxruntime.transformers.convert_generation import (
        update_decoder_subgraph_share_buffer_and_use_decoder_masked_mha as masked,
    )

    if not any(node.op_type == "MultiHeadAttention" for node in decoder.graph.node):
        context.log.warning(
            "%s: the decoder has no MultiHeadAttention, so its steps are not made for CUDA's kernels; "
            "OrtTransformersOptimization with use_multi_head_attention makes them",
            name,
        )
        return
    if not masked(decoder.graph):
        context.log.warning("%s: ONNX Runtime could not make the decoder's attention for CUDA's kernels", name)
