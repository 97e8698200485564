"""What QuantizationAwareTraining can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from drupe.core.config import Choice, DataRef, FileRef, FloatRange, Ordered, PassConfig, searchable

__all__ = ["QuantizationAwareTrainingConfig"]

_FUNCTIONS = (
    "train_dataloader_func", "val_dataloader_func", "training_loop_func", "loss_func", "qconfig_func", "ptl_module",
    "ptl_data_module",
)  # fmt: skip

_OF_THE_LOOP = (
    "loss_func", "optimizer", "learning_rate", "momentum", "weight_decay", "lr_schedule", "max_grad_norm",
    "val_dataloader_func", "val_data_config",
)  # fmt: skip
"""What the built-in loop alone looks at."""
_OF_BOTH = ("do_validate", "checkpoint_path")
"""What Lightning looks at as well."""


class QuantizationAwareTrainingConfig(PassConfig):
    """What trains, on which data, and to which grid."""

    user_script: FileRef | None = Field(None, description="A Python file of the user's; needs --allow user-scripts.")
    script_dir: FileRef | None = Field(None, description="A folder that the script imports from.")
    train_data_config: DataRef | None = Field(None, description="Data to train on: samples with a target or labels.")
    val_data_config: DataRef | None = Field(None, description="Data that do_validate takes.")
    train_dataloader_func: str | None = Field(
        None,
        description="Function of user_script: (train_data_dir, train_batch_size) to pairs of inputs and labels, or "
        "mappings with labels, that can be gone through once per epoch.",
    )
    val_dataloader_func: str | None = Field(
        None, description="The same for do_validate: (val_data_dir, train_batch_size) to batches."
    )
    train_data_dir: FileRef | None = Field(None, description="Folder that train_dataloader_func is given.")
    val_data_dir: FileRef | None = Field(None, description="Folder that val_dataloader_func is given.")
    train_batch_size: int = Field(32, ge=1, description="Samples per step.")
    num_epochs: int | None = Field(
        None, ge=1, description="Times through the data; default: 3, or as often as num_steps takes."
    )
    num_steps: int = Field(-1, ge=-1, description="Stop after so many steps; -1: num_epochs alone says how long.")
    do_validate: bool = Field(False, description="Measure loss and accuracy on the validation data at the end.")
    modules_to_fuse: list[list[str]] | None = Field(
        None,
        description="Names of modules to fuse: [layer, batch norm], [layer, batch norm, ReLU], [layer, ReLU]. A group "
        "counts in every module that has its names.",
    )
    fuse_batch_norm: bool = Field(
        True, description="Also fold every other batch norm that an example call shows behind a layer."
    )
    freeze_batch_norm: bool = Field(
        False,
        description="Batch norms that are folded keep the statistics that they have, as batches of few samples want; "
        "otherwise they learn on, and are folded at the end.",
    )
    modules_to_exclude: list[str] | None = Field(
        None, description="Layers that stay in float, or modules all of whose layers do."
    )
    qconfig_func: str | None = Field(
        None,
        description="Function of user_script that returns a torch.ao.quantization.QConfig; it says what weight_bits, "
        "per_channel, activation_bits and activation_symmetric say otherwise.",
    )
    weight_bits: int = searchable(8, Ordered(4, 8), doc="Bits of a weight, signed.", ge=2, le=8)
    activation_bits: int | None = searchable(
        8, Ordered(4, 6, 8), doc="Bits of an activation; null leaves activations in float.", ge=2, le=8
    )
    per_channel: bool = Field(True, description="A scale for each output channel of a weight.")
    activation_symmetric: bool = Field(False, description="int8 around zero in place of uint8 with a zero point.")
    input_shapes: list[list[int]] | None = Field(
        None, description="Shapes of the inputs of an example call; default: as the input model tells, or a batch."
    )
    training_loop_func: str | None = Field(
        None, description="Function of user_script that trains the model that it is given, in place of the own loop."
    )
    loss_func: str | None = Field(
        None, description="Function of user_script: (outputs, labels) to the loss; default: cross entropy."
    )
    optimizer: Literal["adam", "adamw", "sgd"] = searchable(
        "adam", Choice("adam", "adamw", "sgd"), doc="What takes the steps."
    )
    learning_rate: float = searchable(1e-3, FloatRange(1e-5, 1e-2, log=True), doc="Size of the first step.", gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay.")
    lr_schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="How the learning rate ends: at 0, or not."
    )
    max_grad_norm: float | None = Field(None, gt=0, description="Largest norm of the gradients of a step.")
    ptl_module: str | None = Field(
        None, description="LightningModule of user_script, made with model=…; its attribute model is trained."
    )
    ptl_data_module: str | None = Field(None, description="LightningDataModule of user_script, for ptl_module.")
    pl_extra_args: Mapping[str, Any] = Field(
        default_factory=dict, description="Arguments of Lightning's Trainer, for ptl_module."
    )
    logger: bool | str | None = Field(
        None, description="Lightning's logger: true, or a function of user_script that makes one; for ptl_module."
    )
    seed: int | None = Field(None, ge=0, description="Seed of the training; default: the run's.")
    checkpoint_path: str | None = Field(
        None, description="Folder for weights after each epoch, or Lightning's checkpoints; the result needs none."
    )

    @model_validator(mode="after")
    def _agree(self) -> QuantizationAwareTrainingConfig:
        named = [name for name in _FUNCTIONS if getattr(self, name) is not None]
        if named and self.user_script is None:
            raise ValueError(f"{', '.join(named)}: functions of a user_script, but none is named; add user_script")
        data = [name for name in ("train_data_config", "train_dataloader_func") if getattr(self, name) is not None]
        if len(data) > 1:
            raise ValueError("give train_data_config or train_dataloader_func, not both")
        if self.training_loop_func and self.ptl_module:
            raise ValueError("give training_loop_func or ptl_module, not both")
        if not (data or self.training_loop_func or self.ptl_module):
            raise ValueError(
                "nothing to train on: name a data config as train_data_config, or functions of a user_script as "
                "train_dataloader_func, training_loop_func or ptl_module"
            )
        if self.num_steps == 0:
            raise ValueError("num_steps 0 trains nothing; give -1 for no limit, or a number above 0")
        self._check_use()
        return self

    def _check_use(self) -> None:
        """Refuse what the chosen way of training would not look at."""
        own = "training_loop_func" if self.training_loop_func else "ptl_module" if self.ptl_module else None
        if self.ptl_module is None:
            for name in ("ptl_data_module", "pl_extra_args", "logger"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} is for Lightning, which ptl_module switches on; give that, or leave it out"
                    )
        for name in (*_OF_THE_LOOP, *(_OF_BOTH if self.training_loop_func else ())):
            default = type(self).model_fields[name].default
            if own and getattr(self, name) != default:
                raise ValueError(f"{name} is for the built-in loop; {own} does that itself, so leave {name} out")
        held_out = self.val_data_config or self.val_dataloader_func
        if self.do_validate and own is None and not held_out:
            raise ValueError("do_validate needs val_data_config, or val_dataloader_func of a user_script")
        if held_out and not self.do_validate:
            raise ValueError("validation data are read with do_validate: true only; set it, or leave them out")
        if self.val_data_config and self.val_dataloader_func:
            raise ValueError("give val_data_config or val_dataloader_func, not both")
