"""One training from the loaded module to the trained one: example call, quantizers, and the loop that was chosen."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.plugins.quantization.qat.batches import Repeated, Source, moved, training_source, validation_source
from drupe.plugins.quantization.qat.config import QuantizationAwareTrainingConfig
from drupe.plugins.quantization.qat.lightning import train_with_lightning
from drupe.plugins.quantization.qat.loop import train, validate
from drupe.plugins.quantization.qat.preparing import Recipe, Scheme, prepare
from drupe.plugins.quantization.qat.quantizers import Grid
from drupe.plugins.quantization.qat.scripts import Functions, call_by_position, known, read_qconfig

__all__ = ["load", "prepared", "trained"]

Data = tuple[Source, int | None] | None


def load(model: Model, context: JobContext) -> Any:
    """Return the module to train, all of its weights in float32 and with gradients."""
    if model.kind == "hf":
        from drupe.plugins.huggingface.loading import load_model

        return load_model(model, dtype="float32", trainable=True)
    from drupe.plugins.huggingface.pytorch_model import load_pytorch

    module = load_pytorch(model, context).float()
    if isinstance(module, torch.jit.ScriptModule):
        raise ConfigError(
            "the PyTorchModel is a TorchScript, whose parts can't be changed; give the module that it was made from"
        )
    return module


def prepared(
    model: Model,
    module: Any,
    config: QuantizationAwareTrainingConfig,
    functions: Functions,
    context: JobContext,
    device: str,
) -> tuple[Data, Recipe, Mapping[str, str]]:
    """Put quantizers into the module, in place; return the training data, what was done, and what was left and why."""
    data = training_source(model, module, config, functions, context)
    if functions.qconfig is not None:
        made = call_by_position("qconfig_func", functions.qconfig, (), known(config, context))
        scheme = read_qconfig(str(config.qconfig_func), made)
    else:
        bits = config.activation_bits
        activations = Grid.of_activations(bits, config.activation_symmetric) if bits else None
        scheme = Scheme(Grid.of_weights(config.weight_bits, config.per_channel), activations)
    example = moved(_example(model, module, data, config, context), "cpu")
    recipe, left = prepare(
        module,
        example,
        scheme,
        groups=config.modules_to_fuse or (),
        fuse_found=config.fuse_batch_norm,
        excluded=config.modules_to_exclude or (),
        fold_norms=config.freeze_batch_norm,
    )
    for name, why in left.items():
        context.log.info("%s stays in float: %s", name, why)
    module.to(device)
    return data, recipe, left


def trained(
    model: Model,
    module: Any,
    data: Data,
    config: QuantizationAwareTrainingConfig,
    functions: Functions,
    context: JobContext,
    device: str,
) -> tuple[Any, dict[str, Any]]:
    """Train a prepared module; return the trained one and what is to be reported."""
    module.train()
    if functions.training_loop is not None:
        return _own_loop(module, data, config, functions, context), {}
    if functions.ptl_module is not None:
        source = data[0] if data else None
        result, report = train_with_lightning(module, source, config, functions, context)
        return _module("ptl_module's model", result, module), report
    assert data is not None
    source, per_epoch = data
    outcome = train(module, source, per_epoch, config, functions.loss, context, device)
    found: dict[str, Any] = {"steps": outcome.steps, "losses": list(outcome.losses)}
    if config.do_validate:
        held_out = validation_source(model, module, config, functions, context)
        assert held_out is not None
        found["validation"] = validate(module, held_out, functions.loss, context, device)
    return module, found


def _own_loop(
    module: Any, data: Data, config: QuantizationAwareTrainingConfig, functions: Functions, context: JobContext
) -> Any:
    assert functions.training_loop is not None
    offered = {**known(config, context), **({"train_dataloader": Repeated(data[0])} if data else {})}
    result = call_by_position("training_loop_func", functions.training_loop, (module,), offered)
    return _module(f"training_loop_func {config.training_loop_func}", result, module)


def _module(what: str, result: Any, module: Any) -> Any:
    """Return the trained module: what came back, or the one that was given where nothing did."""
    if result is None:
        return module
    if not isinstance(result, torch.nn.Module):
        raise ConfigError(f"{what} is {type(result).__name__}; expected the trained torch.nn.Module, or nothing")
    return result


def _example(
    model: Model, module: Any, data: Data, config: QuantizationAwareTrainingConfig, context: JobContext
) -> Any:
    """Return inputs for an example call: of the shapes that are told, else a batch of the training data."""
    if model.kind == "pytorch":
        from drupe.plugins.huggingface.pytorch_model import dummy_inputs, io_config, takes_names
        from drupe.plugins.huggingface.told_inputs import told_inputs

        told = io_config(model, context)
        if config.input_shapes:
            names = told.get("input_names") or [f"input_{n}" for n in range(len(config.input_shapes))]
            tensors = told_inputs({**told, "input_names": names, "input_shapes": config.input_shapes})
            assert tensors is not None
            return tensors if takes_names(module, tensors) else tuple(tensors.values())
        if model.attributes.get("dummy_inputs_func") or told.get("input_shapes"):
            return dummy_inputs(model, module, context)
    if data is not None:
        for inputs, _ in itertools.islice(data[0](0), 1):
            return inputs
    raise ConfigError(
        "no example call of the model is known: give input_shapes, or input_shapes in the input model's io_config"
    )
