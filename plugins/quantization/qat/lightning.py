"""Training by a LightningModule of the user's."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from typing import Any

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError, DrupeError, PassError
from drupe.plugins.quantization.qat.batches import Repeated, Source
from drupe.plugins.quantization.qat.config import QuantizationAwareTrainingConfig
from drupe.plugins.quantization.qat.scripts import Functions, call_by_position, checkpoint_folder, known

__all__ = ["check_lightning", "train_with_lightning"]

_PACKAGES = ("lightning", "pytorch_lightning")


def check_lightning(config: QuantizationAwareTrainingConfig) -> None:
    """Raise ConfigError where Lightning is asked for and not installed, or asked for a device that isn't here. Light
    unless a device is named."""
    if config.ptl_module is None:
        return
    if not any(importlib.util.find_spec(name) for name in _PACKAGES):
        raise ConfigError(
            f"ptl_module {config.ptl_module} needs Lightning, which is not installed here: pip install lightning; or "
            "train with train_dataloader_func or training_loop_func"
        )
    if str(config.pl_extra_args.get("accelerator", "auto")).lower() in ("gpu", "cuda"):
        import torch

        if not torch.cuda.is_available():
            raise ConfigError(
                f"pl_extra_args.accelerator is {config.pl_extra_args['accelerator']}, but PyTorch sees none here; "
                "train on a system that has one, or set it to cpu or auto"
            )


def train_with_lightning(
    module: Any,
    source: Source | None,
    config: QuantizationAwareTrainingConfig,
    functions: Functions,
    context: JobContext,
) -> tuple[Any, dict[str, Any]]:
    """Train a prepared module; return the trained one and what is to be reported.

    source: training batches where the user's modules bring none. Raises PassError for a loss that is not finite and
    for whatever Lightning or the user's modules raise.
    """
    assert functions.ptl_module is not None
    pl = _package(functions.ptl_module)
    seed = context.seed if config.seed is None else config.seed
    pl.seed_everything(seed, verbose=False)
    offered = known(config, context)
    learner = call_by_position("ptl_module", _by_name(functions.ptl_module, module), (), offered)
    data = None
    if functions.ptl_data_module is not None:
        data = call_by_position("ptl_data_module", functions.ptl_data_module, (), offered)
    watch = _watcher(pl, context)
    folder = checkpoint_folder(config, context) or context.checkpoint_dir / "lightning"
    settings: dict[str, Any] = {
        "max_epochs": config.num_epochs or (-1 if config.num_steps > 0 else 3),
        "max_steps": config.num_steps,
        "default_root_dir": str(folder),
        "logger": functions.logger() if functions.logger else bool(config.logger),
        "enable_checkpointing": config.checkpoint_path is not None,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu" if context.accelerator.device == "cpu" else "auto",
        "devices": 1,
        **config.pl_extra_args,
        "callbacks": [watch],
    }
    try:
        trainer = pl.Trainer(**settings)
    except DrupeError:
        raise
    except Exception as error:
        raise ConfigError(f"Lightning's Trainer refuses pl_extra_args {dict(config.pl_extra_args)}: {error}") from error
    loader = None if source is None or data is not None else Repeated(source)
    try:
        trainer.fit(learner, train_dataloaders=loader, datamodule=data)
        found = trainer.validate(learner, datamodule=data, verbose=False) if config.do_validate else []
    except DrupeError:
        raise
    except Exception as error:
        raise PassError(f"training by {config.ptl_module} failed: {type(error).__name__}: {error}") from error
    context.raise_if_cancelled()
    if not trainer.global_step:
        raise PassError(f"{config.ptl_module} took no training step; its data, or its data module's, are empty")
    validation = {str(name): float(value) for part in found for name, value in part.items()}
    report = {"steps": int(trainer.global_step), **({"validation": validation} if validation else {})}
    return getattr(learner, "model", module), report


def _by_name(kind: Any, module: Any) -> Any:
    """Return a function that makes the user's module with model=…, and what else it asks for by name."""
    parameters = inspect.signature(kind).parameters
    if "model" not in parameters:
        raise ConfigError(
            f"ptl_module {getattr(kind, '__name__', kind)} takes no model; its __init__ must take the module to train "
            "as model, and keep it as self.model"
        )

    def make(**named: Any) -> Any:
        return kind(model=module, **named)

    rest = [p for p in parameters.values() if p.name != "model" and p.kind is not p.VAR_POSITIONAL]
    make.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p if p.kind is p.VAR_KEYWORD else p.replace(kind=p.KEYWORD_ONLY) for p in rest]
    )
    return make


def _package(kind: Any) -> Any:
    """Return the package whose LightningModule the user's class is: the two names don't mix."""
    modules = [base.__module__ for base in getattr(kind, "__mro__", ())]
    old = any(name.startswith("pytorch_lightning.") for name in modules)
    return importlib.import_module("pytorch_lightning" if old else "lightning.pytorch")


def _watcher(pl: Any, context: JobContext) -> Any:
    class Watch(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, learner: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            total = trainer.estimated_stepping_batches
            step = int(trainer.global_step)
            if loss is not None:
                value = float(loss)
                if not math.isfinite(value):
                    raise PassError(
                        f"the loss is {value} at step {step} (epoch {trainer.current_epoch + 1}); lower the learning "
                        "rate of ptl_module, or look for values in the data that are not finite"
                    )
            context.progress(step, total if math.isfinite(total) else step + 1, "training")

    return Watch()
