"""Which layers of a decoder are quantized, and with how many bits each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from drupe.core.errors import ConfigError, PassError

__all__ = ["EMBEDDING", "HEAD", "Scheme", "blocks_of", "embedding_name", "left_in_float", "linear_layers", "schemes"]

HEAD, EMBEDDING = "lm_head", "model.embed_tokens"
"""What overrides may name besides the layers of the blocks, whether it is quantized or not."""


@dataclass(frozen=True)
class Scheme:
    """How a layer is quantized. group_size: columns that share a scale; -1: the whole row."""

    bits: int
    group_size: int
    symmetric: bool

    def with_(self, own: Mapping[str, Any]) -> Scheme:
        """Return the scheme of a layer that an override says something of."""
        return Scheme(
            int(own.get("bits", self.bits)),
            int(own.get("group_size", self.group_size)),
            bool(own.get("symmetric", own.get("sym", self.symmetric))),
        )


def blocks_of(model: Any) -> tuple[str, Any]:
    """Return (name, module list) of a decoder's blocks. Raises PassError where it has none."""
    import torch

    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) and len({type(block) for block in module}) == 1
    ]
    if not found:
        raise PassError(
            f"{type(model).__name__} has no list of equal blocks, so it is no decoder that can be quantized"
        )
    return max(found, key=lambda entry: (len(entry[1]), -len(entry[0])))


def linear_layers(model: Any, *, lm_head: bool) -> dict[str, Any]:
    """Return the linear layers inside the blocks by name, in order, and the head where it is asked for."""
    import torch

    prefix, blocks = blocks_of(model)
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and (name.startswith(f"{prefix}.") or (lm_head and name == "lm_head"))
    }
    if not any(name != "lm_head" for name in found):
        kinds = {type(module).__name__ for module in blocks.modules()}
        raise PassError(
            f"{type(model).__name__} has no linear layers in its blocks that can be quantized (they are made of "
            f"{', '.join(sorted(kinds)[:12])}); export it with OnnxConversion and quantize the graph"
        )
    if lm_head and "lm_head" not in found:
        raise PassError(f"{type(model).__name__} has no linear layer lm_head, so lm_head: true can't be done")
    return found


def embedding_name(model: Any) -> str:
    """Return what a model calls the module with its tokens' embeddings."""
    table = model.get_input_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is table)


def left_in_float(model: Any, quantized: Collection[str]) -> float:
    """Return the share of the blocks' weights that no quantized layer holds, such as experts that are one tensor."""
    _, blocks = blocks_of(model)
    names = {id(module): name for name, module in model.named_modules()}
    whole, held = 0, 0
    for module in blocks.modules():
        own = sum(weight.numel() for weight in module.parameters(recurse=False) if weight.dim() > 1)
        whole += own
        held += own if names[id(module)] in quantized else 0
    return 1 - held / whole if whole else 0.0


def schemes(
    pass_name: str, layers: Mapping[str, Any], default: Scheme, overrides: Mapping[str, Mapping[str, Any]]
) -> dict[str, Scheme]:
    """Return each layer's scheme. Raises ConfigError where a group does not divide a layer's width."""
    known = set(layers)
    unknown = [name for name in overrides if name not in known and name not in (HEAD, EMBEDDING)]
    if unknown:
        import difflib

        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise ConfigError(
            f"{pass_name}: overrides: the model has no linear layer {unknown[0]!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    found = {}
    for name, module in layers.items():
        scheme = default.with_(overrides.get(name, {}))
        width = module.in_features
        if scheme.group_size != -1 and width % scheme.group_size:
            fitting = [size for size in (256, 128, 64, 32, 16) if width % size == 0 and size < scheme.group_size]
            hint = f"; the largest that does is {fitting[0]}" if fitting else ""
            raise ConfigError(
                f"{pass_name}: groups of {scheme.group_size} do not divide the {width} columns of {name}{hint}"
            )
        found[name] = Scheme(scheme.bits, width, scheme.symmetric) if scheme.group_size == -1 else scheme
    return found
