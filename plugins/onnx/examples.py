"""Example inputs of a Hugging Face model, to export it with: as io_config tells them, or as its task has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.plugins.huggingface.io_config import named_axes

__all__ = ["example_inputs"]

_TYPES = ("int64", "int32", "float32", "float16", "bool")


def example_inputs(
    model: Model, loaded: Any, parameters: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[int, str]]]:
    """Return example inputs of the model's task and their dynamic axes, as io_config says or as the task has them.

    parameters: what the model's forward call takes. Raises ConfigError for a model whose inputs are not known.
    """
    import torch

    told = model.attributes.get("io_config")
    if isinstance(told, Mapping) and told.get("input_names"):
        return _told_example(told)
    config = loaded.config
    generator = torch.Generator().manual_seed(0)
    if "pixel_values" in parameters and "input_ids" not in parameters:
        height, width = _picture(getattr(config, "image_size", None) or _processed(model.folder) or 224)
        pixels = torch.rand(2, getattr(config, "num_channels", 3), height, width, generator=generator)
        return {"pixel_values": pixels.to(loaded.dtype)}, {"pixel_values": {0: "batch"}}
    names = [name for name in _FIRST if name in parameters]
    if not names:
        raise ConfigError(_unknown(loaded, parameters))
    try:
        inputs = _MAKERS[names[0]](config, loaded, parameters, generator)
    except AttributeError as error:
        raise ConfigError(f"{_unknown(loaded, parameters)}; {error}") from error
    axes = {name: dict(_AXES[name]) for name in inputs}
    return inputs, axes


def _unknown(loaded: Any, parameters: Sequence[str]) -> str:
    return (
        f"OnnxConversion does not know the inputs of {type(loaded).__name__} ({', '.join(parameters[:8])}); "
        "give them as input_model.io_config (input_names, input_shapes, input_types)"
    )


def _text(config: Any, loaded: Any, parameters: Sequence[str], generator: Any) -> dict[str, Any]:
    import torch

    told = config.get_text_config()
    ids = torch.randint(0, int(getattr(told, "vocab_size", 100)), (2, 8), generator=generator)
    if isinstance(end := getattr(told, "eos_token_id", None), int) and "Classification" in type(loaded).__name__:
        # Some classify what they make of the text's end, one in each row.
        ids = torch.where(ids == end, (ids + 1) % told.vocab_size, ids)
        ids[:, -1] = end
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "token_type_ids" in parameters and int(getattr(config, "type_vocab_size", 0) or 0) > 0:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    if "pixel_values" in parameters and hasattr(config, "vision_config"):
        height, width = _picture(config.vision_config.image_size)
        channels = getattr(config.vision_config, "num_channels", 3)
        # Another number than there are texts: neither follows from the other.
        inputs["pixel_values"] = torch.rand(3, channels, height, width, generator=generator).to(loaded.dtype)
    return inputs | _decoded(config, loaded, parameters, generator)


def _speech(config: Any, loaded: Any, parameters: Sequence[str], generator: Any) -> dict[str, Any]:
    import torch

    # The encoder takes as many frames as it has positions, after a convolution that halves them.
    frames = torch.rand(2, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
    return {"input_features": frames.to(loaded.dtype), **_decoded(config, loaded, parameters, generator)}


def _sound(config: Any, loaded: Any, parameters: Sequence[str], generator: Any) -> dict[str, Any]:
    import torch

    if config.feat_extract_norm not in ("group", "layer"):
        raise AttributeError(f"its feat_extract_norm is {config.feat_extract_norm}")
    samples = torch.randn(2, 16000, generator=generator)
    inputs: dict[str, Any] = {"input_values": samples.to(loaded.dtype)}
    if config.feat_extract_norm == "layer":
        # Those were trained with masks; the others take zeros for silence.
        inputs["attention_mask"] = torch.ones(samples.shape, dtype=torch.int64)
    return inputs


def _decoded(config: Any, loaded: Any, parameters: Sequence[str], generator: Any) -> dict[str, Any]:
    """Return what a decoder behind an encoder is given; {} where it gets the encoder's own text."""
    import torch

    heads = ("Classification", "QuestionAnswering")
    if "decoder_input_ids" not in parameters or any(head in type(loaded).__name__ for head in heads):
        return {}
    told = config.get_text_config(decoder=True)
    ids = torch.randint(0, int(getattr(told, "vocab_size", 100)), (2, 5), generator=generator)
    return {"decoder_input_ids": ids}


_MAKERS = {"input_ids": _text, "input_features": _speech, "input_values": _sound}
_FIRST = tuple(_MAKERS)
"""What names the input of a kind of model, and what makes an example of it."""
_STEPS = {0: "batch", 1: "sequence"}
_AXES: Mapping[str, Mapping[int, str]] = {
    "input_ids": _STEPS,
    "attention_mask": _STEPS,
    "token_type_ids": _STEPS,
    "decoder_input_ids": {0: "batch", 1: "decoder_sequence"},
    "pixel_values": {0: "image_batch"},
    "input_features": {0: "batch"},
    "input_values": {0: "batch", 1: "sequence"},
}


def _processed(folder: Path) -> Any:
    """Return the size that the model's image processor gives pictures, or None: convolutions have none of their own."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    said = json.loads(path.read_text(encoding="utf-8"))
    crops = said.get("do_center_crop", "crop_size" in said)
    return said.get("crop_size" if crops else "size")


def _picture(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge", size.get("longest_edge", 224))
        return int(size.get("height", edge)), int(size.get("width", edge))
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _told_example(told: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[int, str]]]:
    import torch

    names: Sequence[str] = told["input_names"]
    shapes = told.get("input_shapes")
    if not shapes or len(shapes) != len(names):
        raise ConfigError(f"io_config.input_shapes has {len(shapes or ())} shapes for {len(names)} input_names")
    types = told.get("input_types") or ["int64" if "ids" in n or "mask" in n else "float32" for n in names]
    axes = {name: found for name, found in named_axes(told).items() if name in names}
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for name, shape, kind in zip(names, shapes, types, strict=True):
        if kind not in _TYPES:
            raise ConfigError(f"io_config.input_types: {kind!r} for {name}; expected one of {', '.join(_TYPES)}")
        dtype = getattr(torch, kind)
        # An axis of length 1 in the example is taken for a constant, whatever is said of it.
        shape = [2 if size == 1 and axis in axes.get(name, {}) else size for axis, size in enumerate(shape)]
        if dtype.is_floating_point:
            inputs[name] = torch.rand(*shape, generator=generator).to(dtype)
        else:
            inputs[name] = torch.ones(*shape, dtype=dtype)
    return inputs, axes
