"""SelectiveMixedPrecision: which layers the quantizer behind it is to give more bits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import Choice, DataRef, FloatRange, PassConfig, searchable
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.huggingface.files import weight_names

__all__ = ["SelectiveMixedPrecision", "SelectiveMixedPrecisionConfig"]

_LAYER = re.compile(r"^(.*\.(?:layers|h|blocks)\.)(\d+)\.(.*)\.weight$")
_VALUES = ("v_proj", "qkv_proj", "query_key_value")
_DOWN = ("down_proj", "dense_4h_to_h", "fc2")


class SelectiveMixedPrecisionConfig(PassConfig):
    """How layers are chosen."""

    algorithm: Literal["k_quant_mixed", "k_quant_down", "k_quant_last", "kld_gradient"] = searchable(
        "k_quant_mixed",
        Choice("k_quant_mixed", "k_quant_down", "k_quant_last"),
        doc="k_quant_last: the head; k_quant_down: the head and half of the down projections; k_quant_mixed: those and "
        "half of the value projections; kld_gradient: layers whose rounding changes the model's answers most.",
    )
    high_bits: Literal[8] = Field(8, description="Bits of the chosen layers.")
    bits: Literal[4] = Field(4, description="With kld_gradient: bits of the others, whose loss is measured.")
    ratio: float = searchable(
        0.5, FloatRange(0.1, 0.9), doc="With kld_gradient: share of the weights that get more bits.", gt=0, lt=1
    )
    sym: bool = Field(False, description="With kld_gradient: groups without a zero point.")
    group_size: Literal[-1, 16, 32, 64, 128, 256] = Field(
        128, description="With kld_gradient: columns that share a scale; where they don't divide a layer, its row."
    )
    data_config: DataRef | None = Field(
        None, description="With kld_gradient: text to measure with; without it the model writes some itself."
    )
    nsamples: int = Field(16, ge=1, description="With kld_gradient: how many sequences.")
    seqlen: int = Field(128, ge=2, description="With kld_gradient: tokens of a sequence at most.")

    @model_validator(mode="after")
    def _measured(self) -> SelectiveMixedPrecisionConfig:
        if self.data_config is not None and self.algorithm != "kld_gradient":
            raise ValueError(f"data_config is for kld_gradient; {self.algorithm} goes by the layers' places")
        return self


class SelectiveMixedPrecision(Pass):
    """Notes the chosen layers in the model's attributes; its files stay as they are."""

    Config: ClassVar[type[PassConfig]] = SelectiveMixedPrecisionConfig
    version = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse a quantized model."""
        planned = super().plan(info, config, accelerator)
        if info.attributes.get("quantization"):
            raise ConfigError(
                f"{self.spec.name} goes before the quantizer; the model is quantized already "
                f"({info.attributes['quantization']})"
            )
        return planned

    def rehearsal(self, config: Any) -> Any:
        """Two short sequences."""
        return config.model_copy(update={"nsamples": 2, "seqlen": 16})

    def run(self, model: Model, config: SelectiveMixedPrecisionConfig, context: PassContext) -> Model:
        """Choose."""
        if config.algorithm == "kld_gradient":
            from drupe.plugins.quantization.sensitivity import sensitive_layers

            chosen = sensitive_layers(
                self.spec.name,
                model,
                context,
                data=config.data_config,
                sequences=(config.nsamples, config.seqlen),
                bits=(config.bits, config.high_bits),
                group_size=config.group_size,
                symmetric=config.sym,
                ratio=config.ratio,
            )
        else:
            chosen = _by_place(self.spec.name, model.folder, config.algorithm)
        context.report["more_bits"] = sorted(chosen)
        return model.derive(attributes={"mixed_precision": dict.fromkeys(sorted(chosen), config.high_bits)})


def _by_place(pass_name: str, folder: Path, algorithm: str) -> set[str]:
    """Return the head, and those projections of the first and last blocks and of every third between that matter."""
    found = [match for name in weight_names(folder) if (match := _LAYER.match(name))]
    if not found:
        raise PassError(f"{pass_name}: the model has no numbered blocks (model.layers.0…), so no layer can be chosen")
    count = 1 + max(int(match[2]) for match in found)
    wanted = {"k_quant_last": (), "k_quant_down": _DOWN, "k_quant_mixed": _VALUES + _DOWN}[algorithm]

    def matters(number: int) -> bool:
        return number < count / 8 or number >= 7 * count / 8 or (number - round(count / 8)) % 3 == 2

    layers = {
        f"{match[1]}{match[2]}.{match[3]}"
        for match in found
        if match[3].split(".")[-1] in wanted and matters(int(match[2]))
    }
    return {"lm_head", *layers}
