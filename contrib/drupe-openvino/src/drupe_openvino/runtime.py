"""Runs an IR with OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from drupe import Accelerator, ConfigError, EvaluationError, Model, Result, Runtime, Session

from drupe_openvino.devices import device_name
from drupe_openvino.ir import ir_name
from drupe_openvino.libraries import openvino

__all__ = ["OpenVinoRuntime"]

_PRECISIONS = ("f32", "bf16", "f16", "auto")
_HINTS = ("latency", "throughput")


class OpenVinoRuntime(Runtime):
    """Options: threads (int), precision (f32, bf16, f16, auto), performance (latency, throughput), and device_config:
    OpenVINO properties by name, given as they are.

    precision is f32 unless told otherwise: left alone, OpenVINO takes bfloat16 on processors that have it, and a
    comparison would then mix the model's quality with the device's.
    """

    def options(self, accelerator: Accelerator, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Runtime.options."""
        known: dict[str, Any] = {"threads": None, "precision": "f32", "performance": "latency", "device_config": {}}
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ConfigError(f"openvino: unknown runtime option {', '.join(unknown)}; known: {', '.join(known)}")
        full = {**known, **options}
        for name, allowed in (("precision", _PRECISIONS), ("performance", _HINTS)):
            if full[name] not in allowed:
                raise ConfigError(f"openvino: {name} {full[name]!r}; expected one of {', '.join(allowed)}")
        return full

    def open(self, model: Model, accelerator: Accelerator, options: Mapping[str, Any]) -> Session:
        """See Runtime.open. Raises EvaluationError naming the devices that are here when the wanted one is not."""
        core = openvino().Core()
        device = device_name(accelerator)
        if device != "AUTO" and not any(name.split(".")[0] == device.split(".")[0] for name in core.available_devices):
            raise EvaluationError(f"OpenVINO finds no {device} here; it finds: {', '.join(core.available_devices)}")
        full = self.options(accelerator, options)
        config: dict[str, Any] = {"PERFORMANCE_HINT": str(full["performance"]).upper()}
        if full["precision"] != "auto":
            config["INFERENCE_PRECISION_HINT"] = full["precision"]
        if full["threads"] is not None and device in ("CPU", "AUTO"):
            config["INFERENCE_NUM_THREADS"] = int(full["threads"])
        try:
            compiled = core.compile_model(
                core.read_model(model.folder / f"{ir_name(model)}.xml"), device, {**config, **full["device_config"]}
            )
        except RuntimeError as error:
            raise EvaluationError(f"OpenVINO can't compile the model for {device}: {error}") from error
        return OpenVinoSession(compiled)


class OpenVinoSession(Session):
    """A compiled model and one request."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._types = {item.get_any_name(): item.get_element_type().to_dtype() for item in compiled.inputs}
        # An output can have several names, numbers of the graph among them: the first that reads as a name counts.
        self._outputs = [_name(item, index) for index, item in enumerate(compiled.outputs)]

    def forward(self, batch: Mapping[str, np.ndarray]) -> Result:
        """See Session.forward."""
        missing = [name for name in self._types if name not in batch]
        if missing:
            raise EvaluationError(f"the model takes {', '.join(missing)}, which the batch lacks; it has {list(batch)}")
        inputs = {name: np.ascontiguousarray(batch[name], dtype=kind) for name, kind in self._types.items()}
        try:
            results = self._request.infer(inputs, share_inputs=True)
        except RuntimeError as error:
            shapes = {name: value.shape for name, value in inputs.items()}
            raise EvaluationError(f"OpenVINO failed on inputs of shapes {shapes}: {error}") from error
        # Copies: the request's own buffers are written over by the next call.
        return Result({name: np.array(results[index]) for index, name in enumerate(self._outputs)})

    def input_shapes(self) -> Mapping[str, tuple[tuple[int | str, ...], str]]:
        """See Session.input_shapes."""
        shapes = {}
        for item in self._compiled.inputs:
            name = item.get_any_name()
            axes = tuple(
                size.get_length() if size.is_static else ("batch" if axis == 0 else f"axis_{axis}")
                for axis, size in enumerate(item.get_partial_shape())
            )
            shapes[name] = (axes, np.dtype(self._types[name]).name)
        return shapes

    def close(self) -> None:
        """See Session.close."""
        self._request = None
        self._compiled = None


def _name(item: Any, index: int) -> str:
    names = sorted(item.get_names())
    readable = [name for name in names if not name.isdigit()]
    return str((readable or names or [f"output_{index}"])[0])
