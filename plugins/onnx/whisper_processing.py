"""Whisper from the bytes of an audio file to text: onnxruntime-extensions' graphs around a beam search."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from drupe.core.errors import ConfigError
from drupe.core.model import Model

__all__ = ["around_whisper"]


def around_whisper(
    name: str,
    proto: Any,
    model: Model,
    opset: int,
    *,
    use_audio_decoder: bool,
    use_onnx_stft: bool,
    skip_special_tokens: bool,
) -> Any:
    """Return the onnx.ModelProto from audio to text. model: its folder holds the processor's files.

    The graph takes audio_stream, uint8 (1, bytes of a WAV, FLAC or MP3 file), or without the audio decoder audio_pcm,
    float32 (1, samples at the processor's rate), beside the inputs of the beam search, and gives str (1, texts). Raises
    ConfigError for a graph without a beam search, and for a model without the processor's files.
    """
    from onnx import compose, helper
    from onnxruntime_extensions.cvt import gen_processing_models

    inputs = [value.name for value in proto.graph.input]
    if "input_features" not in inputs or [value.name for value in proto.graph.output] != ["sequences"]:
        raise ConfigError(
            f"{name}: whisper is for a graph that takes input_features and gives sequences; this one takes "
            f"{', '.join(inputs[:6])}. Put InsertBeamSearch before it"
        )
    processor = _processor(name, model)
    with _traced():
        before, after = gen_processing_models(
            processor,
            pre_kwargs={"USE_AUDIO_DECODER": use_audio_decoder, "USE_ONNX_STFT": use_onnx_stft},
            post_kwargs={"skip_special_tokens": skip_special_tokens},
            opset=opset,
        )
    front, back = before.graph.input[0].name, after.graph.output[0].name
    compose.add_prefix(before, "before_", rename_inputs=False, inplace=True)
    compose.add_prefix(after, "after_", rename_outputs=False, inplace=True)
    graph = compose.merge_graphs(before.graph, proto.graph, [(before.graph.output[0].name, "input_features")])
    graph = compose.merge_graphs(graph, after.graph, [("sequences", after.graph.input[0].name)])
    assert graph.input[0].name == front and graph.output[0].name == back
    domains = {entry.domain: entry.version for part in (before, after) for entry in part.opset_import}
    domains |= {entry.domain: entry.version for entry in proto.opset_import}
    # The tool calls ONNX's own operators by either name, and the graph's are of one set.
    domains.pop("ai.onnx", None)
    domains[""] = opset
    imports = [helper.make_opsetid(domain, version) for domain, version in sorted(domains.items())]
    return helper.make_model(graph, opset_imports=imports, ir_version=proto.ir_version, functions=list(proto.functions))


def _processor(name: str, model: Model) -> Any:
    """Return the model's WhisperProcessor, its tokenizer with what the tool reads of older ones."""
    from transformers import WhisperProcessor
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    try:
        processor = WhisperProcessor.from_pretrained(model.folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        told = " ".join(str(error).split())
        raise ConfigError(
            f"{name}: the model brings no processor of Whisper (preprocessor_config.json and a tokenizer): {told}"
        ) from error
    if getattr(processor.tokenizer, "byte_decoder", None) is None:
        # Without it the tool takes the vocabulary for one of pieces, and bytes come out as they are written in it.
        processor.tokenizer.byte_decoder = {sign: byte for byte, sign in bytes_to_unicode().items()}
    return processor


@contextlib.contextmanager
def _traced() -> Iterator[None]:
    """Let the tool export its pipeline by tracing: its own operator has no form for torch.export, now the default."""
    import onnx
    import torch
    from onnxruntime_extensions import _torch_cvt as tool

    def export(*arguments: Any, **options: Any) -> Any:
        with io.BytesIO() as file:
            torch.onnx.export(*arguments, file, **{**options, "dynamo": False})
            return onnx.load_from_string(file.getvalue())

    theirs = tool._torch_export
    tool._torch_export = export
    try:
        yield
    finally:
        tool._torch_export = theirs
