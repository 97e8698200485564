"""A model's outputs as a user's functions and the metrics take them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from drupe.core.context import JobContext
from drupe.core.errors import EvaluationError
from drupe.core.user_scripts import blamed, script_function
from drupe.plugins.metrics.batches import array
from drupe.plugins.metrics.config import DataMetricConfig

if TYPE_CHECKING:
    import numpy as np


__all__ = ["Outputs", "looked_at", "made_of", "main_name", "main_output", "post_processed", "tensors"]


_Read = TypeVar("_Read")


class Outputs(dict[str, Any]):
    """Outputs by name, also as attributes and by number, as scripts written for transformers expect."""

    def __missing__(self, key: Any) -> Any:
        if isinstance(key, (int, slice)):
            return list(self.values())[key]
        raise KeyError(key)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the model has no output {name!r}; it has: {', '.join(self)}") from None


def main_output(outputs: Mapping[str, Any], name: str | None = None) -> np.ndarray:
    """Return the named output, else "logits", else the first. Raises EvaluationError for an absent name."""
    name = name or main_name(outputs)
    if name not in outputs:
        raise EvaluationError(f"the model has no output {name!r}; it has: {', '.join(outputs)}")
    return array(outputs[name])


def main_name(outputs: Mapping[str, Any]) -> str:
    """Return the name of the output that is looked at where none is named: "logits", else the first."""
    return "logits" if "logits" in outputs else next(iter(outputs))


def post_processed(
    outputs: Mapping[str, Any], config: DataMetricConfig, context: JobContext, *, count: int, output: str | None = None
) -> np.ndarray:
    """Return predictions or scores of shape (batch, …): through the user's function where there is one.

    count: how many samples are asked about. Raises EvaluationError where the function gives fewer.
    """
    if config.post_processing_func is None:
        return main_output(outputs, output)
    made, found = made_of(outputs, config, context, lambda given: (given, array(given)))
    if not found.ndim or len(found) < count:
        raise EvaluationError(
            f"{config.post_processing_func} ({config.user_script}) returned {_told(made)}; expected a prediction, or "
            f"scores, for each of {count} samples"
        )
    return found


def made_of(
    outputs: Mapping[str, Any], config: DataMetricConfig, context: JobContext, read: Callable[[Any], _Read]
) -> _Read:
    """Return what post_processing_func makes of the outputs, read. One output is given by itself, several by name.

    Raises EvaluationError naming the function for what it, or `read`, raises.
    """
    function = script_function(config, "post_processing_func", context)
    assert function is not None
    given = tensors(outputs)
    first = next(iter(given.values())) if len(given) == 1 else given
    with blamed(config.post_processing_func, config.user_script):
        return read(function(first, **config.func_kwargs.get("post_processing_func", {})))


def looked_at(
    outputs: Mapping[str, Any], config: DataMetricConfig, context: JobContext, *, count: int
) -> Mapping[str, Any]:
    """Return the outputs that a comparison looks at: what the user's function makes of them where there is one."""
    if config.post_processing_func is None:
        return outputs
    return {config.post_processing_func: post_processed(outputs, config, context, count=count)}


def _told(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return repr(value)[:80] if shape is None else f"an array of shape {tuple(shape)}"


def tensors(outputs: Mapping[str, Any]) -> Outputs:
    """Return outputs as torch tensors where torch is installed, else as arrays: user scripts are written for torch."""
    import numpy as np

    if importlib.util.find_spec("torch") is None:
        return Outputs(outputs)
    import torch

    return Outputs({name: torch.from_numpy(np.array(value)) for name, value in outputs.items()})
