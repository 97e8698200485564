"""What an exported graph gives: all that the model gives, or what io_config chooses of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drupe.core.errors import ConfigError, PassError

__all__ = ["ExportOutputs", "export_outputs", "output_axes"]


@dataclass(frozen=True)
class ExportOutputs:
    """sources: the model's names of what the graph gives; names: the graph's names of it; sizes: its shapes in the
    example; whole: whether the model gives nothing else."""

    sources: Sequence[str]
    names: Sequence[str]
    sizes: Mapping[str, tuple[int, ...]]
    whole: bool


def export_outputs(
    loaded: Any, inputs: Mapping[str, Any], constants: Mapping[str, Any], told: Mapping[str, Any]
) -> ExportOutputs:
    """Return the graph's outputs: all of the model's, or those that io_config.output_names chooses or renames."""
    import torch

    with torch.inference_mode():
        outputs = loaded(**inputs, **constants, return_dict=True)
    found = {name: tuple(value.shape) for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    asked = list(told.get("output_names") or ())
    if asked and all(name in found for name in asked):
        return ExportOutputs(asked, asked, {name: found[name] for name in asked}, asked == list(outputs))
    if len(found) != len(outputs):
        nested = ", ".join(name for name in outputs if name not in found)
        raise PassError(
            f"OnnxConversion: the model gives nested outputs ({nested}), which a graph can't name; choose among "
            f"{', '.join(found) or 'none'} with input_model.io_config.output_names"
        )
    if asked and len(asked) != len(found):
        raise ConfigError(
            f"io_config.output_names has {len(asked)} names ({', '.join(asked)}); the model gives {', '.join(found)}"
        )
    names = asked or list(found)
    return ExportOutputs(list(found), names, dict(zip(names, found.values(), strict=True)), True)


def output_axes(
    inputs: Mapping[str, Any], outputs: ExportOutputs, axes: Mapping[str, Mapping[int, str]]
) -> dict[str, dict[int, str]]:
    """Return the outputs' dynamic axes: those whose length follows the example's batch or sequence."""
    lengths = {inputs[name].shape[axis]: label for name, found in axes.items() for axis, label in found.items()}
    found = {}
    for name, sizes in outputs.sizes.items():
        # The first two axes only: a hidden size may happen to equal the example's length.
        labels = {axis: lengths[size] for axis, size in enumerate(sizes[:2]) if size in lengths}
        if labels:
            found[name] = labels
    return found
