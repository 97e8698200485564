"""A model as one rank has it: transformers' own, with DTensors for weights, each rank holding its pieces.

What layers exchange is transformers' tensor-parallel code, applied by a plan (Megatron-LM: Shoeybi et al. 2019, arXiv
1909.08053): columns of one layer and rows of the next, with one sum over the ranks behind them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drupe.core.errors import ConfigError
from drupe.plugins.huggingface.parallel.layout import Layout, Split, rank_file

__all__ = ["divide", "empty_model", "fill", "found_layout", "load_rank", "whole_plan"]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def empty_model(folder: Path, task: str | None, **options: Any) -> Any:
    """Return the model of a folder's config.json without memory for its weights. options: dtype, attn_implementation.

    Buffers, which are not all in a checkpoint, have their values.
    """
    import transformers
    from accelerate import init_empty_weights

    from drupe.plugins.huggingface.loading import auto_class

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    auto = auto_class(task, (config.architectures or [None])[0])
    with init_empty_weights(include_buffers=False):
        model = auto.from_config(config, **options)
    return model.eval()


def whole_plan(model: Any, plan: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the model's plan, or the one given, checked against the model.

    Raises ConfigError for a plan that splits nothing but embeddings, for styles that transformers does not have, and
    for names that the model does not have (those of a model's own plan are left out instead: it serves variants).
    """
    from transformers.integrations.tensor_parallel import ALL_PARALLEL_STYLES

    there = {_NUMBER.sub("*", name) for name, _ in [*model.named_modules(), *model.named_parameters()]}
    found = dict(model.tp_plan or {}) if plan is None else dict(plan)
    if plan is None:
        found = {name: style for name, style in found.items() if name in there}
    elif unknown := sorted(name for name in found if name not in there):
        raise ConfigError(
            f"the plan names {unknown[0]}, which {type(model).__name__} does not have; it has, among others: "
            f"{', '.join(sorted(name for name in there if name.count('.') > 1)[:6])}"
        )
    known = sorted(ALL_PARALLEL_STYLES)
    if wrong := sorted({style for style in found.values() if style not in known}):
        raise ConfigError(f"the plan has the style {wrong[0]!r}; transformers has: {', '.join(known)}")
    ends = {_name_of(model, module) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    if not any(style != "replicate" for name, style in found.items() if name not in ends):
        raise ConfigError(
            f"transformers has no tensor-parallel plan for {type(model).__name__}: its layers would stay whole on "
            "every rank; name a class of yours that has a plan as class_name, or leave the model whole"
        )
    return found


def _name_of(model: Any, wanted: Any) -> str | None:
    return next((name for name, module in model.named_modules() if module is wanted), None)


def _applied(model: Any, plan: Mapping[str, str], mesh: Any) -> None:
    """Make the plan's weights DTensors on the mesh and their modules exchange what they have to."""
    from transformers.integrations.tensor_parallel import apply_tensor_parallelism

    styles: dict[str, str] = {}
    for module_name, module in model.named_modules():
        style = plan.get(_NUMBER.sub("*", module_name))
        for leaf, _ in module.named_parameters(recurse=False):
            name = f"{module_name}.{leaf}" if module_name else leaf
            if (own := plan.get(_NUMBER.sub("*", name), style)) is not None:
                styles[name] = own
        if style is not None:
            styles[module_name] = style
    # Embedding and head that share a table have one each until it is filled in.
    apply_tensor_parallelism(model, mesh, styles)


def divide(model: Any, divided: Mapping[str, Sequence[str]], ranks: int) -> None:
    """Give modules this rank's share of numbers of theirs. Raises ConfigError where one is none or does not divide."""
    left = set(divided)
    for name, module in model.named_modules():
        place = _NUMBER.sub("*", name)
        left.discard(place)
        for attribute in divided.get(place, ()):
            whole = getattr(module, attribute, None)
            if not isinstance(whole, int) or whole % ranks:
                what = f"is {whole}, which does not divide by {ranks}" if isinstance(whole, int) else "is no number"
                raise ConfigError(f"{attribute} of {name}, which is to be divided among the ranks, {what}")
            setattr(module, attribute, whole // ranks)
    if left:
        raise ConfigError(f"numbers of {min(left)} are to be divided, which {type(model).__name__} does not have")


def found_layout(
    folder: Path,
    task: str | None,
    plan: Mapping[str, str] | None,
    divided: Mapping[str, Sequence[str]],
    ranks: int,
    mesh: Any,
) -> tuple[dict[str, str], dict[str, tuple[Split | None, tuple[int, ...]]], bool]:
    """Return a model's plan, its tensors by name with where each is cut and its whole shape, and whether embedding and
    head, one table in the source, need one each, being cut at different places.
    """
    model = empty_model(folder, task)
    chosen = whole_plan(model, plan)
    divide(model, divided, ranks)
    shared = dict(model.all_tied_weights_keys or {})
    _applied(model, chosen, mesh)
    cuts = {name: _split(tensor) for name, tensor in model.named_parameters(remove_duplicate=False)}
    apart = any(cuts.get(name) != cuts.get(source) for name, source in shared.items())
    kept = [name for name in cuts if name not in shared or apart]
    tensors = {name: (cuts[name], tuple(model.get_parameter(name).shape)) for name in kept}
    saved = model.state_dict()
    tensors |= {name: (None, tuple(b.shape)) for name, b in model.named_buffers() if name in saved}
    return chosen, tensors, apart


def _split(parameter: Any) -> Split | None:
    placements = getattr(parameter, "placements", None)
    if placements is None or placements[0].is_replicate():
        return None
    placement = placements[0]
    dim = placement.dim % parameter.ndim
    return Split(dim, int(getattr(placement, "split_factor", 1)))


def load_rank(
    folder: Path,
    rank: int,
    mesh: Any,
    *,
    device: str = "cpu",
    dtype: Any = None,
    task: str | None = None,
    attn_implementation: str | None = None,
) -> Any:
    """Return the model of a folder that PyTorchTensorParallel wrote, as this rank has it. All ranks load at one time.

    mesh: a DeviceMesh of one dimension over the ranks. dtype: torch's; None: as stored. Raises ConfigError.
    """
    from safetensors import safe_open

    layout = Layout.read(folder)
    if mesh.size() != layout.world_size:
        raise ConfigError(f"{folder} is split over {layout.world_size} ranks, and {mesh.size()} are there")
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    model = empty_model(folder, task, **({"dtype": dtype} if dtype is not None else {}), **options)
    divide(model, layout.divided, layout.world_size)
    _applied(model, layout.plan, mesh)
    with safe_open(rank_file(folder, layout.ranks[rank]), framework="pt") as stored:
        fill(model, ((name, stored.get_tensor(name)) for name in sorted(stored.keys())), device, dtype)
    if model.can_generate() and (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def fill(model: Any, tensors: Iterable[tuple[str, Any]], device: str = "cpu", dtype: Any = None) -> None:
    """Put tensors (for DTensors: this rank's pieces) in place of a model's empty weights. Raises ConfigError."""
    import torch
    from torch.distributed.tensor import DTensor

    for name, stored in tensors:
        owner, _, leaf = name.rpartition(".")
        try:
            module = model.get_submodule(owner)
            held = module._parameters[leaf] if leaf in module._parameters else module._buffers[leaf]
        except (AttributeError, KeyError):
            raise ConfigError(f"the weights hold {name}, which {type(model).__name__} does not have") from None
        local = held.to_local() if isinstance(held, DTensor) else held
        if local.shape != stored.shape:
            raise ConfigError(f"{name} has the shape {tuple(stored.shape)}; expected {tuple(local.shape)}")
        tensor = stored.to(device, dtype if dtype is not None and stored.is_floating_point() else None)
        if leaf in module._buffers:
            module._buffers[leaf] = tensor
            continue
        if isinstance(held, DTensor):
            tensor = DTensor.from_local(
                tensor, held.device_mesh, held.placements, run_check=False, shape=held.shape, stride=held.stride()
            )
        module._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=False)
    model.tie_weights()
    if lacking := [name for name, tensor in model.named_parameters() if tensor.is_meta]:
        raise ConfigError(f"the weights hold no {lacking[0]}")
    for module in model.modules():
        for leaf, buffer in module._buffers.items():
            module._buffers[leaf] = None if buffer is None else buffer.to(device)
