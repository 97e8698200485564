"""Puts fake quantizers into a module in place: its class, its forward and its names stay what they were.

Where they go follows from an example call. Each layer gets one for its weight and one for its input; a convolution's
output gets one as well where something else than a quantized layer takes it, behind a ReLU where one follows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch.nn.utils import parametrize

from drupe.core.errors import ConfigError, PassError
from drupe.plugins.quantization.qat.dataflow import Dataflow, Operation, follow
from drupe.plugins.quantization.qat.fusing import LAYERS, fold, found_pairs, named_pairs, owns_weight
from drupe.plugins.quantization.qat.quantizers import Grid, Quantizer, WeightQuantizer

__all__ = ["Recipe", "Scheme", "apply", "finish", "freeze", "prepare"]

_RELU = ("relu", "relu_", "relu6")
_SAME_VALUES = (
    "max_pool1d", "max_pool2d", "max_pool3d", "boolean_dispatch", "fn", "adaptive_max_pool2d", "flatten", "reshape",
    "view", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "dropout", "chunk", "split", "__getitem__",
)  # fmt: skip
"""Operations that move or choose values and make none: a grid holds behind them as before them."""


@dataclass(frozen=True)
class Scheme:
    """The grids of weights and activations; activations None leaves those in float."""

    weights: Grid
    activations: Grid | None


@dataclass(frozen=True)
class Recipe:
    """What was done to a module, by names of its parts, so that it can be done to a fresh one."""

    fused: Sequence[tuple[str, str]] = ()
    weights: Mapping[str, Grid] = field(default_factory=dict)
    inputs: Mapping[str, Grid] = field(default_factory=dict)
    outputs: Mapping[str, Grid] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        grids = {
            key: {name: grid.to_json() for name, grid in sorted(getattr(self, key).items())}
            for key in ("weights", "inputs", "outputs")
        }
        return {"schema": 1, "fused": [list(pair) for pair in self.fused], **grids}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build a recipe from what `to_json` gave."""
        grids = {
            key: {name: Grid(**grid) for name, grid in data[key].items()} for key in ("weights", "inputs", "outputs")
        }
        return cls([(str(layer), str(norm)) for layer, norm in data["fused"]], **grids)


def prepare(
    module: Any,
    inputs: Any,
    scheme: Scheme,
    *,
    groups: Sequence[Sequence[str]] = (),
    fuse_found: bool = True,
    excluded: Sequence[str] = (),
    fold_norms: bool = False,
) -> tuple[Recipe, Mapping[str, str]]:
    """Put quantizers in, in place; return what was done, and (layer → why) for what was left.

    inputs: an example batch. groups: names to fuse. excluded: layers that stay in float, or modules of which all do.
    fold_norms: batch norms are folded now; otherwise they learn on, and `finish` folds them.
    Raises ConfigError for names that don't exist and for a module that has nothing to quantize.
    """
    names = [name for name, _ in module.named_modules()]
    for name in excluded:
        if name not in names:
            raise ConfigError(f"modules_to_exclude: the model has no module {name}; it has {', '.join(names[1:13])}, …")
    flow = follow(module, inputs)
    pairs = named_pairs(module, groups, flow)
    taken = {norm for _, norm in pairs}
    if fuse_found:
        pairs += [pair for pair in found_pairs(module, flow) if pair[1] not in taken]
    back = [fold(module, layer, norm) for layer, norm in pairs]
    if pairs:
        flow = follow(module, inputs)
    layers, left = _layers(module, flow, excluded)
    if not layers:
        raise ConfigError(
            "the model has no layer to quantize: an example call runs no convolution or linear layer"
            + (f" but {', '.join(f'{name} ({why})' for name, why in left.items())}" if left else "")
        )
    outputs = _outputs(module, flow, layers) if scheme.activations else []
    grid = scheme.activations
    behind = dict(pairs)
    recipe = Recipe(
        pairs,
        dict.fromkeys(layers, scheme.weights),
        {name: grid for name in layers if grid and not _quantized_before(flow, layers[name], outputs)},
        {behind.get(name, name): grid for name in outputs if grid},
    )
    if not fold_norms:
        for undo in reversed(back):
            undo()
    apply(module, recipe)
    for layer, norm in () if fold_norms else pairs:
        _learn_on(module.get_submodule(layer), module.get_submodule(norm))
    return recipe, left


def _learn_on(layer: Any, norm: Any) -> None:
    if parametrize.is_parametrized(layer, "weight"):
        layer.parametrizations.weight[0].before(norm)
    norm.register_forward_pre_hook(_keep_statistics)
    norm.register_forward_hook(_go_on)


def _keep_statistics(norm: Any, args: Any) -> None:
    """One value of a channel has no variance: the last batch of an epoch may be a single sample."""
    if norm.training and args[0].numel() == args[0].shape[1]:
        norm.training = False
        norm.spared = True


def _go_on(norm: Any, args: Any, output: Any) -> None:
    if getattr(norm, "spared", False):
        norm.training, norm.spared = True, False


def apply(module: Any, recipe: Recipe, *, folded: bool = True) -> None:
    """Do to a module what the recipe says, in place. folded: batch norms are folded already, or later."""
    if not folded:
        for layer, norm in recipe.fused:
            fold(module, layer, norm)
    for name, grid in recipe.weights.items():
        layer = module.get_submodule(name)
        axis = 1 if getattr(layer, "transposed", False) else 0
        quantizer = WeightQuantizer(grid, axis, tuple(layer.weight.shape)).to(layer.weight.device)
        parametrize.register_parametrization(layer, "weight", quantizer)
    for name, grid in recipe.inputs.items():
        part = module.get_submodule(name)
        part.add_module("input_quantizer", Quantizer(grid).to(part.weight.device))
        part.register_forward_pre_hook(_round_input, with_kwargs=True)
    for name, grid in recipe.outputs.items():
        _round_behind(module.get_submodule(name), Quantizer(grid))


def finish(module: Any, recipe: Recipe) -> Recipe:
    """End the training of a prepared module, in place: norms are folded, weights go onto their grids, scales stay.

    Returns the recipe without the quantizers that no batch reached. Raises PassError where no batch reached any, or
    where the module is not the one that was prepared.
    """
    module.eval()
    try:
        layers = {name: module.get_submodule(name) for name in recipe.weights}
        quantizers = {
            key: {name: getattr(module.get_submodule(name), f"{key}_quantizer") for name in getattr(recipe, f"{key}s")}
            for key in ("input", "output")
        }
        parametrizations = {name: layer.parametrizations.weight for name, layer in layers.items()}
        # Whatever a loop made of a norm, as SyncBatchNorm, is folded; what has no statistics is none.
        behind = [(pair, module.get_submodule(pair[1])) for pair in recipe.fused]
        norms = [pair for pair, norm in behind if not isinstance(norm, torch.nn.Identity) and norm.running_var.numel()]
    except AttributeError as error:
        raise PassError(
            f"the trained module is not the one that was prepared for training ({error}); return the module that was "
            "given, trained, or nothing"
        ) from error
    for layer, norm in norms:
        moved = getattr(module.get_submodule(norm), "output_quantizer", None)
        fold(module, layer, norm)
        if moved is not None:
            _round_behind(module.get_submodule(norm), moved)
    for found in parametrizations.values():
        found[0].before(None)
        with torch.no_grad():
            found.original.copy_(found[0](found.original))
    for key, parts in quantizers.items():
        for name, quantizer in parts.items():
            if not quantizer.seen:
                delattr(module.get_submodule(name), f"{key}_quantizer")
    reached = {key: {name for name, part in parts.items() if part.seen} for key, parts in quantizers.items()}
    if recipe.inputs and not reached["input"]:
        raise PassError("training showed no batch to the model in training mode, so no activation's range is known")
    freeze(module)
    return Recipe(
        recipe.fused,
        recipe.weights,
        {name: grid for name, grid in recipe.inputs.items() if name in reached["input"]},
        {name: grid for name, grid in recipe.outputs.items() if name in reached["output"]},
    )


def freeze(module: Any) -> None:
    """Let every quantizer of a module keep its scales."""
    for part in module.modules():
        if isinstance(part, (Quantizer, WeightQuantizer)):
            part.freeze()


def _layers(module: Any, flow: Dataflow, excluded: Sequence[str]) -> tuple[dict[str, list[Operation]], dict[str, str]]:
    """Return the layers to quantize with their calls, and why others are left in float."""
    owners = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    layers: dict[str, list[Operation]] = {}
    left: dict[str, str] = {}
    for name, part in module.named_modules():
        if not isinstance(part, LAYERS):
            continue
        calls = [item for item in flow.of(name) if item.name.startswith(("conv", "linear"))]
        if any(name == other or name.startswith(f"{other}.") for other in excluded):
            left[name] = "excluded"
        elif not calls:
            left[name] = "not called"
        elif owners[id(part.weight)] > 1:
            left[name] = "its weight is another module's as well"
        elif parametrize.is_parametrized(part) or not owns_weight(part):
            left[name] = "its weight is parametrized"
        else:
            layers[name] = calls
    return layers, left


def _outputs(module: Any, flow: Dataflow, layers: Mapping[str, Sequence[Operation]]) -> list[str]:
    """Return the modules behind which a convolution's output is rounded."""
    modules = dict(module.named_modules())
    found = []
    for name, calls in layers.items():
        if isinstance(modules[name], torch.nn.Linear):
            # Products with a float result are as fast, and keep more of it.
            continue
        value = calls[0].outputs[0]
        if len(calls) == 1:
            users = flow.users(value)
            relu = users[0] if len(users) == 1 and users[0].name in _RELU else None
            last = relu.outputs[0] if relu else value
            if last in flow.results or _reaches_layers(flow, last, layers):
                continue
            alone = relu is not None and len(flow.of(relu.module)) == 1
            if relu and alone and isinstance(modules[relu.module], (torch.nn.ReLU, torch.nn.ReLU6)):
                found.append(relu.module)
                continue
        found.append(name)
    return list(dict.fromkeys(found))


def _reaches_layers(flow: Dataflow, value: int, layers: Mapping[str, Sequence[Operation]]) -> bool:
    """Whether only quantized layers take a tensor, or what has the same values."""
    if value in flow.results:
        return False
    for user in flow.users(value):
        if user in layers.get(user.module, ()) and user.inputs[0] == value:
            continue
        if user.name not in _SAME_VALUES or not all(_reaches_layers(flow, out, layers) for out in user.outputs):
            return False
    return True


def _quantized_before(flow: Dataflow, calls: Sequence[Operation], outputs: Sequence[str]) -> bool:
    """Whether what a layer takes was rounded where it came from."""

    def rounded(value: int) -> bool:
        source = flow.producer(value)
        while source is not None and source.module not in outputs and source.name in _SAME_VALUES and source.inputs:
            source = flow.producer(source.inputs[0])
        return source is not None and source.module in outputs

    return all(rounded(item.inputs[0]) for item in calls)


def _round_input(module: Any, args: Any, kwargs: Any) -> Any:
    quantizer = getattr(module, "input_quantizer", None)
    if quantizer is None:
        return None
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "input": quantizer(kwargs["input"])}


def _round_behind(part: Any, quantizer: Quantizer) -> None:
    part.add_module("output_quantizer", quantizer)
    part.register_forward_hook(_round_output)


def _round_output(module: Any, args: Any, output: Any) -> Any:
    quantizer = getattr(module, "output_quantizer", None)
    return output if quantizer is None else quantizer(output)
