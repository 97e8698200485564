"""Exports modules of a user's own (the kind `pytorch`): their inputs and names are what the input model tells."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.plugins.huggingface.io_config import named_axes
from drupe.plugins.onnx.exporter_errors import exporter_failed
from drupe.plugins.onnx.graphs import name_axes, name_nodes
from drupe.plugins.onnx.other_sizes import check_other_sizes

__all__ = ["by_export", "by_tracing", "export_call", "export_module"]


@dataclass(frozen=True)
class Call:
    """An example call of a module. order: the names of all inputs, as the module takes them; tensors: those that are
    inputs of the graph; constants: the others (flags), fixed in the graph; by_name: whether the module is called with
    keywords."""

    order: Sequence[str]
    tensors: Mapping[str, Any]
    constants: Mapping[str, Any]
    by_name: bool


def export_module(
    model: Model,
    context: PassContext,
    *,
    opset: int,
    dynamo: bool,
    dynamic: bool,
    optimize: bool,
    dtype: str | None,
    device: str,
) -> tuple[Any, dict[str, Any]]:
    """Return the onnx.ModelProto of a `pytorch` model, and the attributes that its module tells.

    Raises ConfigError (inputs that are not told, consent) and PassError (the exporter failed)."""
    from drupe.plugins.huggingface.pytorch_model import dummy_inputs, io_config, load_pytorch

    module = load_pytorch(model, context)
    told = io_config(model, context)
    inputs = dummy_inputs(model, module, context)
    proto = export_call(
        module, inputs, told, context, opset=opset, dynamo=dynamo, dynamic=dynamic, optimize=optimize, dtype=dtype,
        device=device,
    )  # fmt: skip
    return proto, _described(module)


def _described(module: Any) -> dict[str, Any]:
    """Return what the transformers model that a module is, or holds, is: fusions need its type, heads and width."""
    configs = {id(part.config): part.config for part in module.modules() if hasattr(part, "config")}
    found = [config for config in configs.values() if getattr(config, "model_type", None)]
    if not found or len({config.model_type for config in found}) > 1:
        return {}
    sizes = {name: getattr(found[0], name, None) for name in ("num_attention_heads", "hidden_size")}
    known = {name: size for name, size in sizes.items() if isinstance(size, int)}
    return {"model_type": str(found[0].model_type), **({"model_attributes": known} if known else {})}


def export_call(
    module: Any,
    inputs: Any,
    told: Mapping[str, Any],
    context: PassContext,
    *,
    opset: int,
    dynamo: bool,
    dynamic: bool,
    optimize: bool,
    dtype: str | None,
    device: str,
) -> Any:
    """Return the onnx.ModelProto of one call of a module. inputs: example inputs, by name or in order; told: an
    io_config. Raises ConfigError for inputs that do not fit it, and PassError where the exporter failed."""
    import torch

    call = _call(inputs, told)
    kind = getattr(torch, dtype) if dtype else None
    module = module.to(device=device, dtype=kind) if kind else module.to(device)
    tensors = {
        name: value.to(device=device, dtype=kind if kind and value.is_floating_point() else None)
        for name, value in call.tensors.items()
    }
    wrapped = _positional(module, call)
    with torch.inference_mode():
        found = wrapped(*tensors.values())
    outputs = _output_names(told, len(found))
    numbers = {str(label) for label in told.get("string_to_int_dim_params") or ()}
    there = {*tensors, *outputs}
    axes = {name: found for name, found in named_axes(told).items() if name in there} if dynamic else {}
    open_axes = {
        name: {axis: label for axis, label in found.items() if label not in numbers} for name, found in axes.items()
    }
    context.progress(0, 1, "exporting")
    try:
        if dynamo:
            proto = by_export(wrapped, tensors, outputs, open_axes, opset, optimize)
        else:
            target = context.output_dir.parent / "module.onnx"
            proto = _numbered(by_tracing(wrapped, tensors, outputs, axes, opset, optimize, target), numbers)
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        raise exporter_failed(error, dynamo=dynamo) from error
    check_other_sizes(proto, wrapped, tensors, outputs, open_axes, dynamo=dynamo)
    return proto


def _numbered(proto: Any, numbers: Collection[str]) -> Any:
    """Write axes that are called by a number as that number: their length is known, though tracing calls it open."""
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in numbers:
                dim.dim_value = int(dim.dim_param)
    return proto


def _call(inputs: Any, told: Mapping[str, Any]) -> Call:
    import torch

    names = [str(name) for name in told.get("input_names") or ()]
    by_name = isinstance(inputs, Mapping)
    if by_name:
        values = {str(name): value for name, value in inputs.items()}
        absent = [name for name in names if name not in values]
        if absent:
            raise ConfigError(f"the example inputs lack {', '.join(absent)}; they have {', '.join(values)}")
        names = [*names, *(name for name in values if name not in names)]
    else:
        listed = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        names = names or [f"input_{i}" if len(listed) > 1 else "input" for i in range(len(listed))]
        if len(names) != len(listed):
            raise ConfigError(f"io_config.input_names has {len(names)} names for {len(listed)} example inputs")
        values = dict(zip(names, listed, strict=True))
    tensors = {name: values[name] for name in names if isinstance(values[name], torch.Tensor)}
    nested = [name for name in names if isinstance(values[name], (list, tuple, dict))]
    if nested:
        raise ConfigError(f"the example input {nested[0]} is a {type(values[nested[0]]).__name__}; expected a tensor")
    if not tensors:
        raise ConfigError("the example inputs hold no tensor, so the graph would have no input")
    return Call(names, tensors, {name: values[name] for name in names if name not in tensors}, by_name)


def _positional(module: Any, call: Call) -> Any:
    """Wrap a module so that it takes tensors by position and gives a tuple of tensors."""
    import torch

    class Positional(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *tensors: Any) -> Any:
            given = {**dict(zip(call.tensors, tensors, strict=True)), **call.constants}
            ordered = {name: given[name] for name in call.order}
            result = self.inner(**ordered) if call.by_name else self.inner(*ordered.values())
            return tuple(_flat(result))

    return Positional().eval()


def _flat(value: Any) -> list[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _flat(item)]
    return []


def _output_names(told: Mapping[str, Any], count: int) -> list[str]:
    names = [str(name) for name in told.get("output_names") or ()]
    if len(names) > count:
        raise ConfigError(f"io_config.output_names has {len(names)} names; the module gives {count} tensors")
    if not names and count == 1:
        return ["output"]
    return [*names, *(f"output_{i}" for i in range(len(names), count))]


def by_export(
    wrapped: Any,
    tensors: Mapping[str, Any],
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
    opset: int,
    optimize: bool,
) -> Any:
    """Export a module that takes tensors by position, with torch.export; return the onnx.ModelProto."""
    import torch

    shapes = tuple(dict.fromkeys(axes.get(name, {}), torch.export.Dim.DYNAMIC) for name in tensors)
    program = torch.onnx.export(
        wrapped,
        tuple(tensors.values()),
        dynamic_shapes=(shapes,) if any(shapes) else None,
        opset_version=opset,
        input_names=list(tensors),
        output_names=list(outputs),
        optimize=optimize,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    name_axes(proto, axes)
    name_nodes(proto)
    return proto


def by_tracing(
    wrapped: Any,
    tensors: Mapping[str, Any],
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
    opset: int,
    optimize: bool,
    target: Path,
) -> Any:
    """Export a module that takes tensors by position, by tracing one call; return the onnx.ModelProto."""
    import onnx
    import torch

    # Where it fails it prints the whole of what it traced.
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            wrapped,
            tuple(tensors.values()),
            str(target),
            input_names=list(tensors),
            output_names=list(outputs),
            dynamic_axes=dict(axes) or None,
            opset_version=opset,
            do_constant_folding=optimize,
            dynamo=False,
        )
    traced = onnx.load(str(target))
    name_nodes(traced)
    return traced
