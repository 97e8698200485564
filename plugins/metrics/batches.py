"""Turns samples, a user's data loader, or nothing at all into batches that a session's `forward` takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.core.runtimes import Session
from drupe.core.user_scripts import blamed, call_loader, loader_items, script_function
from drupe.plugins.metrics.config import DataMetricConfig, note
from drupe.plugins.metrics.made_up import made_up_inputs
from drupe.plugins.metrics.sequence_lengths import LENGTHS, sequence_lengths

if TYPE_CHECKING:
    import numpy as np


__all__ = ["Batch", "array", "batches", "data_dir_of", "made_up_batch", "spread"]

Shapes = Mapping[str, tuple[tuple[int | str, ...], str]]

_END = object()


@dataclass(frozen=True)
class Batch:
    """Inputs of shape (batch, …), with the ids and targets of the real samples in it; the rest is padding.

    whole: one id and one target stand for the batch, as the user's own loader made it.
    """

    ids: tuple[str, ...]
    inputs: Mapping[str, np.ndarray]
    targets: tuple[Any, ...]
    references: tuple[Any, ...] = ()
    whole: bool = False


def batches(
    session: Session, samples: Sequence[Sample], config: DataMetricConfig, context: JobContext
) -> Iterator[Batch]:
    """Yield batches from the user's data loader where the config names one, else from the samples.

    Raises EvaluationError when there is neither, or when a sample lacks an input of the model.
    """
    if config.dataloader_func is not None:
        yield from _loaded(session, config, context)
        return
    if not samples:
        raise EvaluationError("the metric has no data; name a data config as its data_config")
    unused = [name for name in ("input_shapes", "shape_kwargs") if getattr(config, name)]
    if unused:
        note(f"{' and '.join(unused)} had no effect: inputs are made up only where there is no data", context)
    shapes = _shapes(session)
    if all(sample.extras.get("whole_batch") for sample in samples):
        for (sample,) in context.batches(samples, 1):
            yield _whole(sample, shapes)
        return
    size = _fixed_batch(shapes) or config.batch_size
    for part in context.batches(samples, size):
        yield _collate(part, shapes)


def spread(batch: Batch, count: int) -> list[tuple[str, int, Any]]:
    """Return (id, position in the outputs, target) of each real sample. count: how many the outputs are for.

    A whole batch has one id and one target for all of its samples. Raises EvaluationError where the target has not one
    for each.
    """
    if not batch.whole:
        return list(zip(batch.ids, range(len(batch.ids)), batch.targets, strict=True))
    (key,), (target,) = batch.ids, batch.targets
    if target is None:
        return [(f"{key}#{position}", position, None) for position in range(count)]
    wanted = array(target)
    if wanted.ndim == 0 and count == 1:
        # One picture beside the texts that it is compared with.
        return [(key, 0, target)]
    if wanted.ndim == 0 or len(wanted) != count:
        raise EvaluationError(
            f"batch {key} has targets of shape {wanted.shape} and outputs for {count} samples; expected a target for "
            "each"
        )
    return [(f"{key}#{position}", position, one) for position, one in enumerate(wanted)]


def made_up_batch(session: Session, config: DataMetricConfig, context: JobContext, seed: int) -> Batch:
    """Return one batch of made-up input: by input_shapes, else by the session's own shapes, whose named axes take sizes
    from shape_kwargs.
    """
    shapes = _told_shapes(_shapes(session), config, context)
    if not shapes:
        raise EvaluationError(
            "the metric has no data and the model tells no input shapes; name a data_config, or input_names and "
            "input_shapes"
        )
    _note_axes(shapes, config, context)
    inputs = made_up_inputs(shapes, seed=seed, batch_size=config.batch_size, lengths=config.shape_kwargs)
    first = next(iter(inputs.values()))
    count = first.shape[0] if first.ndim else 1
    if not count:
        raise EvaluationError(f"shape_kwargs {config.shape_kwargs} make batches of no sample; give the batch a size")
    return Batch(tuple(f"made-up-{i}" for i in range(count)), inputs, (None,) * count)


def _told_shapes(shapes: Shapes, config: DataMetricConfig, context: JobContext) -> Shapes:
    """Return the session's shapes, with those of the config in their place."""
    if config.input_shapes is None:
        return shapes
    names = config.input_names or list(shapes)
    if len(names) < len(config.input_shapes):
        inputs = f"has the inputs {', '.join(names)}" if names else "tells no inputs: say input_names"
        raise EvaluationError(f"input_shapes has {len(config.input_shapes)} entries; the model {inputs}")
    types = config.input_types or ["float32"] * len(config.input_shapes)
    found = dict(shapes)
    for name, shape, kind in zip(names, config.input_shapes, types, strict=False):
        if shapes and name not in shapes:
            note(f"input_names: {name} is no input of this model; it has {', '.join(shapes)}", context)
            continue
        found[name] = (tuple(shape), shapes[name][1] if name in shapes else kind)
    return found


def _note_axes(shapes: Shapes, config: DataMetricConfig, context: JobContext) -> None:
    """Tell of sizes for axes that the model does not have: another model of the same run may have them."""
    axes = {part for shape, _ in shapes.values() for axis in shape for part in str(axis).split(" + ")}
    unknown = [axis for axis in config.shape_kwargs if axis not in axes or axis.isdigit()]
    if unknown:
        named = ", ".join(sorted(axis for axis in axes if not axis.lstrip("-").isdigit()))
        what = f"no axis of this {'model' if named else 'model, which has no named axes'}"
        note(f"shape_kwargs: {', '.join(unknown)} is {what}" + (f"; it has {named}" if named else ""), context)


def data_dir_of(config: DataMetricConfig, context: JobContext) -> str | None:
    """Return the folder that functions of users' scripts are given as data_dir."""
    folder = context.workflow_dir
    return str(folder / config.data_dir) if folder and config.data_dir else config.data_dir


def array(value: Any) -> np.ndarray:
    """Return a tensor of any framework, or numbers, as a numpy array."""
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu()
    if isinstance(value, (list, tuple)) and value and not isinstance(value[0], (int, float, str)):
        # Tensors in lists, such as the keys and values of each layer.
        return np.stack([array(part) for part in value])
    return np.asarray(value)


def _loaded(session: Session, config: DataMetricConfig, context: JobContext) -> Iterator[Batch]:
    import numpy as np

    function = script_function(config, "dataloader_func", context)
    assert function is not None
    name, script = config.dataloader_func, config.user_script
    with blamed(name, script):
        loader: Any = call_loader(
            function,
            config.func_kwargs.get("dataloader_func", {}),
            data_dir=data_dir_of(config, context),
            batch_size=config.batch_size,
            framework=session.framework,
        )
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise EvaluationError(
            f"{name} ({script}) returned {loader!r}; expected batches of (inputs, targets) one by one"
        )
    with blamed(name, script):
        items, taken = loader_items(loader)
    if taken is not None:
        note(f"{name} gives batches without end; {taken} were taken", context)
    shapes = _shapes(session)
    for index in itertools.count():
        with blamed(name, script):
            item = next(items, _END)
        if item is _END and not index:
            raise EvaluationError(f"{name} ({script}) gave no batch; expected (inputs, targets) one by one")
        if item is _END:
            break
        context.raise_if_cancelled()
        inputs, targets = item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, None)
        if not isinstance(inputs, Mapping):
            inputs = _named(inputs, shapes, config)
        if targets is None and "labels" in inputs and "labels" not in shapes:
            # As loaders written for transformers give them.
            targets = inputs["labels"]
            inputs = {name: value for name, value in inputs.items() if name != "labels"}
        if not session.takes_more:
            inputs = _taken(inputs, shapes, config, context)
        arrays = {name: array(value) for name, value in inputs.items()}
        count = next((len(a) for a in arrays.values() if a.ndim), 1)
        answers: Sequence[Any] = [None] * count if targets is None else list(np.atleast_1d(array(targets)))
        if len(answers) != count:
            raise EvaluationError(
                f"batch {index} of {config.dataloader_func} has {count} inputs and {len(answers)} targets"
            )
        yield Batch(tuple(f"batch-{index:05}-{i:04}" for i in range(count)), arrays, tuple(answers))


def _taken(
    inputs: Mapping[str, Any], shapes: Shapes, config: DataMetricConfig, context: JobContext
) -> Mapping[str, Any]:
    """Leave out, and tell, what a loader gives beyond the model's inputs: one loader often serves several models."""
    beyond = [name for name in inputs if name not in shapes]
    if not shapes or not beyond or len(beyond) == len(inputs):
        return inputs
    note(f"{config.dataloader_func} gives {', '.join(beyond)}, which the model does not take; left out", context)
    return {name: value for name, value in inputs.items() if name in shapes}


def _named(inputs: Any, shapes: Shapes, config: DataMetricConfig) -> Mapping[str, Any]:
    """Return what a loader yields without names under those of the model: one tensor, or one for each input."""
    values = list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]
    if not shapes and len(values) == 1:
        return {"input": values[0]}
    if len(values) != len(shapes):
        raise EvaluationError(
            f"{config.dataloader_func} ({config.user_script}) gives {len(values)} inputs without names; "
            f"the model takes {', '.join(shapes) or 'inputs by name'}; yield a mapping of inputs by name"
        )
    return dict(zip(shapes, values, strict=True))


def _whole(sample: Sample, shapes: Shapes) -> Batch:
    names = list(shapes) or [name for name, value in sample.inputs.items() if not isinstance(value, str)]
    inputs = {name: _input(sample, name, 0) for name in names}
    return Batch((sample.id,), inputs, (sample.target,), (sample.extras.get("reference"),), whole=True)


def _collate(samples: Sequence[Sample], shapes: Shapes) -> Batch:
    import numpy as np

    names = list(shapes) or [n for n, v in samples[0].inputs.items() if n != "labels" and not isinstance(v, str)]
    length = max((len(v) for s in samples for n, v in s.inputs.items() if n == "input_ids"), default=0)
    fixed = _fixed_batch(shapes)
    rows = list(samples) + [samples[-1]] * ((fixed or 0) - len(samples))
    inputs = {}
    for name in names:
        if name in LENGTHS and all(isinstance(s.inputs.get("input_ids"), np.ndarray) for s in rows):
            inputs[name] = sequence_lengths(name, [_tokens(s) for s in rows], _padded(shapes) or length)
            continue
        shape, dtype = shapes.get(name, ((), ""))
        parts = [_input(sample, name, length) for sample in rows]
        inputs[name] = _stack(parts, shape, name, dtype)
    return Batch(
        tuple(sample.id for sample in samples),
        inputs,
        tuple(sample.target for sample in samples),
        tuple(sample.extras.get("reference") for sample in samples),
    )


def _tokens(sample: Sample) -> int:
    import numpy as np

    return int(np.asarray(sample.inputs.get("attention_mask", np.ones_like(sample.inputs["input_ids"]))).sum())


def _padded(shapes: Shapes) -> int | None:
    """Return the fixed length of sequences, where the model has one."""
    size = shapes["input_ids"][0][-1] if shapes.get("input_ids", ((), ""))[0] else None
    return size if isinstance(size, int) and size > 0 else None


def _input(sample: Sample, name: str, length: int) -> np.ndarray:
    import numpy as np

    value = sample.inputs.get(name)
    if value is not None and not isinstance(value, str):
        return np.asarray(value)
    ids = sample.inputs.get("input_ids")
    if isinstance(ids, np.ndarray):
        # What a tokenizer may leave out because it follows from the ids.
        if name == "attention_mask":
            return np.ones_like(ids)
        if name == "token_type_ids":
            return np.zeros_like(ids)
        if name == "position_ids":
            return np.arange(length, dtype=ids.dtype)
    raise EvaluationError(
        f"sample {sample.id} has no input {name!r}, which the model takes; it has: {', '.join(sample.inputs)}"
    )


def _stack(parts: Sequence[np.ndarray], shape: tuple[int | str, ...], name: str, dtype: str) -> np.ndarray:
    """Stack along a new first axis, padding with zeros to the longest or to the model's fixed sizes."""
    import numpy as np

    sizes = [max(part.shape[axis] for part in parts) for axis in range(parts[0].ndim)]
    for axis, size in enumerate(shape[1:]):
        if isinstance(size, int) and size > 0 and axis < len(sizes):
            if sizes[axis] > size:
                raise EvaluationError(
                    f"input {name!r} has {sizes[axis]} entries on axis {axis + 1}; the model was built for {size}"
                )
            sizes[axis] = size
    out = np.zeros((len(parts), *sizes), dtype or parts[0].dtype)
    for index, part in enumerate(parts):
        if out.dtype.kind in "iub" and part.dtype.kind == "f" and not np.array_equal(part, np.trunc(part)):
            raise EvaluationError(f"input {name!r} takes whole numbers ({out.dtype}), and the data has fractions")
        corner: tuple[int | slice, ...] = (index, *(slice(0, n) for n in part.shape))
        out[corner] = part
    return out


def _shapes(session: Session) -> Shapes:
    try:
        return session.input_shapes()
    except NotImplementedError:
        return {}


def _fixed_batch(shapes: Shapes) -> int | None:
    for name, (shape, _) in shapes.items():
        if name not in LENGTHS and shape and isinstance(shape[0], int) and shape[0] > 0:
            return shape[0]
    return None
