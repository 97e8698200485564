"""What SpinQuant rounds while it learns, and how it learns."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from drupe.core.config import Choice, DataRef, FloatRange, PassConfig, PluginConfig, searchable, tell, tell_unused
from drupe.plugins.tuning.argument_names import NEUTRAL, known_names

__all__ = ["RotationTrainingArgs", "SpinQuantConfig"]


class RotationTrainingArgs(PluginConfig):
    """How rotations are learned; names and meanings are those of transformers.TrainingArguments."""

    learning_rate: float = searchable(
        1.5, FloatRange(0.1, 5.0, log=True), doc="Peak step along the Cayley transform's curve.", gt=0
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", description="Learning-rate schedule."
    )
    warmup_steps: float = Field(0.0, ge=0, description="Warm-up: steps, or below 1 the share of all steps.")
    per_device_train_batch_size: int = Field(4, ge=1, description="Sequences of a micro-batch.")
    gradient_accumulation_steps: int = Field(2, ge=1, description="Micro-batches whose gradients make one step.")
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the text; max_steps goes before it.")
    max_steps: int = Field(-1, description="Steps; -1: as num_train_epochs says.")
    bf16: bool = Field(False, description="Run the blocks in bfloat16; rotations and rounding stay in float32.")
    gradient_checkpointing: bool = Field(
        False, description="Rotate and run each block again for its gradients: the memory of one block at a time."
    )
    logging_steps: int = Field(10, ge=1, description="Tell the loss every so many steps.")
    save_strategy: Literal["no", "steps", "epoch"] | None = Field(
        None, description="When to write a checkpoint: no, steps, epoch; not given: about every 30 seconds."
    )
    save_steps: int = Field(500, ge=1, description="Save every so many steps, where save_strategy is steps.")
    seed: int | None = Field(None, ge=0, description="For the order of sequences; not given: the pass's.")

    @model_validator(mode="before")
    @classmethod
    def _names(cls, data: Any) -> Any:
        """Leave out what asks for nothing, refuse what would be ignored."""
        if not isinstance(data, Mapping):
            return data
        kept: dict[str, Any] = {}
        for name, value in data.items():
            if value is None or (name in NEUTRAL and value in NEUTRAL[name]) or (name, value) in _NOTHING:
                continue
            if name in cls.model_fields:
                kept[name] = value
            elif name in known_names():
                raise ValueError(
                    f"{name}: {value!r} can't be followed: rotations are learned by Cayley SGD, in a loop of its own; "
                    "leave it out"
                )
            else:
                near = difflib.get_close_matches(name, [*cls.model_fields, *known_names()], n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"{name} is no training argument of the installed transformers{hint}")
        return kept

    @model_validator(mode="after")
    def _saves_when_told(self, info: ValidationInfo) -> RotationTrainingArgs:
        if self.save_strategy != "steps":
            tell_unused(info, self, ["save_steps"], "save_strategy is not steps")
        return self


_NOTHING = (("weight_decay", 0), ("eval_strategy", "no"), ("logging_strategy", "steps"))
"""Arguments whose values ask for what is done anyway."""


_OF_BITS = {"w_bits": ("w_group_size", "w_symmetric"), "a_bits": ("a_symmetric", "a_per_token")}
"""Parameters of a grid, by that which says whether there is one."""


class SpinQuantConfig(PassConfig):
    """The rotations, what is rounded while they are learned, and the text."""

    rotate_mode: Literal["hadamard", "random"] = searchable(
        "hadamard",
        Choice("hadamard", "random"),
        doc="What learning begins with: Hadamard's matrix with random signs, or any rotation.",
    )
    seed: int | None = Field(None, ge=0, description="For what learning begins with; default: the workflow's seed.")
    w_bits: Literal[4, 8, 16] = searchable(
        4, Choice(4, 8, 16), doc="Bits to which weights are rounded while learning; 16: they are not."
    )
    w_group_size: Literal[-1, 16, 32, 64, 128, 256] = Field(
        -1, description="Columns that share a scale, as the quantizer behind has them. -1: the whole row."
    )
    w_symmetric: bool = Field(False, description="Weights' groups without a zero point.")
    a_bits: int = Field(
        16, ge=2, le=16, description="Bits to which the layers' inputs are rounded while learning; 16: they are not."
    )
    a_symmetric: bool = Field(True, description="Inputs without a zero point.")
    a_per_token: bool = Field(True, description="A scale for each token's input; otherwise one for all.")
    data_config: DataRef | None = Field(
        None, description="Text to learn from; without it the model writes some itself."
    )
    nsamples: int = Field(800, ge=2, description="How many sequences of it, the first ones.")
    seqlen: int = Field(2048, ge=2, description="Tokens of a sequence at most; 256 where the model writes them.")
    training_args: RotationTrainingArgs = Field(
        default_factory=lambda: RotationTrainingArgs(),
        description="How to learn: names of transformers.TrainingArguments.",
    )
    device: str | None = Field(
        None, description="Where the model is calculated: cpu, cuda; default: as the target has."
    )

    @model_validator(mode="before")
    @classmethod
    def _no_arguments(cls, data: Any) -> Any:
        """training_args: null asks for the defaults."""
        if isinstance(data, Mapping) and "training_args" in data and data["training_args"] is None:
            return {key: value for key, value in data.items() if key != "training_args"}
        return data

    @model_validator(mode="after")
    def _something_is_rounded(self, info: ValidationInfo) -> SpinQuantConfig:
        if self.w_bits == 16 and self.a_bits == 16:
            raise ValueError(
                "w_bits and a_bits are both 16, so nothing is rounded and there is nothing to learn; give fewer bits "
                "to one of them, or use QuaRot"
            )
        for bits, others in _OF_BITS.items():
            if getattr(self, bits) == 16:
                given = [name for name in others if name in self.model_fields_set]
                tell(info, *(f"{name} has no effect: {bits} is 16, so there is no grid" for name in given))
        return self
