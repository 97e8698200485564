"""AutoRound: rounding and ranges are learned block by block with signed gradient descent (the library auto-round).

Cheng et al. 2023, arXiv 2309.05516.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from pydantic import Field

from drupe.core.config import DataRef, IntRange, PassConfig, searchable
from drupe.core.context import PassContext
from drupe.core.errors import PassError
from drupe.core.model import Model
from drupe.plugins.quantization.calibration import calibration_tokens
from drupe.plugins.quantization.checkpoint import QuantizedLayer
from drupe.plugins.quantization.config import QuantizerConfig, WeightQuantizer
from drupe.plugins.quantization.grid import quantize
from drupe.plugins.quantization.layers import Scheme, left_in_float
from drupe.plugins.quantization.rtn import round_layer

__all__ = ["AutoRound", "AutoRoundConfig"]

_FUSED_EXPERTS = 0.05
"""Share of the blocks' weights that is in no linear layer from which those are taken for experts."""


class AutoRoundConfig(QuantizerConfig):
    """Options of the library, and what it is calibrated with."""

    data_config: DataRef | None = Field(
        None, description="Text that calibrates; without it the model writes some itself."
    )
    iters: int = searchable(
        50, IntRange(20, 200), doc="Steps for each block; 0 rounds to nearest with ranges by importance.", ge=0
    )
    nsamples: int = Field(32, ge=1, description="How many sequences calibrate.")
    seqlen: int = Field(256, ge=2, description="Tokens of a sequence.")
    batch_size: int = Field(8, ge=1, description="Sequences of a step.")
    lr: float | None = Field(None, gt=0, description="Learning rate; default: the library's, 1 / iters.")


class AutoRound(WeightQuantizer):
    """Learns the rounding of a decoder's blocks. A head that is asked for is rounded to nearest.

    Layers of 8 bits are symmetric whatever `sym` says: the library has no zero points for them.
    """

    Config: ClassVar[type[PassConfig]] = AutoRoundConfig
    version = 1
    keeps_zeros = False

    def rehearsal(self, config: Any) -> Any:
        """One step on two short sequences."""
        return config.model_copy(update={"iters": 1, "nsamples": 2, "seqlen": 16})

    def quantize_layers(
        self, network: Any, chosen: Mapping[str, Scheme], model: Model, config: AutoRoundConfig, context: PassContext
    ) -> dict[str, QuantizedLayer]:
        """Let the library quantize, and take its scales and zero points over."""
        from auto_round import AutoRound as Library

        from drupe.plugins.huggingface.loading import load_tokenizer

        if left_in_float(network, set(chosen)) > _FUSED_EXPERTS:
            raise PassError(
                f"{self.spec.name}: experts of {type(network).__name__} are one tensor, which auto-round would write "
                "under other names; Gptq, Rtn and AutoAWQQuantizer quantize the layers beside them"
            )
        tokens = calibration_tokens(
            self.spec.name, network, model, config.data_config, config.nsamples, config.seqlen, context
        )
        rows, length = _even(tokens, config.seqlen)
        inner = {
            name: Scheme(scheme.bits, scheme.group_size, scheme.symmetric or scheme.bits == 8)
            for name, scheme in chosen.items()
            if name != "lm_head"
        }
        common = Scheme(config.bits, config.group_size, config.sym or config.bits == 8)
        special = {
            name: {"bits": scheme.bits, "group_size": scheme.group_size, "sym": scheme.symmetric}
            for name, scheme in inner.items()
            if scheme != common
        }
        found: dict[str, QuantizedLayer] = {}
        if "lm_head" in chosen:
            weights = network.get_submodule("lm_head").weight.detach()
            found["lm_head"] = round_layer(weights, chosen["lm_head"], config.scale_search)
        context.progress(0, 1, "learning the rounding")
        logging.getLogger("autoround").setLevel(logging.WARNING)
        with _older_objects_left_alone():
            library = Library(
                network,
                load_tokenizer(model),
                bits=config.bits,
                group_size=config.group_size,
                sym=common.symmetric,
                iters=config.iters,
                nsamples=len(rows),
                seqlen=length,
                batch_size=min(config.batch_size, len(rows)),
                dataset=[{"input_ids": row} for row in rows],
                device_map=str(network.device),
                low_gpu_mem_usage=True,
                enable_torch_compile=False,
                seed=context.seed,
                **({"layer_config": special} if special else {}),
                **({"lr": config.lr} if config.lr is not None else {}),
            )
            try:
                quantized, _ = library.quantize()
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                # Faults of the library on decoders that it does not foresee.
                raise PassError(
                    f"{self.spec.name}: auto-round failed on this {type(network).__name__} ({type(error).__name__}: "
                    f"{error}); Gptq quantizes it without that library"
                ) from error
        for name, scheme in inner.items():
            found[name] = _taken(self.spec.name, name, quantized.get_submodule(name), scheme)
        context.progress(1, 1, "learned")
        return {name: found[name] for name in chosen}


@contextmanager
def _older_objects_left_alone() -> Iterator[None]:
    """Keep collections of garbage from looking through all that was there before: the library collects many times a
    block, and each time takes as long as what is imported is large."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _even(tokens: list[Any], length: int) -> tuple[list[Any], int]:
    """Return the tokens as rows of one length, which the library wants: joined, and cut again."""
    import torch

    joined = torch.cat([row.reshape(-1) for row in tokens]).cpu()
    length = min(length, joined.numel())
    count = joined.numel() // length
    return list(joined[: count * length].reshape(count, 1, length)), length


def _taken(pass_name: str, name: str, layer: Any, scheme: Scheme) -> QuantizedLayer:
    """Return a layer that the library rounded, by its scales and zero points."""
    import torch

    scale = getattr(layer, "scale", None)
    if scale is None:
        raise PassError(f"{pass_name}: auto-round left {name} as it was; it may be a layer that it can't quantize")
    weights = layer.weight.detach().float().cpu()
    rows, columns = weights.shape
    scale = scale.reshape(rows, -1).float()
    middle = 1 << (scheme.bits - 1)
    zero = layer.zp if torch.is_tensor(layer.zp) else torch.full_like(scale, float(layer.zp or middle))
    zero = zero.reshape(rows, -1).float()
    groups = weights.reshape(rows, scale.shape[1], -1)
    if groups.shape[-1] != scheme.group_size:
        raise PassError(f"{pass_name}: auto-round gave {name} groups of {groups.shape[-1]}, not {scheme.group_size}")
    q = quantize(groups, scale[..., None], zero[..., None], scheme.bits).to(torch.uint8).reshape(rows, columns)
    zeros = None if scheme.symmetric and bool((zero == middle).all()) else zero.to(torch.uint8)
    return QuantizedLayer(scheme.bits, scheme.group_size, q, scale, zeros)
