"""TorchAO: weights, and activations as they come, rounded by PyTorch's own library (torchao)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.quantization.ao.config import FLOAT8, INTX, ON_GPUS, Grid, TorchAOConfig
from drupe.plugins.quantization.ao.header import settle_header
from drupe.plugins.quantization.ao.layers import chosen_layers
from drupe.plugins.quantization.ao.library import library_config
from drupe.plugins.quantization.config import check_device, device_of, stored_attributes
from drupe.plugins.quantization.decoders import check_float
from drupe.plugins.quantization.saving import copy_beside

__all__ = ["METHOD", "TorchAO"]

METHOD = "torchao"


class TorchAO(Pass):
    """Quantizes any Hugging Face model, decoders and encoders, without calibration.

    The result is a checkpoint that transformers opens where torchao is installed, with the versioned configuration in
    config.json (`TorchAoConfig`) and the weights as safetensors. ModelBuilder and the ONNX exporters can't read it.
    docs/quantized-checkpoints.md says which quantizer is for what.

    Rules: 1. A layer that was asked for is quantized, or the pass fails: the library alone leaves some as they are
    without a word. 2. A head or table that is quantized has weights of its own, also where the two were one. 3. Weights
    of fewer than 8 bits (intx) take a byte each in the file: the schemes show what a width costs in quality, and are
    for export to runtimes that pack them. 4. Layers that SelectiveMixedPrecision gave bits keep them in intx schemes.
    """

    Config: ClassVar[type[PassConfig]] = TorchAOConfig
    version = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse adapters, quantized models, and schemes that the target's device has no kernels for."""
        planned = super().plan(info, config, accelerator)
        name, scheme = self.spec.name, config.scheme
        check_float(name, info)
        if info.attributes.get("mixed_precision") and scheme not in INTX:
            raise ConfigError(
                f"{name}: an earlier pass chose bits for layers, and {scheme} has one width for all; take "
                f"{' or '.join(INTX)}, or leave the earlier pass out"
            )
        if scheme in ON_GPUS and accelerator.device != "gpu":
            raise ConfigError(
                f"{name}: {scheme} runs on GPUs only, and the target's device is {accelerator.device}; on a CPU there "
                "are int8_weight_only, int8_dynamic_activation_int8_weight, intx_weight_only, "
                "int8_dynamic_activation_intx_weight and float8_weight_only"
            )
        return planned.with_(
            quantization=METHOD, mixed_precision=None, dtype=_dtype(config) or info.attributes.get("dtype")
        )

    def check(self, config: Any, accelerator: Accelerator) -> None:
        """Schemes for GPUs pack their weights with a GPU's kernels, where the job runs."""
        check_device(self.spec.name, config.device)
        if config.scheme not in ON_GPUS:
            return
        import torch

        if not torch.cuda.is_available():
            raise ConfigError(
                f"{self.spec.name}: {config.scheme} needs a GPU where the pass runs, and PyTorch sees none"
            )
        needed = (8, 9) if config.scheme == FLOAT8 else (8, 0)
        there = torch.cuda.get_device_capability()
        if there < needed:
            raise ConfigError(
                f"{self.spec.name}: {config.scheme} needs a GPU of capability {needed[0]}.{needed[1]} or newer; "
                f"{torch.cuda.get_device_name()} has {there[0]}.{there[1]}"
            )

    def run(self, model: Model, config: TorchAOConfig, context: PassContext) -> Model:
        """Load, quantize layer by layer, write."""
        import torch

        from drupe.plugins.huggingface.loading import load_model
        from drupe.plugins.huggingface.scrub import scrub_folder

        torch.set_num_threads(context.resources.thread_count)
        device = device_of(config.device or ("cuda" if config.scheme in ON_GPUS else None), context)
        network = load_model(model, dtype=_dtype(config), device=device)
        mixed = model.attributes.get("mixed_precision") or {}
        layers = chosen_layers(self.spec.name, network, config, mixed)
        _untie(network, layers)
        configs = self._quantize(network, layers, config, context)
        self._describe(network, layers, configs)
        network.save_pretrained(context.output_dir)
        for path in context.output_dir.glob("*.safetensors"):
            settle_header(path)
        scrub_folder(context.output_dir)
        copy_beside(model, context)
        context.report["layers"] = len(layers)
        if config.scheme in INTX:
            bits: dict[str, int] = {}
            for grid in layers.values():
                bits[str(grid.bits)] = bits.get(str(grid.bits), 0) + 1
            context.report["layers_by_bits"] = dict(sorted(bits.items()))
        kept = stored_attributes(model.attributes, network.dtype)
        return Model.from_dir("hf", context.output_dir, {**kept, "quantization": METHOD})

    def _quantize(
        self, network: Any, layers: Mapping[str, Grid], config: TorchAOConfig, context: PassContext
    ) -> dict[Grid, Any]:
        """Quantize the layers in place. Returns the library's configuration of each grid."""
        import torch
        from torchao.quantization import quantize_
        from torchao.utils import TorchAOBaseTensor

        configs = {grid: library_config(config, grid) for grid in dict.fromkeys(layers.values())}
        with torch.no_grad():
            for number, (name, grid) in enumerate(layers.items()):
                context.progress(number, len(layers), f"quantizing {name}")
                module = network.get_submodule(name)
                try:
                    quantize_(module, configs[grid], filter_fn=lambda module, path: True)
                except (AssertionError, ImportError, NotImplementedError, RuntimeError, ValueError) as error:
                    told = str(error).strip().splitlines() or [type(error).__name__]
                    raise PassError(f"{self.spec.name}: torchao can't quantize {name}: {told[0]}") from error
                if not isinstance(module.weight, TorchAOBaseTensor):
                    raise PassError(
                        f"{self.spec.name}: torchao left {name} ({tuple(module.weight.shape)}) as it was; leave it out "
                        "by exclude, or take another scheme"
                    )
        context.progress(len(layers), len(layers), "quantized")
        return configs

    def _describe(self, network: Any, layers: Mapping[str, Grid], configs: Mapping[Grid, Any]) -> None:
        """Give the network the description that transformers writes, and reads the checkpoint by."""
        from torchao.quantization import FqnToConfig
        from transformers import TorchAoConfig
        from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

        if len(configs) == 1:
            (kind,) = configs.values()
        else:
            kind = FqnToConfig(OrderedDict((name, configs[grid]) for name, grid in layers.items()))
        ends = (network.get_input_embeddings(), network.get_output_embeddings())
        beyond = any(network.get_submodule(name) is end for name in layers for end in ends)
        described = TorchAoConfig(
            kind,
            modules_to_not_convert=_left(network, layers),
            include_input_output_embeddings=beyond,
        )
        network.hf_quantizer = TorchAoHfQuantizer(described, pre_quantized=False)
        network.config.quantization_config = described


def _dtype(config: TorchAOConfig) -> str | None:
    return config.dtype or ("bfloat16" if config.scheme in ON_GPUS else None)


def _left(network: Any, layers: Mapping[str, Grid]) -> list[str]:
    """Return the names of the linear layers that are not quantized."""
    import torch

    linear = (name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear))
    return sorted(name for name in linear if name not in layers)


def _untie(network: Any, layers: Mapping[str, Grid]) -> None:
    """Give embedding and head weights of their own where they share one and either is quantized."""
    import torch

    told = {id(config): config for config in (network.config, network.config.get_text_config(decoder=True))}
    ties = [config for config in told.values() if getattr(config, "tie_word_embeddings", False)]
    if not ties:
        return
    head, table = network.get_output_embeddings(), network.get_input_embeddings()
    if head is None or not any(network.get_submodule(name) in (head, table) for name in layers):
        return
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in ties:
        config.tie_word_embeddings = False
