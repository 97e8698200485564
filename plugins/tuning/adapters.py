"""Puts adapters on a model: which modules get one, whether they can, and how the result is written."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe.core.errors import ConfigError
from drupe.plugins.huggingface.scrub import scrub_folder
from drupe.plugins.tuning.config import LoftQConfig, LoHaConfig, LoKrConfig, LoRAConfig, TuningConfig

__all__ = ["attach", "linear_names", "save", "targets"]

ALL_LINEAR = "all-linear"


def _kind_of(module: Any) -> str | None:
    """Return what a module is to an adapter: "linear", "embedding", or None."""
    import torch

    name = type(module).__name__
    if isinstance(module, torch.nn.Linear) or name in ("Conv1D", "Linear4bit", "Linear8bitLt"):
        return "linear"
    return "embedding" if isinstance(module, torch.nn.Embedding) else None


def linear_names(model: Any) -> list[str]:
    """Return the last parts of the names of the model's linear modules, each once."""
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if _kind_of(module) == "linear"}
    return sorted(names)


def targets(model: Any, wanted: str | list[str], excluded: str | list[str] | None = None) -> dict[str, Any]:
    """Return {full name: module} of what `target_modules` names. Raises ConfigError for a name that matches nothing."""
    modules = {name: module for name, module in model.named_modules() if name}
    if wanted == ALL_LINEAR:
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        found = {n: m for n, m in modules.items() if _kind_of(m) == "linear" and m is not head}
    elif isinstance(wanted, str):
        pattern = _pattern("target_modules", wanted)
        found = {n: m for n, m in modules.items() if pattern.fullmatch(n) and _kind_of(m)}
        if not found:
            raise ConfigError(_no_match(model, wanted, "the pattern"))
    else:
        found = {}
        for entry in wanted:
            matches = {n: m for n, m in modules.items() if n == entry or n.endswith(f".{entry}")}
            if not matches:
                raise ConfigError(_no_match(model, entry, "target module"))
            fitting = {n: m for n, m in matches.items() if _kind_of(m)}
            if not fitting:
                kind = type(next(iter(matches.values()))).__name__
                raise ConfigError(
                    f"target module {entry!r} is a {kind}, which takes no adapter; the linear modules are "
                    + ", ".join(linear_names(model))
                )
            found |= fitting
    if excluded is not None:
        found = {n: m for n, m in found.items() if not _excluded(n, excluded)}
    if not found:
        raise ConfigError(f"no module is left for an adapter: exclude_modules {excluded!r} takes out all that match")
    return found


def _excluded(name: str, excluded: str | list[str]) -> bool:
    if isinstance(excluded, str):
        return _pattern("exclude_modules", excluded).fullmatch(name) is not None
    return any(name == entry or name.endswith(f".{entry}") for entry in excluded)


def _pattern(field: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as fault:
        raise ConfigError(f"{field} {text!r} is no regular expression: {fault}") from None


def _no_match(model: Any, wanted: str, what: str) -> str:
    names = linear_names(model)
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"{what} {wanted!r} matches no module of {type(model).__name__}; its linear modules are "
        f"{', '.join(names)}{hint}; 'all-linear' takes all of them but the output layer"
    )


def _shape(module: Any) -> tuple[int, int]:
    """Return (in, out) of a module that can be adapted, also where its weight is packed."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    rows, columns = module.weight.shape
    return int(rows), int(columns)


def _check_rank(found: Mapping[str, Any], config: TuningConfig) -> None:
    if isinstance(config, LoKrConfig):
        return
    for name, module in found.items():
        widest = min(_shape(module))
        if config.r > widest:
            raise ConfigError(
                f"rank {config.r} is above the width {widest} of {name} ({_shape(module)[0]} → {_shape(module)[1]}); "
                f"give r of at most {widest}, or leave the module out with exclude_modules"
            )


def attach(model: Any, config: TuningConfig, seed: int) -> Any:
    """Put a fresh adapter on the model and return the peft model; equal seeds give equal initial values.

    Raises ConfigError where a target matches nothing or a rank is above a module's width.
    """
    import peft
    import torch

    found = targets(model, config.target_modules, config.exclude_modules)
    _check_rank(found, config)
    for entry in config.modules_to_save or ():
        if not any(n == entry or n.endswith(f".{entry}") for n, _ in model.named_modules()):
            raise ConfigError(
                f"modules_to_save {entry!r} matches no module of {type(model).__name__}; there are "
                + ", ".join(sorted({n.rpartition(".")[2] for n, _ in model.named_modules() if n}))
            )
    torch.manual_seed(seed)
    try:
        return peft.get_peft_model(model, peft_config(model, config))
    except (NotImplementedError, ValueError) as error:
        raise ConfigError(
            f"peft can't put this adapter on {type(model).__name__}: {error}; name other target_modules, or tune with "
            "plain LoRA"
        ) from error


def peft_config(model: Any, config: TuningConfig) -> Any:
    """Return the peft config that a tuning config asks for."""
    import peft

    shared: dict[str, Any] = {
        "r": config.r,
        "target_modules": config.target_modules,
        "exclude_modules": config.exclude_modules,
        "modules_to_save": config.modules_to_save,
        "task_type": "CAUSAL_LM" if type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")) else None,
    }
    if isinstance(config, LoRAConfig):
        init: Any = config.init_lora_weights
        return peft.LoraConfig(
            **shared,
            lora_alpha=_whole(config.alpha),
            lora_dropout=config.lora_dropout,
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
            # LoftQ's values are set afterwards (peft's own need a GPU).
            init_lora_weights=True if init == "loftq" else init,
            bias=config.bias,
            rank_pattern=config.rank_pattern or {},
            alpha_pattern=config.alpha_pattern or {},
            runtime_config=peft.LoraRuntimeConfig(ephemeral_gpu_offload=config.ephemeral_gpu_offload),
        )
    shared |= {
        "alpha": _whole(config.alpha),
        "rank_pattern": getattr(config, "rank_pattern", None) or {},
        "alpha_pattern": getattr(config, "alpha_pattern", None) or {},
    }
    if isinstance(config, LoHaConfig):
        return peft.LoHaConfig(
            **shared,
            rank_dropout=config.rank_dropout,
            module_dropout=config.module_dropout,
            use_effective_conv2d=config.use_effective_conv2d,
        )
    if isinstance(config, LoKrConfig):
        return peft.LoKrConfig(
            **shared,
            rank_dropout=config.rank_dropout,
            module_dropout=config.module_dropout,
            use_effective_conv2d=config.use_effective_conv2d,
            decompose_both=config.decompose_both,
            decompose_factor=config.decompose_factor,
        )
    raise TypeError(f"no adapter is made from {type(config).__name__}")


def _whole(value: float) -> float:
    """16.0 as 16, as other tools write alphas."""
    return int(value) if value == int(value) else value


def loftq_iterations(config: TuningConfig) -> int:
    """Return how many alternating steps LoftQ takes; 0: no LoftQ."""
    if isinstance(config, LoRAConfig) and config.init_lora_weights == "loftq":
        return config.loftq_iter if isinstance(config, LoftQConfig) else 1
    return 0


def mutates_base(config: TuningConfig) -> bool:
    """Whether the initial values change the base in memory: the adapter must then be converted for the real one."""
    return isinstance(config, LoRAConfig) and str(config.init_lora_weights).startswith(("pissa", "olora", "loftq"))


def save(model: Any, folder: Path, config: TuningConfig, initial: Mapping[str, Any] | None = None) -> None:
    """Write the adapter as peft reads it, without paths, names or times.

    initial: the adapter's initial state, where it changed the base: what is written is then the difference, as a plain
    adapter of twice the rank for the unchanged base.
    """
    import peft
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=_saves_embedding(model, config))
    written = model.peft_config["default"]
    if initial is not None:
        state = doubled(state, initial)
        written = _doubled_config(written)
    inference, written.inference_mode = written.inference_mode, True
    written.save_pretrained(folder)
    written.inference_mode = inference
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(state.items())}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    scrub_folder(folder)


def _saves_embedding(model: Any, config: TuningConfig) -> bool:
    wanted = getattr(config, "save_embedding_layers", False)
    if wanted != "auto":
        return bool(wanted)
    embedding = model.get_base_model().get_input_embeddings()
    return bool(embedding is not None and any(p.requires_grad for p in embedding.parameters()))


def doubled(state: Mapping[str, Any], initial: Mapping[str, Any]) -> dict[str, Any]:
    """Return B A - B0 A0 as [B, B0] [A; -A0]: the change of the weights as one low-rank adapter."""
    import torch

    result = dict(state)
    for name, tensor in state.items():
        if "lora_A" in name or "lora_embedding_A" in name:
            result[name] = torch.cat([tensor, -initial[name].to(tensor)], dim=0)
        elif "lora_B" in name or "lora_embedding_B" in name:
            result[name] = torch.cat([tensor, initial[name].to(tensor)], dim=1)
    return result


def _doubled_config(config: Any) -> Any:
    import copy

    factor = 2**0.5 if config.use_rslora else 2
    result = copy.deepcopy(config)
    result.init_lora_weights = True
    result.r = 2 * config.r
    result.lora_alpha = config.lora_alpha * factor
    result.rank_pattern = {key: 2 * value for key, value in (config.rank_pattern or {}).items()}
    result.alpha_pattern = {key: factor * value for key, value in (config.alpha_pattern or {}).items()}
    return result
