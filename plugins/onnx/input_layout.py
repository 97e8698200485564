"""InputNCHWtoNHWC: pictures come with their channels last, as cameras and NPUs have them; the graph inside is the same.

Standard convolutions want channels first, so a transposition is put behind such an input. On a CPU it costs time for
nothing: a transposition that the graph undoes is left out, and one before a convolution goes into its kernel.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model
from drupe.plugins.onnx.calibration import PAST
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig
from drupe.plugins.onnx.graphs import graph_paths
from drupe.plugins.onnx.idle import tell_idle
from drupe.plugins.onnx.layouts import fold_transpose, put_transpose

__all__ = ["InputNCHWtoNHWC", "InputNCHWtoNHWCConfig"]


class InputNCHWtoNHWCConfig(GraphPassConfig):
    """Which inputs change."""

    input_names: list[str] | None = Field(
        None,
        min_length=1,
        description="Inputs that come with channels last; default: all that have four axes, keys and values aside.",
    )
    fold: bool | None = Field(
        None,
        description="Leave the transposition out where the first convolution can do without; default: where the target "
        "is a CPU. NPUs turn convolutions themselves, and then the transposition as it is serves them best.",
    )


class InputNCHWtoNHWC(GraphPass):
    """Makes inputs of (batch, channels, height, width) ones of (batch, height, width, channels).

    Rules: 1. Outputs stay as they are. 2. Folded, the first convolution sees the picture as one channel of width ×
    channels, with a kernel in the same order: every product and sum is the same one, in another order of summation.
    """

    Config: ClassVar[type[PassConfig]] = InputNCHWtoNHWCConfig
    version = 1

    def rewrite(self, proto: Any, path: Path, model: Model, config: InputNCHWtoNHWCConfig, context: PassContext) -> Any:
        """Turn the inputs of one graph."""
        inputs = _outer_inputs(model)
        names = self._chosen(inputs, config.input_names)
        here = [value.name for value in inputs[path] if value.name in names]
        fold = config.fold
        if fold is None:
            accelerator = context.accelerator
            fold = accelerator.device == "cpu" and accelerator.execution_provider in (None, "CPUExecutionProvider")
        told = context.report.setdefault("inputs", {})
        for name in here:
            self._free(proto, name)
            transpose = put_transpose(proto, name)
            told[name] = (fold_transpose(proto, transpose) if fold else None) or "transposed"
        left = [f"fold ({name})" for name in here if config.fold and told[name] == "transposed"]
        tell_idle(self.spec.name, path.name, left, context)
        return proto

    def _chosen(self, inputs: dict[Path, list[Any]], wanted: Sequence[str] | None) -> list[str]:
        """Return the names of the inputs to turn. Raises ConfigError for one that isn't there, or has no four axes."""
        axes = {value.name: _axes(value) for values in inputs.values() for value in values}
        listed = ", ".join(f"{name} {shape}" for name, shape in axes.items())
        for name in wanted or ():
            if name not in axes:
                near = difflib.get_close_matches(name, axes, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {listed}"
                raise ConfigError(f"{self.spec.name}: input_names: the graph has no input {name!r}{hint}")
            if len(axes[name]) != 4:
                raise ConfigError(
                    f"{self.spec.name}: input_names: {name!r} has the shape {axes[name]}; expected four axes, "
                    "(batch, channels, height, width)"
                )
        pictures = [name for name, shape in axes.items() if len(shape) == 4 and not name.startswith(PAST)]
        found = list(wanted) if wanted is not None else pictures
        if not found:
            raise PassError(
                f"{self.spec.name}: no input has four axes, (batch, channels, height, width); the graph takes {listed}"
            )
        return found

    def _free(self, proto: Any, name: str) -> None:
        """Raise PassError where an input is an output as well: it would come out turned."""
        if any(value.name == name for value in proto.graph.output):
            raise PassError(
                f"{self.spec.name}: input {name!r} is an output of the graph too, which would come out with channels "
                "last; leave it out of input_names, or put an Identity between"
            )


def _outer_inputs(model: Model) -> dict[Path, list[Any]]:
    """Return what each graph is given from outside: not weights, nor what a component before it makes."""
    import onnx

    found: dict[Path, list[Any]] = {}
    made: set[str] = set()
    for path in graph_paths(model):
        graph = onnx.load(str(path), load_external_data=False).graph
        inside = {tensor.name for tensor in graph.initializer} | (made if model.kind == "composite" else set())
        found[path] = [value for value in graph.input if value.name not in inside]
        made |= {value.name for value in graph.output}
    return found


def _axes(value: Any) -> list[int | str]:
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim
    ]
