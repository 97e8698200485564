"""The built-in training loop."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError, PassError
from drupe.plugins.quantization.qat.batches import Source, moved
from drupe.plugins.quantization.qat.config import QuantizationAwareTrainingConfig
from drupe.plugins.quantization.qat.dataflow import call
from drupe.plugins.quantization.qat.scripts import call_by_position, checkpoint_folder
from drupe.plugins.tuning.checkpoints import Checkpoints

__all__ = ["Outcome", "check_finite", "train", "validate"]

_EPOCHS = 3
Loss = Callable[..., Any] | None


@dataclass(frozen=True)
class Outcome:
    """What a training came to. losses: the mean loss of each epoch."""

    steps: int
    losses: tuple[float, ...] = ()


def train(
    module: Any,
    source: Source,
    per_epoch: int | None,
    config: QuantizationAwareTrainingConfig,
    loss_func: Loss,
    context: JobContext,
    device: str,
) -> Outcome:
    """Train a prepared module in place. per_epoch: batches of an epoch, where known.

    A training that was stopped goes on after the last epoch that it finished, and comes to the same.

    Raises PassError at the step whose loss is not finite, ConfigError for batches that the model or the loss can't
    take.
    """
    epochs = config.num_epochs or (None if config.num_steps > 0 else _EPOCHS)
    total = _total(epochs, per_epoch, config.num_steps)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = _optimizer(parameters, config)
    folder = checkpoint_folder(config, context)
    kept = Checkpoints(context.checkpoint_dir / "training")
    first, step, losses = _resume(kept, module, optimizer)
    for epoch in range(first, epochs) if epochs else itertools.count(first):
        if 0 < config.num_steps <= step:
            break
        module.train()
        summed, count = 0.0, 0
        for inputs, labels in source(epoch):
            if 0 < config.num_steps <= step:
                break
            _set_rate(optimizer, config, step, total)
            optimizer.zero_grad(set_to_none=True)
            loss = _loss(module, moved(inputs, device), moved(labels, device), loss_func, f"training step {step + 1}")
            value = float(loss.detach())
            if not math.isfinite(value):
                raise PassError(
                    f"the loss is {value} at step {step + 1} (epoch {epoch + 1}); lower learning_rate "
                    f"({config.learning_rate}), set max_grad_norm, or look for values in the data that are not finite"
                )
            loss.backward()
            if config.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            step += 1
            summed, count = summed + value, count + 1
            context.progress(step, total or step + 1, "training", loss=value)
        if count:
            losses.append(summed / count)
        _keep(kept, module, optimizer, epoch + 1, step, losses)
        if folder is not None:
            _checkpoint(module, folder, epoch + 1)
    return Outcome(step, tuple(losses))


def validate(module: Any, source: Source, loss_func: Loss, context: JobContext, device: str) -> dict[str, float]:
    """Return the mean loss over the validation samples, and the accuracy where the labels are classes."""
    module.eval()
    loss, right, answers, samples = 0.0, 0, 0, 0
    for number, (inputs, labels) in enumerate(source(0)):
        context.raise_if_cancelled()
        targets = moved(labels, device)
        with torch.no_grad():
            outputs = call(module, moved(inputs, device))
            part = _loss_of(outputs, targets, loss_func, f"validation batch {number}")
        size = len(targets)
        loss, samples = loss + float(part) * size, samples + size
        logits = _logits(outputs)
        if isinstance(logits, torch.Tensor) and not targets.is_floating_point() and logits.dim() == targets.dim() + 1:
            axis = -1 if logits.shape[:-1] == targets.shape else 1
            counted = targets >= 0
            right += int((logits.argmax(axis) == targets)[counted].sum())
            answers += int(counted.sum())
    found = {"loss": loss / samples}
    return {**found, "accuracy": right / answers} if answers else found


def check_finite(module: Any) -> None:
    """Raise PassError where a training left a weight that is not finite."""
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise PassError(
                f"after training, {name} holds values that are not finite; lower the learning rate of the training"
            )


def _total(epochs: int | None, per_epoch: int | None, steps: int) -> int | None:
    by_epochs = epochs * per_epoch if epochs and per_epoch else None
    limits = [limit for limit in (by_epochs, steps if steps > 0 else None) if limit]
    return min(limits) if limits else None


def _optimizer(parameters: Any, config: QuantizationAwareTrainingConfig) -> Any:
    common = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **common)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, **common)


def _set_rate(optimizer: Any, config: QuantizationAwareTrainingConfig, step: int, total: int | None) -> None:
    if config.lr_schedule == "cosine" and total:
        share = 0.5 * (1.0 + math.cos(math.pi * min(step / total, 1.0)))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * share


def _loss(module: Any, inputs: Any, labels: Any, loss_func: Loss, where: str) -> Any:
    own = loss_func is None and isinstance(inputs, Mapping) and labels is not None and _takes_labels(module)
    try:
        outputs = call(module, {**inputs, "labels": labels} if own else inputs)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ConfigError(f"{where}: the model can't take the batch: {error}") from error
    loss = getattr(outputs, "loss", None) if own else None
    return _loss_of(outputs, labels, loss_func, where) if loss is None else loss


def _takes_labels(module: Any) -> bool:
    return "labels" in inspect.signature(module.forward).parameters


def _loss_of(outputs: Any, labels: Any, loss_func: Loss, where: str) -> Any:
    if loss_func is not None:
        loss = call_by_position("loss_func", loss_func, (outputs, labels), {})
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise ConfigError(f"loss_func returned {_shape(loss)}; expected a tensor of one value")
        return loss.reshape(())
    if labels is None:
        raise ConfigError(f"{where}: the batch has no labels; give inputs and labels, or a loss_func")
    logits = _logits(outputs)
    if not isinstance(logits, torch.Tensor):
        raise ConfigError(
            f"{where}: the model gives {_shape(outputs)}, no logits; name a loss_func of your user_script"
        )
    if logits.dim() > 2 and logits.shape[:-1] == labels.shape:
        logits, labels = logits.flatten(0, -2), labels.flatten()
    try:
        return torch.nn.functional.cross_entropy(logits, labels)
    except (RuntimeError, IndexError, ValueError) as error:
        raise ConfigError(
            f"{where}: no cross entropy of outputs {_shape(logits)} and labels {_shape(labels)} ({error}); name a "
            "loss_func of your user_script"
        ) from error


def _logits(outputs: Any) -> Any:
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        return outputs.get("logits", next(iter(outputs.values()), None))
    if isinstance(outputs, (list, tuple)) and outputs:
        return outputs[0]
    return getattr(outputs, "logits", None)


def _shape(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__


def _keep(kept: Checkpoints, module: Any, optimizer: Any, epoch: int, step: int, losses: list[float]) -> None:
    """Write what the next epoch starts from, so that a training that is stopped goes on there."""
    state = {
        "module": module.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state(),
        "epoch": epoch, "losses": losses,
    }  # fmt: skip
    kept.save(step, state)


def _resume(kept: Checkpoints, module: Any, optimizer: Any) -> tuple[int, int, list[float]]:
    """Return the epoch to start with, the steps taken and the losses; all as at the start where nothing was kept."""
    found = kept.latest()
    if found is None:
        return 0, 0, []
    step, state = found
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    return state["epoch"], step, list(state["losses"])


def _checkpoint(module: Any, folder: Path, epoch: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(module.state_dict(), folder / f"epoch-{epoch}.pt")
    except OSError as error:
        raise PassError(f"checkpoint_path: {folder} can't be written: {error}; name another folder") from error
