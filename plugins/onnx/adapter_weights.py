"""Adapters in a graph: which of its weights are theirs, how they are called, and the files that hold them apart.

A weight of an adapter is called as its layer is, with .lora_A.weight or .lora_B.weight behind: OnnxConversion names
them so. Graphs of other exporters tell them by names of nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drupe.core.errors import ConfigError, EvaluationError, PassError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "ADAPTER_FILE",
    "ENDINGS",
    "AdapterWeight",
    "adapter_parameters",
    "find_adapter_weights",
    "name_adapter_weights",
    "read_weights",
    "write_weights",
]

ADAPTER_FILE = "adapter_weights"
"""The name, without its ending, of the file that extracted weights go to."""
ENDINGS = {"onnx_adapter": ".onnx_adapter", "safetensors": ".safetensors", "numpy": ".npz"}
_BY_NAME = re.compile(r"^(?P<layer>.*)\.lora_(?P<part>[AB])(?:\.\w+)??(?:\.MatMul)?\.weight(?P<rest>\w*)$")
_BY_NODE = (
    re.compile(r"^/?(?P<layer>.*)/lora_(?P<part>[AB])(?:/\w+)?/MatMul\w*$"),
    # The older exporter loses the names of a dictionary of modules and numbers those that are called alike.
    re.compile(r"^/?(?P<layer>.*)/default(?P<part>_1)?/MatMul\w*$"),
)
_QUANTIZED = ("weight", "scale", "zero_point")


@dataclass(frozen=True)
class AdapterWeight:
    """One tensor of an adapter. name: as it is to be called; initializer: as the graph calls it; node, slot: where it
    goes in; rank_axis: the axis as long as the adapter's rank, None for quantized weights."""

    name: str
    initializer: str
    node: Any
    slot: int
    rank_axis: int | None


def adapter_parameters(pass_name: str, loaded: Any) -> dict[str, Any]:
    """Return an adapted model's LoRA weights by the name that they get in a graph.

    Raises ConfigError where the adapter is more than products of two matrices beside linear layers.
    """
    found: dict[str, Any] = {}
    for name, parameter in loaded.named_parameters():
        match = re.match(r"^(?:base_model\.model\.)?(.*)\.lora_([AB])\.[^.]+\.weight$", name)
        if match:
            found[f"{match[1]}.lora_{match[2]}.weight"] = parameter.detach()
        elif any(mark in name for mark in ("lora_", "modules_to_save", "hada_", "lokr_", "trainable_tokens")):
            raise ConfigError(
                f"{pass_name}: the adapter changes more than a graph can keep apart ({name}); set "
                "merge_adapter_weights: true, or put MergeAdapterWeights before it"
            )
    if not found:
        raise ConfigError(
            f"{pass_name}: the adapter is no LoRA, and other kinds can't be kept apart in a graph; set "
            "merge_adapter_weights: true, or put MergeAdapterWeights before it"
        )
    return found


def name_adapter_weights(pass_name: str, proto: Any, parameters: Mapping[str, Any]) -> None:
    """Give the weights of an adapter in an exported graph their names; exporters fold and number them.

    They are found by their values. Layers whose values are equal (none was trained yet) get a tensor each. Raises
    PassError where one is not found.
    """
    import torch
    from onnx import numpy_helper

    slots: dict[bytes, list[tuple[Any, int]]] = {}
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    keys: dict[str, bytes] = {}
    for node in proto.graph.node:
        if node.op_type not in ("MatMul", "Gemm") or len(node.input) < 2 or node.input[1] not in weights:
            continue
        name = node.input[1]
        if name not in keys:
            keys[name] = _key(numpy_helper.to_array(weights[name]))
        slots.setdefault(keys[name], []).append((node, 1))
    used: set[str] = set()
    for name, parameter in parameters.items():
        stored = parameter.cpu()
        value = (stored.view(torch.int16) if stored.dtype is torch.bfloat16 else stored).numpy()
        places = slots.get(_key(value.T)) or slots.get(_key(value))
        if not places:
            raise PassError(
                f"{pass_name}: the exporter left no weight for {name}; set merge_adapter_weights: true, or take the "
                "other exporter (use_dynamo_exporter)"
            )
        node, slot = places.pop(0)
        own = proto.graph.initializer.add()
        own.CopyFrom(weights[node.input[slot]])
        own.name = name
        used.add(node.input[slot])
        node.input[slot] = name
    left = {entry for node in proto.graph.node for entry in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in used or tensor.name in left]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def _key(value: np.ndarray) -> bytes:
    import hashlib

    import numpy as np

    return hashlib.sha256(repr((value.shape, value.itemsize)).encode() + np.ascontiguousarray(value).tobytes()).digest()


def find_adapter_weights(proto: Any) -> Iterator[AdapterWeight]:
    """Yield the tensors of adapters in a graph, layer by layer."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "MatMulNBits") or len(node.input) < 2 or node.input[1] not in weights:
            continue
        match = _BY_NAME.match(node.input[1]) or next((m for p in _BY_NODE if (m := p.match(node.name))), None)
        if match is None:
            continue
        part = {None: "A", "_1": "B"}.get(match["part"], match["part"])
        layer = match["layer"].strip("/").replace("/", ".").removeprefix("base_model.model.").removeprefix("inner.")
        if node.op_type == "MatMulNBits":
            for slot, what in enumerate(_QUANTIZED, start=1):
                if len(node.input) > slot and node.input[slot]:
                    name = f"{layer}.lora_{part}.quant.{what}"
                    yield AdapterWeight(name, node.input[slot], node, slot, None)
        else:
            turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            axis = 1 if (part == "A") != turned else 0
            yield AdapterWeight(f"{layer}.lora_{part}.weight", node.input[1], node, 1, axis)


def write_weights(folder: Path, weights: Mapping[str, np.ndarray], form: str) -> Path:
    """Write weights by name as `onnx_adapter`, `safetensors` or `numpy`, and return the file."""
    import numpy as np

    path = folder / f"{ADAPTER_FILE}{ENDINGS[form]}"
    ordered = {name: np.ascontiguousarray(weights[name]) for name in sorted(weights)}
    if form == "onnx_adapter":
        import onnxruntime as ort

        adapter = ort.AdapterFormat()
        adapter.set_adapter_version(1)
        adapter.set_model_version(1)
        adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in ordered.items()})
        adapter.export_adapter(str(path))
    elif form == "safetensors":
        from safetensors.numpy import save_file

        save_file(ordered, path)
    else:
        np.savez(path, **ordered)  # type: ignore[arg-type]
    return path


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Return what a file of weights holds, by name. Raises EvaluationError for another kind of file."""
    import numpy as np

    if path.suffix == ".onnx_adapter":
        import onnxruntime as ort

        adapter = ort.AdapterFormat.read_adapter(str(path))
        # The values lie in the adapter's own memory, which goes with it.
        return {name: np.array(value.numpy(), copy=True) for name, value in adapter.get_parameters().items()}
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        loaded: dict[str, np.ndarray] = load_file(path)
        return loaded
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    raise EvaluationError(
        f"{path.name} holds weights in a form that is not read; known: .onnx_adapter, .safetensors, .npz"
    )
