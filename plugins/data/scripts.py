"""Data that functions of a user's script load, prepare or batch, after the user's consent."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.core.user_scripts import blamed, loader_items, user_function
from drupe.plugins.data.accounting import Accounting
from drupe.plugins.data.dataset import load_table
from drupe.plugins.data.options import GroupedConfig
from drupe.plugins.data.scripted_rows import as_dataset
from drupe.plugins.data.templates import content_key

if TYPE_CHECKING:
    import numpy as np


__all__ = ["scripted_samples"]

_WHOLE = ("no_auto_batch_dataloader", "skip_dataloader")
"""Data loaders that hand a function's items on as they are: each is a batch already."""

_AS_THEY_ARE = ("skip_pre_process", "pre_process")
"""Preparations that change nothing."""


_GROUPS = ("load_dataset_config", "pre_process_data_config", "dataloader_config")
"""In the order in which their functions are called."""


def scripted_samples(
    config: GroupedConfig, model: Model | None, context: JobContext
) -> tuple[list[Sample] | None, Accounting]:
    """Run the script's functions and return samples.

    load_dataset(…) returns items; pre_process(items, …) returns items; dataloader(items, …) yields batches. An item is
    a mapping of inputs, a pair of inputs and target, or, when only load_dataset is the script's, a row (a mapping of
    plain values, or what the built-in preparation that the config names takes on): then samples are None and the
    account's notes hold the rows.
    """
    if config.user_script is None:
        raise ConfigError(f"{', '.join(config.functions.values())}: functions of a user_script, but none is named")

    def call(group: str, *items: Any) -> Any:
        component = getattr(config, group)
        name, script = str(component.function), str(config.user_script)
        function = user_function(script, name, context, folder=config.script_dir)
        if not callable(function):
            raise ConfigError(f"{group}.type: {name} of {script} is no function")
        with blamed(name, script, ConfigError):
            return function(*items, **_known(function, component.params, config, model))

    functions = config.functions
    limit = config.pre_process_data_config.max_samples
    if "load_dataset_config" in functions:
        items, origin = call("load_dataset_config"), f"{functions['load_dataset_config']} of {config.user_script}"
    elif not config.reads_rows:
        # A local_dataset of nothing: the next function finds its data by itself.
        items, origin = None, str(config.user_script)
    else:
        table = load_table(config.load_dataset_config, _folder(context), context, limit)
        items, origin = table.rows, table.origin
        if "pre_process_data_config" in functions or "dataloader_config" in functions:
            items = as_dataset(table, config.load_dataset_config, _folder(context), context)
    if "pre_process_data_config" in functions:
        items = call("pre_process_data_config", items)
    elif "dataloader_config" not in functions and config.pre_process_data_config.type not in _AS_THEY_ARE:
        told = config.pre_process_data_config.type is not None
        # Once: some can be gone through no more than that.
        with blamed(functions.get("load_dataset_config"), str(config.user_script), ConfigError):
            items = list(_iterate(items)[0])
        rows = [item for item in items if isinstance(item, Mapping)]
        if rows and (told or all(_is_plain(value) for value in rows[0].values())):
            account = Accounting(len(rows), origin)
            account.notes["rows"] = rows
            return None, account
    batched = "dataloader_config" in functions
    if batched:
        items = call("dataloader_config", items)
    whole = not batched and config.dataloader_config.type in _WHOLE
    last = next(reversed([functions[group] for group in _GROUPS if group in functions]), None)
    with blamed(last, str(config.user_script), ConfigError):
        found, taken = _iterate(items)
        samples = list(_samples(found, batched=batched, whole=whole, limit=limit))
    account = Accounting(len(samples), origin)
    if taken is not None:
        account.notes["loader"] = f"it has no end; {taken} batches were taken"
    return samples, account


def _known(
    function: Callable[..., Any], own: Mapping[str, Any], config: GroupedConfig, model: Model | None
) -> dict[str, Any]:
    """Return the config's arguments, and of what Drupe offers those that the function's signature names."""
    offered = {
        "batch_size": config.dataloader_config.batch_size or 1,
        "model_path": str(model.folder) if model is not None and model.path is not None else None,
        "max_samples": config.pre_process_data_config.max_samples,
    }
    names = inspect.signature(function).parameters
    return {key: value for key, value in offered.items() if key in names} | dict(own)


def _folder(context: JobContext) -> Any:
    from pathlib import Path

    return context.workflow_dir or Path()


def _iterate(items: Any) -> tuple[Iterator[Any], int | None]:
    if isinstance(items, Iterable) or hasattr(items, "__getitem__"):
        return loader_items(items)
    raise ConfigError(f"a function of user_script returned {type(items).__name__}; expected something to iterate over")


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _samples(items: Iterator[Any], *, batched: bool, whole: bool, limit: int | None) -> Iterator[Sample]:
    count = 0
    for item in items:
        inputs, target = item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, None)
        if not isinstance(inputs, Mapping):
            inputs = {"input": inputs}
        arrays = {str(name): value if isinstance(value, str) else _array(value) for name, value in inputs.items()}
        answers = None if target is None else _array(target)
        # Arrays that don't share a first axis are inputs as the model takes them, and no batch of samples.
        split = batched and _share_an_axis(arrays)
        if split and answers is not None and answers.ndim and len(answers) != _size(arrays):
            raise ConfigError(
                f"a batch of the user's loader has {_size(arrays)} inputs and {len(answers)} targets; expected one each"
            )
        for index in range(_size(arrays) if split else 1):
            if limit is not None and count >= limit:
                return
            mine = {n: v if isinstance(v, str) or not split else v[index] for n, v in arrays.items()}
            answer = answers if answers is None or not split or answers.ndim == 0 else answers[index]
            plain = answer.item() if answer is not None and answer.ndim == 0 else answer
            extras = {"whole_batch": True} if whole or split != batched else {}
            yield Sample(f"{count:07}", mine, plain, _key(mine), extras)
            count += 1


def _share_an_axis(arrays: Mapping[str, np.ndarray | str]) -> bool:
    import numpy as np

    sizes = {len(a) if a.ndim else 0 for a in arrays.values() if isinstance(a, np.ndarray)}
    return len(sizes) < 2 and 0 not in sizes


def _size(arrays: Mapping[str, np.ndarray | str]) -> int:
    import numpy as np

    return next((len(a) for a in arrays.values() if isinstance(a, np.ndarray) and a.ndim), 1)


def _array(value: Any) -> np.ndarray:
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        found = np.asarray(value)
    except ValueError:
        # Lists of unequal lengths.
        found = np.asarray(None)
    if found.dtype.kind == "O":
        raise ConfigError(f"{value!r:.60} is no array; expected numbers, texts or lists of equal length")
    return found


def _key(inputs: Mapping[str, np.ndarray | str]) -> str:
    parts: Sequence[str] = [f"{n}={v if isinstance(v, str) else v.tobytes().hex()}" for n, v in sorted(inputs.items())]
    return content_key(" ".join(parts))
