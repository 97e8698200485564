"""Decoders that go on from the keys and values of the tokens before: their inputs, outputs and the call to export.

The graph takes past_key_values.N.key and .value (batch, heads, past, size) for each layer N beside the token ids, and
gives present.N.key and .value with the new tokens' behind them: what one step gives is what the next one takes. The
first step gives it keys and values of length 0.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from drupe.core.errors import ConfigError, PassError
from drupe.plugins.huggingface.io_config import named_axes
from drupe.plugins.onnx.checked_session import checked_session
from drupe.plugins.onnx.decoding import PAST, PRESENT

__all__ = ["PastCall", "PastNames", "check_steps", "past_call", "past_names", "stepwise"]

_BATCH, _LENGTH, _PAST = "batch_size", "sequence_length", "past_sequence_length"
_WHOLE = f"{_PAST} + {_LENGTH}"
_NAMES = ("ort_past_key_name", "ort_past_value_name", "ort_present_key_name", "ort_present_value_name")
_SIZES = ("batch_size", "past_sequence_length")
_TOLD_BY_MODEL = ("num_hidden_layers", "num_attention_heads", "hidden_size", "dtype")
_ONLY: Mapping[str, Any] = {"world_size": 1, "shared_kv": False, "sequence_length_idx": 2}
"""Settings of kv_cache that have one value here, and which."""
_NEAR = 1e-3
"""How far a graph's outputs may be off, as a share of the largest."""
_OTHER = "try use_dynamo_exporter the other way, or another target_opset"


@dataclass(frozen=True)
class PastNames:
    """What a graph calls keys and values; <id> stands for the layer. batch, past: their sizes in the example.
    layers: how many the names were given for, where they were; axes: dynamic axes of the past and the present."""

    key: str = "past_key_values.<id>.key"
    value: str = "past_key_values.<id>.value"
    present_key: str = "present.<id>.key"
    present_value: str = "present.<id>.value"
    batch: int = 2
    past: int = 5
    layers: int | None = None
    axes: Mapping[int, str] = field(default_factory=lambda: {0: _BATCH, 2: _PAST})
    present_axes: Mapping[int, str] = field(default_factory=lambda: {0: _BATCH, 2: _WHOLE})


@dataclass(frozen=True)
class PastCall:
    """An example of a step. inputs: tensors by the graph's names, in order; pairs: the names of each layer's keys and
    values among them; outputs: the graph's names of what it gives; sources: the model's names of those before the keys
    and values; axes: the dynamic axes of all."""

    inputs: Mapping[str, Any]
    pairs: Sequence[tuple[str, str]]
    outputs: Sequence[str]
    sources: Sequence[str]
    axes: Mapping[str, Mapping[int, str]]


def past_names(task: str | None, told: Any) -> PastNames | None:
    """Return the names of keys and values where a model is to keep them, else None.

    It is where its task ends with -with-past, its io_config has kv_cache (true, or names and sizes), or names such
    inputs. Raises ConfigError for settings of kv_cache that can't be met.
    """
    told = told if isinstance(told, Mapping) else {}
    cache = told.get("kv_cache")
    named = [match for name in told.get("input_names") or () if (match := PAST.search(str(name)))]
    if named:
        return _from_names(told, named)
    if isinstance(cache, Mapping):
        return _from_settings(cache)
    if cache or (cache is None and str(task).endswith("-with-past")):
        return PastNames()
    return None


def _from_names(told: Mapping[str, Any], named: Sequence[re.Match[str]]) -> PastNames:
    found: dict[str, str] = {}
    for match in named:
        found.setdefault(match[2], _template(match))
    for name in told.get("output_names") or ():
        if present := PRESENT.search(str(name)):
            found.setdefault(f"present_{present[2]}", _template(present))
    absent = [kind for kind in ("key", "value") if kind not in found]
    if absent:
        raise ConfigError(f"io_config.input_names has past inputs, and none of them is a {absent[0]}")
    fields: dict[str, Any] = {**found, "layers": len({match[1] for match in named})}
    axes = named_axes(told)
    if own := next((axes[match.string] for match in named if match.string in axes), None):
        fields["axes"] = own
    return PastNames(**fields)


def _template(match: re.Match[str]) -> str:
    return f"{match.string[: match.start(1)]}<id>{match.string[match.end(1) :]}"


def _from_settings(cache: Mapping[str, Any]) -> PastNames:
    known = (*_NAMES, *_SIZES, *_TOLD_BY_MODEL, *_ONLY, "past_kv_dynamic_axis", "present_kv_dynamic_axis")
    for name, value in cache.items():
        if name not in known:
            raise ConfigError(f"io_config.kv_cache: unknown {name!r}; known: {', '.join(sorted(known))}")
        if name in _ONLY and value != _ONLY[name]:
            raise ConfigError(f"io_config.kv_cache.{name} is {value!r}; OnnxConversion has {_ONLY[name]!r} only")
        if name in _SIZES and value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"io_config.kv_cache.{name} is {value!r}; expected a number of at least 1")
        if name in _NAMES and "<id>" not in str(value):
            raise ConfigError(f"io_config.kv_cache.{name}: {value!r} has no <id> where the layer's number goes")
    fields: dict[str, Any] = {
        name.removeprefix("ort_").removeprefix("past_").removesuffix("_name"): str(cache[name])
        for name in _NAMES
        if name in cache
    }
    if cache.get("batch_size"):
        fields["batch"] = cache["batch_size"]
    if cache.get("past_sequence_length"):
        fields["past"] = cache["past_sequence_length"]
    for name, place in (("past_kv_dynamic_axis", "axes"), ("present_kv_dynamic_axis", "present_axes")):
        if cache.get(name):
            fields[place] = {int(axis): str(label) for axis, label in cache[name].items()}
    if cache.get("num_hidden_layers"):
        fields["layers"] = int(cache["num_hidden_layers"])
    return PastNames(**fields)


def past_call(loaded: Any, names: PastNames, told: Any, *, dynamic: bool, parameter: str, device: str) -> PastCall:
    """Return the example step of a decoder that is loaded. parameter: the argument of its forward call that takes the
    keys and values.

    Raises ConfigError for names that the model lacks and PassError where what it keeps is not keys and values.
    """
    import torch

    told = told if isinstance(told, Mapping) else {}
    arguments = inspect.signature(loaded.forward).parameters
    if parameter not in arguments or "input_ids" not in arguments:
        raise ConfigError(
            f"OnnxConversion: {type(loaded).__name__} takes no {parameter}, so it can't go on from keys and values; "
            "give a task without -with-past, or name the argument as past_key_value_name"
        )
    plain = _plain_inputs(loaded, told, arguments)
    # An axis of length 1 in an example is taken for a constant.
    batch, past = (max(2, names.batch), max(2, names.past)) if dynamic else (names.batch, names.past)
    length = next(size for size in (3, 4, 6, 7) if size not in (batch, past)) if dynamic else 1
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, int(loaded.config.get_text_config().vocab_size), (batch, past + length), generator=generator)
    ids = ids.to(device)
    with torch.inference_mode():
        before = loaded(input_ids=ids[:, :past], use_cache=True, return_dict=True)
    kept = _kept(before, parameter)
    if names.layers is not None and names.layers != len(kept):
        raise ConfigError(f"io_config tells keys and values of {names.layers} layers; the model has {len(kept)}")
    made = {
        "input_ids": ids[:, past:],
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(past, past + length, device=device).expand(batch, length),
    }
    inputs = {name: made[name].clone() for name in plain}
    pairs = []
    for layer, (key, value) in enumerate(kept):
        pair = names.key.replace("<id>", str(layer)), names.value.replace("<id>", str(layer))
        inputs |= {pair[0]: key.clone(), pair[1]: value.clone()}
        pairs.append(pair)
    sources = [str(name) for name in told.get("output_names") or () if not PRESENT.search(str(name))] or ["logits"]
    if absent := [name for name in sources if not isinstance(before.get(name), torch.Tensor)]:
        raise ConfigError(f"io_config.output_names: the model gives no {absent[0]}; it gives {', '.join(before)}")
    presents = [
        template.replace("<id>", str(layer))
        for layer in range(len(kept))
        for template in (names.present_key, names.present_value)
    ]
    axes: dict[str, Mapping[int, str]] = {}
    if dynamic:
        steps = {0: _BATCH, 1: _LENGTH}
        axes = {name: {0: _BATCH, 1: _WHOLE} if name == "attention_mask" else steps for name in plain}
        axes |= {name: names.axes for pair in pairs for name in pair}
        axes |= dict.fromkeys(sources, steps) | dict.fromkeys(presents, names.present_axes)
        axes |= {name: found for name, found in named_axes(told).items() if name in axes}
    return PastCall(inputs, pairs, [*sources, *presents], sources, axes)


def _plain_inputs(loaded: Any, told: Mapping[str, Any], arguments: Mapping[str, Any]) -> list[str]:
    """Return the inputs beside keys and values: those that io_config names, else those that the model takes."""
    known = ("input_ids", "attention_mask", "position_ids")
    asked = [str(name) for name in told.get("input_names") or () if not PAST.search(str(name))]
    for name in asked:
        if name not in known or name not in arguments:
            raise ConfigError(
                f"io_config.input_names: {name!r} is no input of a step of {type(loaded).__name__}; expected "
                f"{', '.join(known)}, and keys and values"
            )
    return asked or [name for name in known if name in arguments]


def _kept(outputs: Any, parameter: str) -> list[tuple[Any, Any]]:
    """Return each layer's keys and values, shaped (batch, heads, length, size)."""
    cache = outputs.get(parameter)
    layers = getattr(cache, "layers", None)
    found = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers or ()]
    if not found or any(key is None or value is None or key.dim() != 4 or value.dim() != 4 for key, value in found):
        what = type(cache).__name__ if cache is not None else "nothing"
        raise PassError(
            f"OnnxConversion: the model keeps {what} between tokens, and not just keys and values of each layer; "
            "export it without past (task: text-generation), or build it with ModelBuilder"
        )
    return found


def stepwise(loaded: Any, call: PastCall, parameter: str) -> Any:
    """Wrap a decoder so that it takes the inputs of a step by position and gives its outputs as a tuple."""
    import torch
    from transformers.cache_utils import DynamicCache, DynamicLayer

    names = list(call.inputs)

    class Stepwise(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = loaded

        def forward(self, *values: Any) -> Any:
            given = dict(zip(names, values, strict=True))
            cache = DynamicCache()
            cache.layers = [_layer(DynamicLayer, given.pop(key), given.pop(value)) for key, value in call.pairs]
            outputs = self.inner(**given, **{parameter: cache}, use_cache=True, return_dict=True)
            kept = [tensor for pair in _kept(outputs, parameter) for tensor in pair]
            return (*(outputs[name] for name in call.sources), *kept)

    return Stepwise().eval()


def _layer(kind: Any, key: Any, value: Any) -> Any:
    """Return a layer of a cache that holds keys and values as they are; its own update would append them to none."""
    layer = kind()
    layer.keys, layer.values = key, value
    layer.dtype, layer.device, layer.is_initialized = key.dtype, key.device, True
    return layer


def check_steps(proto: Any, wrapped: Any, call: PastCall) -> None:
    """Raise PassError where a graph gives something else than the model at lengths that the example does not have: a
    first step, from nothing, and a later one. An exporter may have taken a length of the example for a constant.

    Does nothing where axes are fixed, or the graph can't be run here (see checked_session).
    """
    import torch

    pasts = {name for pair in call.pairs for name in pair}
    free = all({0, 2 if name in pasts else 1} <= set(call.axes.get(name, {})) for name in call.inputs)
    if not free:
        return
    try:
        session = checked_session(proto, call.inputs.values())
    except ValueError as error:
        raise PassError(f"OnnxConversion made a graph that ONNX Runtime can't load: {error}; {_OTHER}") from error
    if session is None:
        return
    generator = torch.Generator().manual_seed(1)
    for batch, past, length in ((1, 0, 4), (3, 7, 1)):
        step: dict[str, Any] = {}
        for name, value in call.inputs.items():
            if name in pasts:
                step[name] = torch.randn(batch, value.shape[1], past, value.shape[3], generator=generator)
            elif name == "attention_mask":
                step[name] = torch.ones(batch, past + length, dtype=value.dtype)
            elif name == "position_ids":
                step[name] = torch.arange(past, past + length).expand(batch, length)
            else:
                highest = int(value.max()) + 1
                step[name] = torch.randint(0, highest, (batch, length), generator=generator)
        with torch.inference_mode():
            expected = wrapped(*step.values())
        taken = {item.name for item in session.get_inputs()}
        at = f"{length} token{'s' if length > 1 else ''} after {past}, batch {batch}"
        try:
            got = session.run(
                list(call.outputs), {name: value.numpy() for name, value in step.items() if name in taken}
            )
        except Exception as error:
            raise PassError(f"OnnxConversion made a graph that fails at {at}: {error}; {_OTHER}") from error
        for name, ours, theirs in zip(call.outputs, got, expected, strict=True):
            wanted = theirs.numpy()
            near = ours.shape == wanted.shape and abs(ours - wanted).max() <= _NEAR * max(1.0, abs(wanted).max())
            if not near:
                raise PassError(f"OnnxConversion made a graph whose {name} is wrong at {at}; {_OTHER}")
