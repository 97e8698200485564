"""Training arguments: the names of transformers' TrainingArguments, with types, defaults and what each does here.

Every name that the installed transformers knows is either a field of `TrainingArgs` (it has an effect), told to have
none (with the reason), or refused (with the reason). Older names are upgraded. An unknown name is a fault.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from drupe.core.config import FloatRange, Ordered, PluginConfig, searchable, tell, tell_unused
from drupe.plugins.tuning.argument_names import NEUTRAL, TOLD, known_names, refusal, upgrade
from drupe.plugins.tuning.library_names import (
    compile_modes,
    optimizer_arguments,
    parsed_arguments,
    schedule_arguments,
)

__all__ = ["TrainingArgs"]

OPTIMIZERS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "paged_adamw",
    "adafactor",
    "sgd",
    "adagrad",
    "rmsprop",
)
SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
)
Strategy = Literal["no", "steps", "epoch"]


class TrainingArgs(PluginConfig):
    """How the adapter is trained; names and meanings are those of transformers.TrainingArguments."""

    per_device_train_batch_size: int = searchable(8, Ordered(1, 2, 4, 8, 16, 32), doc="Rows of a micro-batch.", ge=1)
    gradient_accumulation_steps: int = searchable(
        1, Ordered(1, 2, 4, 8, 16), doc="Micro-batches whose gradients make one step.", ge=1
    )
    num_train_epochs: float = Field(3.0, gt=0, description="Passes over the data; max_steps goes before it.")
    max_steps: int = Field(-1, description="Optimizer steps; -1: as num_train_epochs says.")
    learning_rate: float = searchable(
        2e-4, FloatRange(1e-5, 1e-3, log=True), doc="Peak learning rate; the default suits adapters.", gt=0
    )
    lr_scheduler_type: str = searchable(
        "linear", Ordered("linear", "cosine", "constant"), doc="Learning-rate schedule."
    )
    lr_scheduler_kwargs: dict[str, Any] | None = Field(None, description="Further arguments of the schedule.")
    warmup_steps: float = Field(0.0, ge=0, description="Warm-up: steps, or below 1 the share of all steps.")
    optim: str = Field("adamw_torch_fused", description="Optimizer: " + ", ".join(OPTIMIZERS) + ".")
    optim_args: str | None = Field(None, description="Further arguments of the optimizer, 'key=value,key=value'.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of matrices.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Term added to the denominator.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are clipped to this norm; 0: no clipping.")
    label_smoothing_factor: float = Field(0.0, ge=0, lt=1, description="Label smoothing.")
    neftune_noise_alpha: float | None = Field(None, gt=0, description="NEFTune noise on embeddings (arXiv 2310.05914).")
    bf16: bool = Field(False, description="Compute in bfloat16, as torch_dtype: bfloat16.")
    tf32: bool | None = Field(None, description="Allow TF32 matrix products on the GPU.")
    gradient_checkpointing: bool | None = Field(
        None, description="Recompute activations: true always, false never; not given: as `memory` says."
    )
    torch_compile: bool | None = Field(None, description="Compile the layers; not given: where it pays.")
    torch_compile_mode: str | None = Field(None, description="Mode of torch.compile; one that is given asks for it.")
    use_liger_kernel: bool = Field(False, description="Use liger-kernel's fused layers (GPU only).")
    liger_kernel_config: dict[str, bool] | None = Field(None, description="Which of liger-kernel's layers to use.")
    torch_empty_cache_steps: int | None = Field(None, ge=1, description="Empty the GPU's cache every so many steps.")
    logging_strategy: Strategy = Field("steps", description="When a line with loss and learning rate is logged.")
    logging_steps: float = Field(10, gt=0, description="Log every so many steps; below 1 the share of all steps.")
    logging_first_step: bool = Field(False, description="Log the first step as well.")
    eval_strategy: Strategy | None = Field(
        None, description="When the evaluation data is measured; not given: every epoch where there is such data."
    )
    eval_steps: float | None = Field(None, gt=0, description="Evaluate every so many steps (default: logging_steps).")
    eval_delay: float = Field(0, ge=0, description="No evaluation before so many steps or epochs.")
    eval_on_start: bool = Field(False, description="Evaluate before the first step.")
    per_device_eval_batch_size: int = Field(8, ge=1, description="Rows of an evaluation batch.")
    save_strategy: Literal["no", "steps", "epoch", "best"] | None = Field(
        None, description="When a checkpoint is kept; not given: about every 30 seconds. 'no' turns resuming off."
    )
    save_steps: float = Field(500, gt=0, description="With save_strategy steps: every so many steps.")
    save_total_limit: int | None = Field(None, ge=1, description="Checkpoints kept (the best one always stays).")
    load_best_model_at_end: bool = Field(
        False, description="Hand out the adapter of the lowest evaluation loss instead of the last one."
    )
    seed: int | None = Field(None, ge=0, description="Seed of initial values and order; not given: the workflow's.")
    data_seed: int | None = Field(None, ge=0, description="Seed of the order of rows; not given: seed.")
    full_determinism: bool = Field(False, description="Use deterministic algorithms only.")
    dataloader_drop_last: bool = Field(False, description="Drop an epoch's last incomplete micro-batch.")
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = Field(
        "random", description="Order of rows; group_by_length puts rows of like length into one step."
    )
    fsdp: bool = Field(False, description="Each process holds a share of the base only (full_shard); for several GPUs.")
    use_cpu: bool = Field(False, description="Train on the CPU even where there is a GPU.")

    @model_validator(mode="before")
    @classmethod
    def _names(cls, data: Any, info: ValidationInfo) -> Any:
        """Upgrade older names, drop what has no effect here (told), refuse what would be ignored."""
        if not isinstance(data, Mapping):
            return data
        values, notices = upgrade(data)
        kept: dict[str, Any] = {}
        for name, value in values.items():
            if name in cls.model_fields:
                if value is not None:
                    kept[name] = value
            elif value is None or (name in NEUTRAL and value in NEUTRAL[name]):
                continue
            elif name in TOLD:
                notices.append(f"training_args.{name} has no effect: {TOLD[name]}")
            elif name in known_names():
                raise ValueError(f"{name}: {value!r} can't be followed here: {refusal(name)}; leave it out")
            else:
                near = difflib.get_close_matches(name, [*cls.model_fields, *known_names()], n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"{name} is no training argument of the installed transformers{hint}")
        if "torch_compile_mode" in kept:
            kept.setdefault("torch_compile", True)
        tell(info, *notices)
        return kept

    @field_validator("fsdp", mode="before")
    @classmethod
    def _sharding(cls, value: Any) -> Any:
        """Read transformers' options: full_shard, with auto_wrap or not; a text, or a list of them."""
        if isinstance(value, bool):
            return value
        words = value.split() if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        others = [word for word in words if word not in ("full_shard", "auto_wrap")]
        if others:
            raise ValueError(f"fsdp {others[0]!r} is not offered; expected full_shard, or to leave it out")
        return "full_shard" in words

    @field_validator("optim")
    @classmethod
    def _optimizer(cls, value: str) -> str:
        return _one_of("optim", value, OPTIMIZERS)

    @field_validator("lr_scheduler_type")
    @classmethod
    def _scheduler(cls, value: str) -> str:
        return _one_of("lr_scheduler_type", value, SCHEDULERS)

    @field_validator("torch_compile_mode")
    @classmethod
    def _compile_mode(cls, value: str | None) -> str | None:
        modes = compile_modes()
        return value if value is None or not modes else _one_of("torch_compile_mode", value, modes)

    @model_validator(mode="after")
    def _texts_for_libraries(self, info: ValidationInfo) -> TrainingArgs:
        """Check what would otherwise be found when training begins."""
        _known("lr_scheduler_kwargs", self.lr_scheduler_kwargs or (), schedule_arguments, self.lr_scheduler_type)
        try:
            given = parsed_arguments(self.optim_args)
        except ValueError as error:
            raise ValueError(f"optim_args {error}") from None
        _known("optim_args", given, optimizer_arguments, self.optim)
        if self.torch_compile is False:
            tell_unused(info, self, ["torch_compile_mode"], "torch_compile is false")
        if not self.use_liger_kernel:
            tell_unused(info, self, ["liger_kernel_config"], "use_liger_kernel is not true")
        return self

    @model_validator(mode="after")
    def _together(self) -> TrainingArgs:
        if self.lr_scheduler_type in ("cosine_with_min_lr", "cosine_warmup_with_min_lr") and not (
            self.lr_scheduler_kwargs or {}
        ).keys() & {"min_lr", "min_lr_rate"}:
            raise ValueError(f"lr_scheduler_type {self.lr_scheduler_type} needs lr_scheduler_kwargs with min_lr")
        if self.lr_scheduler_type == "warmup_stable_decay" and "num_decay_steps" not in (
            self.lr_scheduler_kwargs or {}
        ):
            raise ValueError("lr_scheduler_type warmup_stable_decay needs lr_scheduler_kwargs with num_decay_steps")
        return self


def _known(field: str, given: Iterable[str], read: Callable[[str], frozenset[str] | None], name: str) -> None:
    """Raise ValueError for an argument that a schedule or optimizer does not take."""
    keys = list(given)
    allowed = read(name) if keys else None
    if allowed is None:
        return
    unknown = [key for key in keys if key not in allowed]
    if unknown:
        takes = f"it takes {', '.join(sorted(allowed))}" if allowed else "it takes none"
        raise ValueError(f"{field}: {name} has no argument {unknown[0]!r} to set; {takes}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value in allowed:
        return value
    near = difflib.get_close_matches(value, allowed, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{name} {value!r} is not offered; expected one of {', '.join(allowed)}{hint}")
