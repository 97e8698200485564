"""The functions of a user's script that a training uses, looked up before any work starts, and how they are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError, DrupeError, PassError
from drupe.core.user_scripts import script_function, user_function
from drupe.plugins.quantization.qat.config import QuantizationAwareTrainingConfig
from drupe.plugins.quantization.qat.preparing import Scheme
from drupe.plugins.quantization.qat.quantizers import Grid

__all__ = ["Functions", "call_by_position", "checkpoint_folder", "folder", "known", "read_qconfig"]


@dataclass(frozen=True)
class Functions:
    """What of the user's script is used; None where the config names none."""

    train_dataloader: Callable[..., Any] | None
    val_dataloader: Callable[..., Any] | None
    training_loop: Callable[..., Any] | None
    loss: Callable[..., Any] | None
    qconfig: Callable[..., Any] | None
    ptl_module: Callable[..., Any] | None
    ptl_data_module: Callable[..., Any] | None
    logger: Callable[..., Any] | None

    @classmethod
    def load(cls, config: QuantizationAwareTrainingConfig, context: JobContext) -> Functions:
        """Look all of them up. Raises ConfigError without consent, or for what the script does not define."""
        logger = None
        if isinstance(config.logger, str):
            if config.user_script is None:
                raise ConfigError(f"logger: {config.logger} is a function of a user_script, but none is named")
            logger = user_function(config.user_script, config.logger, context, folder=config.script_dir)

        def found(field: str) -> Callable[..., Any] | None:
            return script_function(config, field, context)

        return cls(
            train_dataloader=found("train_dataloader_func"),
            val_dataloader=found("val_dataloader_func"),
            training_loop=found("training_loop_func"),
            loss=found("loss_func"),
            qconfig=found("qconfig_func"),
            ptl_module=found("ptl_module"),
            ptl_data_module=found("ptl_data_module"),
            logger=logger,
        )


def folder(path: str | None, context: JobContext) -> str | None:
    """Return a folder of the config as the user's functions are given it."""
    return str(context.workflow_dir / path) if path and context.workflow_dir else path


def checkpoint_folder(config: QuantizationAwareTrainingConfig, context: JobContext) -> Path | None:
    """Return the folder that checkpoint_path names, from the workflow's own; None where it names none."""
    if config.checkpoint_path is None:
        return None
    return (context.workflow_dir or Path()) / Path(config.checkpoint_path).expanduser()


def known(config: QuantizationAwareTrainingConfig, context: JobContext, part: str = "train") -> dict[str, Any]:
    """Return what the user's functions may ask for by name. part: "train" or "val", whose folder is data_dir."""
    folders = {name: folder(getattr(config, name), context) for name in ("train_data_dir", "val_data_dir")}
    return {
        **folders,
        "data_dir": folders[f"{part}_data_dir"],
        "batch_size": config.train_batch_size,
        "train_batch_size": config.train_batch_size,
        "num_epochs": config.num_epochs,
        "num_steps": config.num_steps,
        "seed": context.seed if config.seed is None else config.seed,
    }


def call_by_position(
    name: str, function: Callable[..., Any], given: tuple[Any, ...], offered: Mapping[str, Any]
) -> Any:
    """Call a user's function with `given` by position and with what else it asks for by name.

    Arguments of `given` beyond those that it takes are left out. Raises ConfigError for arguments that nothing offers,
    PassError for whatever goes wrong inside.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    many = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    positional = given if many else given[: len(places)]
    rest = [p for p in parameters if p not in places[: len(positional)]]
    named = {p.name: offered[p.name] for p in rest if p.name in offered and p.kind is not p.POSITIONAL_ONLY}
    absent = [
        p.name
        for p in rest
        if p.name not in named and p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if absent:
        raise ConfigError(f"{name} asks for {', '.join(absent)}, which nothing gives; it can have {', '.join(offered)}")
    try:
        return function(*positional, **named)
    except DrupeError:
        raise
    except Exception as error:
        raise PassError(f"{name} of the user_script failed: {type(error).__name__}: {error}") from error


def read_qconfig(name: str, qconfig: Any) -> Scheme:
    """Return the grids that a torch.ao.quantization.QConfig describes. Raises ConfigError for what is none.

    Its fake quantizers are asked for range, type, symmetry and the share of their moving average; how an observer finds
    a range otherwise (a histogram) is not taken over.
    """
    if not (hasattr(qconfig, "activation") and hasattr(qconfig, "weight")):
        raise ConfigError(
            f"qconfig_func: {name} returned {type(qconfig).__name__}; expected a torch.ao.quantization.QConfig with "
            "an activation and a weight"
        )
    weights = _grid(f"qconfig_func: {name}: weight", qconfig.weight)
    if weights is None:
        raise ConfigError(f"qconfig_func: {name} leaves weights in float, so there is nothing to train for")
    if weights.low >= 0:
        raise ConfigError(
            f"qconfig_func: {name} gives weights the numbers {weights.low} to {weights.high}; expected signed ones "
            "around zero (dtype=torch.qint8, a symmetric qscheme)"
        )
    if not weights.symmetric:
        raise ConfigError(f"qconfig_func: {name} gives weights a zero point; expected a symmetric qscheme")
    return Scheme(weights, _grid(f"qconfig_func: {name}: activation", qconfig.activation))


def _grid(where: str, factory: Any) -> Grid | None:
    import torch

    try:
        fake = factory() if callable(factory) else factory
    except Exception as error:
        raise ConfigError(f"{where} can't be made: {type(error).__name__}: {error}") from error
    if fake is None or isinstance(fake, torch.nn.Identity) or type(fake).__name__ == "PlaceholderObserver":
        return None
    observer = getattr(fake, "activation_post_process", fake)
    low, high = (getattr(fake, key, getattr(observer, key, None)) for key in ("quant_min", "quant_max"))
    scheme = getattr(fake, "qscheme", None) or getattr(observer, "qscheme", None)
    if low is None or high is None or scheme is None:
        raise ConfigError(f"{where} is {type(fake).__name__}; expected a FakeQuantize or an observer with a range")
    grid = Grid(
        int(low),
        int(high),
        scheme in (torch.per_tensor_symmetric, torch.per_channel_symmetric),
        scheme in (torch.per_channel_symmetric, torch.per_channel_affine),
        float(getattr(observer, "averaging_constant", 0.01)),
    )
    try:
        grid.container  # noqa: B018
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return grid
