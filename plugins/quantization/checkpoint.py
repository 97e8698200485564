"""Quantized checkpoints: layers as packed integers in the format that ModelBuilder reads as quant_method "olive".

A quantized layer X has X.qweight (uint8; rows of outputs, of 4-bit numbers two a byte, the lower half first), X.scales
(rows × groups) and X.qzeros (packed like qweight). config.json's quantization_config tells
bits and group_size, and under overrides those of layers that differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drupe.core.errors import PassError

__all__ = ["METHOD", "QuantizedLayer", "float_state", "packed", "quantized_layers", "unpacked", "write_checkpoint"]

METHOD = "olive"
_PARTS = ("qweight", "scales", "qzeros")


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer on its grid. q: uint8 (rows, columns); scale, zero: (rows, groups); zero None where symmetric."""

    bits: int
    group_size: int
    q: Any
    scale: Any
    zero: Any

    def tensors(self, name: str, dtype: Any) -> dict[str, Any]:
        """Return what stands for the layer in a checkpoint."""
        import torch

        # Readers join layers' zero points, so symmetric layers have theirs written too.
        middle = torch.full(self.scale.shape, 1 << (self.bits - 1), dtype=torch.uint8)
        return {
            f"{name}.qweight": packed(self.q, self.bits),
            f"{name}.scales": self.scale.to(dtype).contiguous(),
            f"{name}.qzeros": packed(middle if self.zero is None else self.zero, self.bits),
        }

    def weights(self) -> Any:
        """Return the float weights that the layer stands for, (rows, columns)."""
        import torch

        groups = self.scale.shape[1]
        q = self.q.to(torch.float32).reshape(self.q.shape[0], groups, -1)
        middle = torch.full_like(self.scale, 1 << (self.bits - 1), dtype=torch.float32)
        zero = middle if self.zero is None else self.zero.to(torch.float32)
        return (self.scale.to(torch.float32)[..., None] * (q - zero[..., None])).reshape(self.q.shape)


def packed(values: Any, bits: int) -> Any:
    """Return whole numbers (rows, n) as bytes: of 4 bits two a byte, the first in the lower half."""
    import torch

    numbers = values.to(torch.uint8)
    if bits == 8:
        return numbers.contiguous()
    if numbers.shape[1] % 2:
        numbers = torch.cat([numbers, torch.zeros_like(numbers[:, :1])], dim=1)
    return (numbers[:, 0::2] | (numbers[:, 1::2] << 4)).contiguous()


def unpacked(values: Any, bits: int, count: int) -> Any:
    """Return the first `count` whole numbers of each row of packed bytes."""
    import torch

    if bits == 8:
        return values[:, :count]
    return torch.stack([values & 0xF, values >> 4], dim=-1).reshape(values.shape[0], -1)[:, :count]


def write_checkpoint(
    folder: Path,
    state: Mapping[str, Any],
    layers: Mapping[str, QuantizedLayer],
    config: Mapping[str, Any],
    *,
    bits: int,
    group_size: int,
    symmetric: bool,
) -> None:
    """Write model.safetensors and config.json.

    state: the other tensors by name. config: the model's config.json. bits, group_size, symmetric: those of most
    layers; where a layer differs, it is listed.
    """
    from safetensors.torch import save_file

    dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    tensors = {
        name: tensor.contiguous() for name, tensor in state.items() if name.removesuffix(".weight") not in layers
    }
    if "lm_head" in layers and "model.embed_tokens.weight" in state:
        # The head has numbers of its own now, so the embedding's table is no longer its weights.
        tensors.setdefault("model.embed_tokens.weight", state["model.embed_tokens.weight"])
    for name, layer in layers.items():
        tensors.update(layer.tensors(name, dtype))
    overrides = {
        name: {"bits": layer.bits, "group_size": layer.group_size, "symmetric": layer.zero is None}
        for name, layer in sorted(layers.items())
        if (layer.bits, layer.group_size, layer.zero is None) != (bits, group_size, symmetric)
    }
    told = {"quant_method": METHOD, "bits": bits, "group_size": group_size, "symmetric": symmetric, "desc_act": False}
    heads = "lm_head" in layers
    full = {
        **config,
        "quantization_config": {**told, "overrides": overrides, "lm_head": heads},
        **({"tie_word_embeddings": False} if heads else {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensors[name].clone() for name in sorted(tensors)}, folder / "model.safetensors", {"format": "pt"})
    text = json.dumps(full, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def quantized_layers(folder: Path) -> dict[str, QuantizedLayer]:
    """Return the quantized layers of a checkpoint by name; {} where it has none."""
    config = _quantization(folder)
    if config.get("quant_method") != METHOD:
        return {}
    parts: dict[str, dict[str, Any]] = {}
    for name, tensor in _tensors(folder):
        layer, _, part = name.rpartition(".")
        if part in _PARTS:
            parts.setdefault(layer, {})[part] = tensor
    return {name: _layer(name, found, config) for name, found in sorted(parts.items())}


def _layer(name: str, parts: Mapping[str, Any], config: Mapping[str, Any]) -> QuantizedLayer:
    own = {**config, **config.get("overrides", {}).get(name, {})}
    bits = int(own["bits"])
    if "qweight" not in parts or "scales" not in parts:
        raise PassError(f"the quantized checkpoint has {', '.join(parts)} of {name}; expected qweight and scales")
    columns = parts["qweight"].shape[1] * 8 // bits
    groups = parts["scales"].shape[1]
    written = "qzeros" in parts and not own.get("symmetric")
    zero = unpacked(parts["qzeros"], bits, groups) if written else None
    return QuantizedLayer(bits, columns // groups, unpacked(parts["qweight"], bits, columns), parts["scales"], zero)


def float_state(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's tensors by name with its quantized layers as the float weights that they stand for."""
    layers = quantized_layers(folder)
    state = {name: tensor for name, tensor in _tensors(folder) if name.rpartition(".")[2] not in _PARTS}
    dtype = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), None)
    for name, layer in layers.items():
        state[f"{name}.weight"] = layer.weights().to(dtype)
    return state


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    from safetensors.torch import load_file

    for path in sorted(folder.glob("*.safetensors")):
        yield from load_file(path).items()


def _quantization(folder: Path) -> Mapping[str, Any]:
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = data.get("quantization_config")
    return found if isinstance(found, Mapping) else {}
