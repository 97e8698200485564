"""What the quantizers of PyTorch models share: the scheme's parameters, and how the result is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import Choice, Ordered, PassConfig, searchable, tell
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.quantization.checkpoint import METHOD, QuantizedLayer, quantized_layers, write_checkpoint
from drupe.plugins.quantization.decoders import check_float, check_zeros_stay
from drupe.plugins.quantization.grid import TYPE_BITS
from drupe.plugins.quantization.layers import (
    EMBEDDING,
    HEAD,
    Scheme,
    embedding_name,
    left_in_float,
    linear_layers,
    schemes,
)
from drupe.plugins.quantization.saving import copy_beside

__all__ = [
    "GridConfig",
    "QuantizerConfig",
    "WeightQuantizer",
    "check_device",
    "device_of",
    "stored_attributes",
]

_OF_LAYERS = ("bits", "group_size", "symmetric", "sym")
_GroupSize = Literal[-1, 16, 32, 64, 128, 256]
_NOTEWORTHY = 0.05
"""Share of the blocks' weights from which it is told that they stay in float."""


class GridConfig(PassConfig):
    """The grid of the weights."""

    bits: Literal[4, 8] = searchable(4, Ordered(4, 8), doc="Bits of a weight.")
    group_size: _GroupSize = searchable(
        128,
        Ordered(32, 64, 128),
        doc="Columns that share a scale; it must divide the layers' widths. -1: the whole row.",
    )
    sym: bool = searchable(False, Choice(True, False), doc="Groups without a zero point.")
    lm_head: bool = Field(False, description="Quantize the head as well.")
    overrides: Mapping[str, Mapping[str, Any]] = Field(
        default_factory=dict, description="Layer name to its own bits, group_size and symmetric."
    )
    device: str | None = Field(
        None, description="Where the model is calculated: cpu, cuda; default: as the target has."
    )

    @field_validator("bits", mode="before")
    @classmethod
    def _named_type(cls, value: Any) -> Any:
        """A type's name is read as its bits."""
        return TYPE_BITS.get(value, value) if isinstance(value, str) else value

    @field_validator("overrides")
    @classmethod
    def _known_overrides(cls, values: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for name, own in values.items():
            if unknown := [key for key in own if key not in _OF_LAYERS]:
                raise ValueError(f"{name} has {unknown[0]!r}; expected {', '.join(_OF_LAYERS[:3])}")
            bits = own.get("bits", 4)
            bits = TYPE_BITS.get(bits, bits) if isinstance(bits, str) else bits
            if bits not in (4, 8):
                raise ValueError(f"{name}: bits is {own['bits']!r}; expected 4 or 8")
            if own.get("group_size", -1) not in (sizes := get_args(_GroupSize)):
                expected = ", ".join(str(size) for size in sizes)
                raise ValueError(f"{name}: group_size is {own['group_size']!r}; expected one of {expected}")
            for key in ("symmetric", "sym"):
                if not isinstance(own.get(key, True), bool):
                    raise ValueError(f"{name}: {key} is {own[key]!r}; expected true or false")
            found[name] = {**own, "bits": bits} if "bits" in own else own
        return found

    @model_validator(mode="after")
    def _tell_idle_overrides(self, info: ValidationInfo) -> GridConfig:
        if HEAD in self.overrides and not self.lm_head:
            tell(info, f"overrides.{HEAD} has no effect: lm_head is not true, so the head stays in float")
        if EMBEDDING in self.overrides and not getattr(self, "embeds", False):
            why = "embeds is not true" if "embeds" in type(self).model_fields else "only Rtn and KQuant round it"
            tell(info, f"overrides.{EMBEDDING} has no effect: {why}, so the embedding stays in float")
        return self


class QuantizerConfig(GridConfig):
    """The grid, for quantizers that may search it."""

    scale_search: bool = Field(True, description="Try smaller ranges for each group and take that of the least error.")


class WeightQuantizer(Pass):
    """Subclasses implement `quantize_layers`."""

    Config: ClassVar[type[PassConfig]] = GridConfig
    keeps_quantized: ClassVar[bool] = False
    """Whether a model of which some layers are quantized may be given, to quantize the others."""
    keeps_zeros: ClassVar[bool] = True
    """Whether weights of zero stay what they are."""

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse adapters and models that are quantized."""
        planned = super().plan(info, config, accelerator)
        check_float(self.spec.name, info, takes=METHOD if self.keeps_quantized else None)
        if not self.keeps_zeros:
            check_zeros_stay(self.spec.name, "use Rtn, KQuant or AutoAWQQuantizer, whose grids keep them", info)
        return planned.with_(quantization=METHOD, mixed_precision=None)

    def check(self, config: Any, accelerator: Accelerator) -> None:
        """Refuse a device that is not there."""
        check_device(self.spec.name, config.device)

    def quantize_layers(
        self, network: Any, chosen: Mapping[str, Scheme], model: Model, config: Any, context: PassContext
    ) -> dict[str, QuantizedLayer]:
        """Return the quantized layers by name; the network may be changed."""
        raise NotImplementedError

    def run(self, model: Model, config: Any, context: PassContext) -> Model:
        """Load in float32, quantize, write."""
        import torch

        from drupe.plugins.huggingface.loading import load_model, read_config
        from drupe.plugins.huggingface.stored_type import stored_dtype

        torch.set_num_threads(context.resources.thread_count)
        torch.manual_seed(context.seed)
        done = quantized_layers(model.folder)
        network = load_model(model, dtype="float32", device=device_of(config.device, context))
        layers = linear_layers(network, lm_head=config.lm_head)
        left = {name: layer for name, layer in layers.items() if name not in done}
        if (left_over := left_in_float(network, {*done, *layers})) > _NOTEWORTHY:
            context.report["blocks_left_in_float"] = round(left_over, 3)
            context.log.warning(
                "%s: %.0f %% of the weights of %s's blocks are in no linear layer (experts that are one tensor, for "
                "example) and stay in float",
                self.spec.name,
                100 * left_over,
                type(network).__name__,
            )
        mixed = model.attributes.get("mixed_precision") or {}
        if HEAD in mixed and not config.lm_head:
            context.log.warning(
                "%s: an earlier pass chose %d bits for the head, which stays in float: lm_head is not true",
                self.spec.name,
                mixed[HEAD],
            )
        told = {**{name: {"bits": bits} for name, bits in mixed.items() if name in layers}, **config.overrides}
        if getattr(config, "embeds", False):
            # Some models call their embedding otherwise; `finish` looks its own up.
            told.pop(embedding_name(network), None)
        default = Scheme(config.bits, config.group_size, config.sym)
        chosen = schemes(self.spec.name, left, default, {k: v for k, v in told.items() if k in left or k not in done})
        quantized = self.quantize_layers(network, chosen, model, config, context)
        source = read_config(model.folder)
        state = _state(network, stored_dtype(model))
        self.finish(network, state, config, context)
        before = source.get("quantization_config") or {}
        write_checkpoint(
            context.output_dir,
            state,
            {**done, **quantized},
            {key: value for key, value in source.items() if key != "quantization_config"},
            bits=int(before.get("bits", config.bits)),
            group_size=int(before.get("group_size", config.group_size)),
            symmetric=bool(before.get("symmetric", config.sym)),
        )
        copy_beside(model, context)
        bits: dict[str, int] = {}
        for layer in quantized.values():
            bits[str(layer.bits)] = bits.get(str(layer.bits), 0) + 1
        context.report["layers_by_bits"] = dict(sorted(bits.items()))
        kept = {key: value for key, value in model.attributes.items() if key != "mixed_precision"}
        return Model.from_dir("hf", context.output_dir, {**kept, "quantization": METHOD})

    def finish(self, network: Any, state: dict[str, Any], config: Any, context: PassContext) -> None:
        """Change the tensors that stay in float (`state`, by their names in the network), before they are written."""


def check_device(name: str, wanted: str | None) -> None:
    """Raise ConfigError where a parameter `device` names what PyTorch does not have here."""
    kind, _, number = str(wanted or "cpu").partition(":")
    if kind not in ("cpu", "cuda", "gpu") or (number and not number.isdecimal()):
        raise ConfigError(f"{name}: device is {wanted}; expected cpu, cuda or cuda:N")
    if kind == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"{name}: device is {wanted}, and PyTorch sees no GPU where the pass runs; leave device out to work on "
            "the CPU, or give the pass a host with a GPU and a PyTorch built for it"
        )


def device_of(wanted: str | None, context: PassContext) -> str:
    """Return the torch device that a parameter `device` names, or that the job has."""
    if wanted is not None:
        return wanted.replace("gpu", "cuda", 1)
    import torch

    return "cuda" if context.resources.gpus and torch.cuda.is_available() else "cpu"


def stored_attributes(attributes: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Return an input's attributes for a result whose layers are stored, and read again, in a dtype of its own."""
    kept = {key: value for key, value in attributes.items() if key not in ("mixed_precision", "load_kwargs")}
    options = {
        key: value
        for key, value in (attributes.get("load_kwargs") or {}).items()
        if key not in ("dtype", "torch_dtype", "quantization_config")
    }
    return {**kept, **({"load_kwargs": options} if options else {}), "dtype": str(dtype).removeprefix("torch.")}


def _state(network: Any, dtype: Any) -> dict[str, Any]:
    """Return a network's tensors by name, shared ones once, as they are stored."""
    tied = set(getattr(network, "_tied_weights_keys", None) or ())
    shares = getattr(network.config, "tie_word_embeddings", False)
    return {
        name: tensor.detach().cpu().to(dtype) if tensor.is_floating_point() else tensor.detach().cpu()
        for name, tensor in network.state_dict().items()
        if not (shares and name in tied)
    }
