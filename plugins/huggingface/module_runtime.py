"""The runtime `torch`: modules of the user's own (PyTorchModel), called as they are, on a CPU or GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, DrupeError, EvaluationError
from drupe.core.model import Model
from drupe.core.runtimes import Result, Runtime, Session
from drupe.plugins.huggingface.io_config import told_shapes
from drupe.plugins.huggingface.loading import ready_device
from drupe.plugins.huggingface.pytorch_model import (
    forward_names,
    io_config,
    load_pytorch,
    needed_consents,
    takes_names,
)
from drupe.plugins.huggingface.runtime import as_array

__all__ = ["ModuleRuntime", "ModuleSession"]


class ModuleRuntime(Runtime):
    """Opens `pytorch` models. Options: threads."""

    version = 1

    def options(self, accelerator: Accelerator, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Runtime.options."""
        for name in options:
            if name != "threads":
                raise ConfigError(f"the runtime {self.spec.name} has no option {name!r}; it has: threads")
        return dict(options)

    def consents(self, model: Model) -> Sequence[str]:
        """See Runtime.consents: the module is built by the user's code, or was pickled whole."""
        return needed_consents(model.attributes)

    def open(self, model: Model, accelerator: Accelerator, options: Mapping[str, Any]) -> Session:
        """See Runtime.open."""
        device = ready_device(accelerator, options.get("threads"))
        # Who opens a session has asked for the consents already.
        asked: Any = SimpleNamespace(require_consent=lambda *_: None, workflow_dir=None)
        try:
            module = load_pytorch(model, asked).to(device)
            told = io_config(model, asked)
        except DrupeError:
            raise
        except (OSError, ValueError, RuntimeError, ImportError, AttributeError) as error:
            weights = model.attributes.get("weights") or model.attributes.get("model_loader")
            raise EvaluationError(f"the module of {Path(str(weights)).name} can't be loaded: {error}") from error
        return ModuleSession(module, told, device)


class ModuleSession(Session):
    """A loaded module; io_config names what goes in and comes out, as it does for its graph."""

    framework = "PyTorch"

    def __init__(self, module: Any, told: Mapping[str, Any], device: str) -> None:
        self._module, self._told, self._device = module, told, device
        self._names = [str(name) for name in told.get("input_names") or forward_names(module)[0]]
        self._by_name = takes_names(module, self._names)

    def forward(self, batch: Mapping[str, np.ndarray]) -> Result:
        """See Session.forward. Outputs go by io_config's output_names, else by the module's own, else by number."""
        import torch

        if set(batch) == {"input"} and len(self._names) == 1:
            batch = {self._names[0]: batch["input"]}
        unknown = [name for name in batch if name not in self._names]
        if unknown:
            raise EvaluationError(
                f"the module takes no input {', '.join(map(repr, unknown))}; it takes: {', '.join(self._names)}"
            )
        types = dict(zip(self._names, self._told.get("input_types") or (), strict=False))
        inputs = {}
        for name in self._names:
            if name in batch:
                array = np.asarray(batch[name], dtype=types.get(name), order="C")
                if array.dtype == np.float64:
                    array = array.astype(np.float32)
                inputs[name] = torch.from_numpy(array).to(self._device)
        if not self._by_name and list(inputs) != self._names[: len(inputs)]:
            lacking = next(name for name in self._names if name not in inputs)
            raise EvaluationError(f"the module takes its inputs by place, and {lacking!r} is not there")
        with torch.inference_mode():
            given = self._module(**inputs) if self._by_name else self._module(*inputs.values())
        return Result(self._named(given))

    def _named(self, given: Any) -> dict[str, np.ndarray]:
        import torch

        names = [str(name) for name in self._told.get("output_names") or ()]
        if isinstance(given, Mapping):
            found = {str(name): value for name, value in given.items() if isinstance(value, torch.Tensor)}
            if len(names) == len(found):
                found = dict(zip(names, found.values(), strict=True))
        else:
            values = [v for v in (given if isinstance(given, (tuple, list)) else [given]) if v is not None]
            tensors = [value for value in values if isinstance(value, torch.Tensor)]
            names = (
                names if len(names) == len(tensors) else ["output", *(f"output_{n}" for n in range(1, len(tensors)))]
            )
            found = dict(zip(names, tensors, strict=False))
        if not found:
            raise EvaluationError(f"the module gave {type(given).__name__}; expected a tensor, or several")
        return {name: as_array(value) for name, value in found.items()}

    def input_shapes(self) -> Mapping[str, tuple[tuple[int | str, ...], str]]:
        """See Session.input_shapes. Raises NotImplementedError where io_config tells no shapes."""
        found = told_shapes({**self._told, "input_names": self._names})
        if not found:
            raise NotImplementedError
        return found
