"""Batches to train on: a data config's samples put together, or what a function of the user's script gives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.plugins.quantization.qat.config import QuantizationAwareTrainingConfig
from drupe.plugins.quantization.qat.scripts import Functions, call_by_position, folder, known

__all__ = ["Batch", "Repeated", "Source", "moved", "training_source", "validation_source"]

Batch = tuple[Any, Any]
"""Inputs (a tensor, a tuple of them, or a mapping by name) and labels (a tensor, or None)."""
Source = Callable[[int], Iterable[Batch]]
"""Epoch number → its batches."""

_IGNORED = -100
"""The label that cross entropy skips."""


class Repeated:
    """Batches to go through, a further epoch each time."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._epoch = -1

    def __iter__(self) -> Iterator[Batch]:
        self._epoch += 1
        return iter(self._source(self._epoch))


def training_source(
    model: Model, module: Any, config: QuantizationAwareTrainingConfig, functions: Functions, context: JobContext
) -> tuple[Source, int | None] | None:
    """Return what gives the training batches and how many there are in an epoch (None: not known).

    None where the config names no data. Raises ConfigError for data that are empty or have no labels.
    """
    seed = context.seed if config.seed is None else config.seed
    if config.train_data_config is not None:
        samples = context.data(config.train_data_config, model=model, part="train")
        return _sampled("train_data_config", samples, model, module, config, seed)
    if functions.train_dataloader is None:
        return None
    given = (folder(config.train_data_dir, context), config.train_batch_size)
    return _loaded("train_dataloader_func", functions.train_dataloader, given, known(config, context))


def validation_source(
    model: Model, module: Any, config: QuantizationAwareTrainingConfig, functions: Functions, context: JobContext
) -> Source | None:
    """Return what gives the validation batches, or None where the config names none."""
    if config.val_data_config is not None:
        samples = context.data(config.val_data_config, model=model, part=None)
        return _sampled("val_data_config", samples, model, module, config, None)[0]
    if functions.val_dataloader is None:
        return None
    given = (folder(config.val_data_dir, context), config.train_batch_size)
    return _loaded("val_dataloader_func", functions.val_dataloader, given, known(config, context, "val"))[0]


def moved(value: Any, device: str) -> Any:
    """Return a batch's values on a device; arrays become tensors."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value)).to(device)
    if isinstance(value, Mapping):
        return {name: moved(item, device) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(moved(item, device) for item in value)
    return value


def _loaded(
    field: str, function: Callable[..., Any], given: tuple[Any, ...], offered: Mapping[str, Any]
) -> tuple[Source, int | None]:
    loader = call_by_position(field, function, given, offered)
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise ConfigError(f"{field} returned {type(loader).__name__}; expected batches to go through, as a DataLoader")
    once = iter(loader) is loader

    def epoch(number: int) -> Iterator[Batch]:
        # A generator is used up after one epoch: the function makes another.
        items = call_by_position(field, function, given, offered) if once else loader
        empty = True
        for index, item in enumerate(items):
            empty = False
            yield _pair(f"batch {index} of {field}", item)
        if empty:
            raise ConfigError(f"{field} gives no batches; check the folder that it reads")

    return epoch, len(loader) if hasattr(loader, "__len__") else None


def _pair(where: str, item: Any) -> Batch:
    if isinstance(item, Mapping):
        labels = next((item[name] for name in ("labels", "label") if name in item), None)
        return {str(name): value for name, value in item.items() if name not in ("labels", "label")}, labels
    if isinstance(item, (list, tuple)) and len(item) == 2:
        return item[0], item[1]
    size = f" of {len(item)}" if isinstance(item, (list, tuple)) else ""
    raise ConfigError(
        f"{where} is a {type(item).__name__}{size}; expected a pair of inputs and labels, or a mapping with labels"
    )


def _sampled(
    field: str,
    samples: Sequence[Sample],
    model: Model,
    module: Any,
    config: QuantizationAwareTrainingConfig,
    seed: int | None,
) -> tuple[Source, int]:
    """Batches of samples, in a new order for each epoch unless seed is None."""
    if not samples:
        raise ConfigError(f"{field} {getattr(config, field)} has no samples")
    names = [name for name, value in samples[0].inputs.items() if name != "labels" and not isinstance(value, str)]
    parameters = inspect.signature(module.forward).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    taken = [name for name in names if name in parameters or (free and model.kind == "hf")]
    if model.kind != "hf" and len(names) == 1:
        # A module of one input is called with it, whatever the two call it.
        taken = []
    if not taken and len(names) != 1:
        raise ConfigError(
            f"{field} gives {', '.join(names) or 'no arrays'}; the model takes {', '.join(parameters)}, none of them"
        )

    def epoch(number: int) -> Iterator[Batch]:
        order = np.arange(len(samples))
        if seed is not None:
            order = np.random.default_rng((seed, number)).permutation(len(samples))
        for start in range(0, len(order), config.train_batch_size):
            rows = [samples[index] for index in order[start : start + config.train_batch_size]]
            arrays = {name: _stacked([row.inputs[name] for row in rows], 0) for name in taken or names}
            if "attention_mask" in parameters and "input_ids" in arrays and "attention_mask" not in arrays:
                ones = [np.ones_like(row.inputs["input_ids"]) for row in rows]
                arrays["attention_mask"] = _stacked(ones, 0)
            yield arrays if taken else arrays[names[0]], _labels(field, rows)

    _labels(field, samples[:1])
    return epoch, -(-len(samples) // config.train_batch_size)


def _labels(field: str, rows: Sequence[Sample]) -> Any:
    found = [row.inputs.get("labels", row.target) for row in rows]
    for row, label in zip(rows, found, strict=True):
        if label is None or isinstance(label, str):
            raise ConfigError(f"{field}: sample {row.id} has no label to train on (it has {label!r}); expected numbers")
    return _stacked(found, _IGNORED)


def _stacked(values: Sequence[Any], padding: int) -> Any:
    arrays = [np.asarray(value) for value in values]
    if any(array.shape != arrays[0].shape for array in arrays):
        sizes = [max(array.shape[axis] for array in arrays) for axis in range(arrays[0].ndim)]
        out = np.full((len(arrays), *sizes), padding, arrays[0].dtype)
        for index, array in enumerate(arrays):
            corner: tuple[int | slice, ...] = (index, *(slice(0, size) for size in array.shape))
            out[corner] = array
        return torch.from_numpy(out)
    return torch.from_numpy(np.stack(arrays))
