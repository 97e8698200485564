"""Folds batch norms into the layers before them, which changes nothing that the model gives in evaluation mode.

Norms that learn on are folded when the training is over, at its last statistics; others before it. Either way a
weight's scales are those of what is multiplied in the end.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils import parametrize

from drupe.core.errors import ConfigError
from drupe.plugins.quantization.qat.dataflow import Dataflow, Operation

__all__ = ["LAYERS", "fold", "found_pairs", "named_pairs", "owns_weight"]

_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_TRANSPOSED = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
LAYERS = (*_CONVOLUTIONS, *_TRANSPOSED, torch.nn.Linear)
_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
_ACTIVATIONS = (torch.nn.ReLU, torch.nn.ReLU6)
_SEQUENCES = ("layer, batch norm", "layer, batch norm, ReLU", "layer, ReLU", "batch norm, ReLU")


def named_pairs(module: Any, groups: Sequence[Sequence[str]], flow: Dataflow) -> list[tuple[str, str]]:
    """Return (layer, batch norm) for the groups of modules_to_fuse; a group counts in each module that has its names.

    Raises ConfigError for names that no module has, kinds that can't be fused, and modules that don't follow
    each other.
    """
    modules = dict(module.named_modules())
    pairs: list[tuple[str, str]] = []
    for number, group in enumerate(groups):
        where = f"modules_to_fuse.{number}"
        places = [prefix for prefix in modules if all(_join(prefix, name) in modules for name in group)]
        if not places:
            raise ConfigError(f"{where}: {_absent(group, modules)}")
        for prefix in places:
            names = [_join(prefix, name) for name in group]
            kinds = [modules[name] for name in names]
            if not _can_be_fused(kinds):
                told = ", ".join(f"{n} ({type(kind).__name__})" for n, kind in zip(names, kinds, strict=True))
                raise ConfigError(f"{where}: {told} can't be fused; expected {'; or '.join(_SEQUENCES)}")
            if not (isinstance(kinds[0], LAYERS) and isinstance(kinds[1], _NORMS)):
                # A ReLU behind a layer is found by following the call.
                continue
            layer, norm = names[:2]
            if obstacle := _obstacle(modules, flow, layer, norm):
                raise ConfigError(f"{where}: {obstacle}")
            pairs.append((layer, norm))
    return list(dict.fromkeys(pairs))


def found_pairs(module: Any, flow: Dataflow) -> list[tuple[str, str]]:
    """Return (layer, batch norm) for every batch norm that follows a layer in the call, and nothing else does."""
    modules = dict(module.named_modules())
    pairs = []
    for name, norm in modules.items():
        if not isinstance(norm, _NORMS) or len(flow.of(name)) != 1:
            continue
        before = flow.producer(flow.of(name)[0].inputs[0])
        if before is None or not isinstance(modules.get(before.module), LAYERS):
            continue
        if _obstacle(modules, flow, before.module, name) is None:
            pairs.append((before.module, name))
    return pairs


def fold(module: Any, layer_name: str, norm_name: str) -> Callable[[], None]:
    """Fold a batch norm into a layer, in place; an Identity stays where the norm was. Returns what undoes it.

    Of a layer whose weight is parametrized, the weight behind the parametrization is folded.
    """
    layer, norm = module.get_submodule(layer_name), module.get_submodule(norm_name)
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    place, attribute = layer, "weight"
    if parametrize.is_parametrized(layer, "weight"):
        place, attribute = layer.parametrizations.weight, "original"
    before = getattr(place, attribute), layer.bias
    if isinstance(layer, torch.nn.Linear):
        weight, bias = torch.nn.utils.fuse_linear_bn_weights(*before, *statistics)
    else:
        weight, bias = torch.nn.utils.fuse_conv_bn_weights(*before, *statistics, isinstance(layer, _TRANSPOSED))
    above, _, last = norm_name.rpartition(".")
    parent = module.get_submodule(above)

    def put(weight: Any, bias: Any, behind: Any) -> None:
        setattr(place, attribute, weight)
        layer.bias = bias
        setattr(parent, last, behind)

    put(torch.nn.Parameter(weight.detach()), torch.nn.Parameter(bias.detach()), torch.nn.Identity())
    return lambda: put(*before, norm)


def owns_weight(layer: Any) -> bool:
    """Whether a layer's weight is a parameter of its own, not one that a weight norm or the like makes of others."""
    return any(name == "weight" for name, _ in layer.named_parameters(recurse=False))


def _obstacle(modules: Mapping[str, Any], flow: Dataflow, layer: str, norm: str) -> str | None:
    """Return why a batch norm can't be folded into a layer; None where it can."""
    if not _follows(flow, layer, norm):
        return (
            f"in an example call {norm} is not what takes {layer}'s output and nothing else; such modules can't be "
            "fused"
        )
    if modules[norm].running_mean is None:
        return f"{norm} keeps no running statistics, so it can't be folded into {layer}"
    if not owns_weight(modules[layer]):
        return f"{layer}'s weight is parametrized, so {norm} can't be folded into it"
    if isinstance(modules[layer], torch.nn.Linear) and _kernels(flow, layer)[0].axes > 2:
        return f"{norm} normalizes another axis than that of {layer}'s outputs, so it can't be folded into it"
    return None


def _follows(flow: Dataflow, layer: str, norm: str) -> bool:
    """Whether in the call each of the two ran once, and the norm alone took what the layer gave."""
    first, second = _kernels(flow, layer), _kernels(flow, norm)
    if len(first) != 1 or len(second) != 1:
        return False
    value = first[0].outputs[0]
    return flow.users(value) == second and second[0].inputs[0] == value and value not in flow.results


def _kernels(flow: Dataflow, name: str) -> list[Operation]:
    return [operation for operation in flow.of(name) if operation.name.startswith(("conv", "linear", "batch_norm"))]


def _can_be_fused(kinds: Sequence[Any]) -> bool:
    rest = list(kinds)
    layer = bool(rest) and isinstance(rest[0], LAYERS) and bool(rest.pop(0))
    norm = bool(rest) and isinstance(rest[0], _NORMS) and rest.pop(0) is not None
    activation = bool(rest) and isinstance(rest[0], _ACTIVATIONS) and rest.pop(0) is not None
    return not rest and layer + norm + activation >= 2


def _absent(group: Sequence[str], modules: Mapping[str, Any]) -> str:
    endings = {name.rpartition(".")[2] for name in modules} | set(modules)
    gone = [name for name in group if not any(full == name or full.endswith(f".{name}") for full in modules)]
    if not gone:
        return f"no module has {' and '.join(group)} side by side; expected names of modules in one and the same module"
    near = {name: difflib.get_close_matches(name, sorted(endings), n=1) for name in gone}
    hints = [f"{name} (did you mean {found[0]}?)" if found else name for name, found in near.items()]
    known = ", ".join(sorted(name for name in endings if name)[:12])
    return f"the model has no module {', '.join(hints)}; its modules are {known}, …"


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
