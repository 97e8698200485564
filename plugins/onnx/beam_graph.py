"""The graph with a beam search: what ONNX Runtime's operators want of the two graphs that they run, and around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drupe.core.errors import ConfigError
from drupe.plugins.onnx.graphs import rename_value
from drupe.plugins.onnx.io_types import retype
from drupe.plugins.onnx.joining import content_of, same_functions, same_opsets

__all__ = ["BeamShape", "beam_graph", "prepare"]

_FLOAT, _INT32, _INT64, _HALF = 1, 6, 7, 10
"""Numbers of onnx.TensorProto.DataType."""
_SHARED = 1024
"""Bytes from which a weight of both graphs is kept once, in the graph around them."""
_AUDIO = ("encoder_input_ids", "input_features", "audio_features", "encoder_input_features")
"""What exports call the features of the audio; the operator asks for the first."""


@dataclass(frozen=True)
class BeamShape:
    """What is known of the two graphs. whisper: the encoder takes features of audio, not tokens; half: float16."""

    whisper: bool
    half: bool
    layers: int
    vocabulary: int


def prepare(name: str, encoder: Any, decoder: Any, told: Mapping[str, Any]) -> BeamShape:
    """Give both graphs the order, types and lengths that the operator wants. told: the model's config.

    Raises ConfigError where a graph is not what the operator can run: inputs or outputs that are missing or unknown.
    """
    from onnxruntime.transformers.onnx_model import OnnxModel

    graph = encoder.graph
    audio = next((value for value in graph.input if value.name in _AUDIO and _kind(value) in (_FLOAT, _HALF)), None)
    if audio is not None:
        rename_value(graph, audio.name, _AUDIO[0])
    layers = sum(1 for value in decoder.graph.output if value.name.startswith("present_key_self_"))
    if not layers:
        raise ConfigError(
            f"{name}: the decoder gives no present_key_self_0; it gives {_names(decoder.graph.output)}. The composite "
            "is an encoder with the decoder's first step, then the decoder that takes and gives past keys and values"
        )
    pairs = [(part, key) for part in ("self", "cross") for key in range(layers)]
    present = [f"present_{what}_{part}_{key}" for part, key in pairs for what in ("key", "value")]
    past = [text.replace("present", "past", 1) for text in present]
    inner = [text for text in present if "_self_" in text]
    mask = [] if audio is not None else ["encoder_attention_mask"]
    states = [value.name for value in decoder.graph.input if value.name == "encoder_hidden_states"]
    _order(name, "encoder's", graph, "input", [_AUDIO[0], *mask, "decoder_input_ids"])
    _order(name, "encoder's", graph, "output", ["logits", "encoder_hidden_states", *present])
    _order(name, "decoder's", decoder.graph, "input", ["input_ids", *mask, *states, *past])
    _order(name, "decoder's", decoder.graph, "output", ["logits", *inner])
    for proto in (encoder, decoder):
        retype(proto, lambda value: value.endswith(("_ids", "_mask")), _INT64, _INT32, inputs_only=True)
    vocabulary = _fix_lengths(name, (encoder.graph, decoder.graph), told)
    half = any(_kind(value) == _HALF for part in (graph, decoder.graph) for value in (*part.input, *part.output))
    if half:
        # The operator has one type for all; a head that was left in float32 gives its logits in half precision.
        for proto in (encoder, decoder):
            retype(proto, lambda _: True, _FLOAT, _HALF)
    for proto in (encoder, decoder):
        # Graphs inside a node are not sorted on loading, and converters append their casts.
        OnnxModel.graph_topological_sort(proto.graph)
    return BeamShape(audio is not None, half, layers, vocabulary)


def beam_graph(
    name: str, encoder: Any, decoder: Any, shape: BeamShape, attributes: Mapping[str, int], extras: frozenset[str]
) -> Any:
    """Return the onnx.ModelProto around two graphs that `prepare` made ready.

    attributes: of the operator; extras: the optional inputs that the graph has. The graphs are changed.
    """
    from onnx import helper

    source = "input_features" if shape.whisper else "input_ids"
    rows: dict[str, tuple[int, Sequence[int | str]]] = {
        source: (
            (_FLOAT, ["batch_size", "feature_size", "sequence_length"])
            if shape.whisper
            else (_INT32, ["batch_size", "sequence_length"])
        ),
        "max_length": (_INT32, [1]),
        "min_length": (_INT32, [1]),
        "num_beams": (_INT32, [1]),
        "num_return_sequences": (_INT32, [1]),
        "length_penalty": (_FLOAT, [1]),
        "repetition_penalty": (_FLOAT, [1]),
        "vocab_mask": (_INT32, [shape.vocabulary]),
        "prefix_vocab_mask": (_INT32, ["batch_size", shape.vocabulary]),
        "attention_mask": (_INT32, ["batch_size", "sequence_length"]),
        "decoder_input_ids": (_INT32, ["batch_size", "initial_sequence_length"]),
        "logits_processor": (_INT32, [1]),
        "cross_qk_layer_head": (_INT32, ["heads", 2]),
        "extra_decoding_ids": (_INT32, ["batch_size", "extra_length"]),
        "temperature": (_FLOAT, [1]),
    }
    # Without a mask the operator takes padding behind a text for a part of it.
    wanted = extras if shape.whisper else extras | {"attention_mask"}
    used = [entry for index, entry in enumerate(rows) if index < 7 or entry in wanted]
    nodes = []
    fed = {entry: entry for entry in used}
    for entry in used if shape.half else ():
        if rows[entry][0] == _FLOAT:
            fed[entry] = f"{entry}_fp16"
            nodes.append(helper.make_node("Cast", [entry], [fed[entry]], name=f"cast_{entry}", to=_HALF))
    feeds = [fed.get(entry, "") for entry in rows]
    while not feeds[-1]:
        feeds.pop()
    weights = _shared_weights(encoder.graph, decoder.graph)
    encoder.graph.name, decoder.graph.name = "encoder", "decoder"
    nodes.append(
        helper.make_node(
            "WhisperBeamSearch" if shape.whisper else "BeamSearch",
            feeds,
            ["sequences"],
            name="beam_search",
            domain="com.microsoft",
            encoder=encoder.graph,
            decoder=decoder.graph,
            model_type=2 if shape.whisper else 1,
            **attributes,
        )
    )
    inputs = [helper.make_tensor_value_info(entry, *rows[entry]) for entry in used]
    sequences = helper.make_tensor_value_info("sequences", _INT32, ["batch_size", "num_return_sequences", "max_length"])
    graph = helper.make_graph(nodes, "beam_search", inputs, [sequences], weights)
    opsets = {"com.microsoft": 1, **same_opsets(name, encoder, decoder)}
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*entry) for entry in sorted(opsets.items())],
        ir_version=max(encoder.ir_version, decoder.ir_version),
        functions=same_functions(name, encoder, decoder),
    )


def _kind(value: Any) -> int:
    return int(value.type.tensor_type.elem_type)


def _names(values: Any) -> str:
    listed = [value.name for value in values]
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")


def _order(name: str, whose: str, graph: Any, what: str, wanted: Sequence[str]) -> None:
    """Put inputs or outputs into the order that is wanted. Raises ConfigError for others than those."""
    values = getattr(graph, what)
    weights = {tensor.name for tensor in graph.initializer}
    there = {value.name: value for value in values if value.name not in weights}
    absent = [entry for entry in wanted if entry not in there]
    more = [entry for entry in there if entry not in wanted]
    if absent or more:
        told = [f"lack {', '.join(absent[:4])}"] if absent else []
        told += [f"hold {', '.join(more[:4])}, which the beam search does not know"] if more else []
        raise ConfigError(f"{name}: the {whose} {what}s {' and '.join(told)}; they are {_names(there.values())}")
    del values[:]
    values.extend(there[entry] for entry in wanted)


def _fix_lengths(name: str, graphs: Sequence[Any], told: Mapping[str, Any]) -> int:
    """State heads, their size and the vocabulary as numbers where an export left them open; return the vocabulary."""
    heads = told.get("decoder_attention_heads") or told.get("num_heads")
    width = told.get("d_model")
    size = told.get("d_kv") or (width // heads if width and heads else None)
    for graph in graphs:
        for value in (*graph.input, *graph.output):
            dims = value.type.tensor_type.shape.dim
            if value.name.startswith(("past_", "present_")):
                _fix(name, value.name, dims, {1: heads, 3: size})
            elif value.name == "logits":
                _fix(name, value.name, dims, {2: told.get("vocab_size")})
    logits = graphs[1].output[0].type.tensor_type.shape.dim
    return int(logits[2].dim_value)


def _fix(name: str, value: str, dims: Any, lengths: Mapping[int, Any]) -> None:
    if len(dims) <= max(lengths):
        raise ConfigError(f"{name}: {value} has {len(dims)} axes; expected {max(lengths) + 1}")
    for axis, length in lengths.items():
        if not dims[axis].dim_value:
            if not isinstance(length, int):
                raise ConfigError(
                    f"{name}: axis {axis} of {value} is open, and config.json does not tell its length (vocab_size, "
                    "d_model, decoder_attention_heads)"
                )
            dims[axis].dim_value = length


def _shared_weights(*graphs: Any) -> list[Any]:
    """Take the weights that occur more than once out of the graphs and return them, for the graph around."""
    from onnx import helper

    places: dict[tuple[int, tuple[int, ...], str], list[tuple[Any, Any]]] = {}
    for graph in graphs:
        for tensor in graph.initializer:
            if tensor.ByteSize() >= _SHARED:
                places.setdefault(content_of(tensor), []).append((graph, tensor))
    shared: list[Any] = []
    for found in places.values():
        if len(found) < 2:
            continue
        title = f"shared_{len(shared)}_{found[0][1].name}"
        kept = type(found[0][1])()
        kept.CopyFrom(found[0][1])
        kept.name = title
        shared.append(kept)
        for graph in graphs:
            names = {tensor.name for where, tensor in found if where is graph}
            for old in names:
                rename_value(graph, old, title)
            left = [tensor for tensor in graph.initializer if tensor.name not in names]
            del graph.initializer[:]
            graph.initializer.extend(left)
            stated = [value for value in graph.value_info if value.name != title]
            del graph.value_info[:]
            # A value of the graph around has no type inside unless it is stated.
            told = [helper.make_tensor_value_info(title, kept.data_type, list(kept.dims))] if names else []
            graph.value_info.extend([*stated, *told])
    return shared
