"""Compresses the weights of an IR to 8 or 4 bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from drupe import (
    Accelerator,
    Choice,
    ConfigError,
    DataRef,
    FloatRange,
    Model,
    ModelInfo,
    Ordered,
    Pass,
    PassContext,
    searchable,
)
from pydantic import Field, model_validator

from drupe_openvino.calibration import calibration_dataset
from drupe_openvino.ir import ir_name, replaced, save_ir
from drupe_openvino.libraries import nncf, openvino
from drupe_openvino.scope import ScopedConfig

__all__ = ["OpenVINOWeightCompression"]

Mode = Literal["int8_asym", "int8_sym", "int4_asym", "int4_sym", "nf4"]
_FOUR_BIT: tuple[Mode, ...] = ("int4_asym", "int4_sym", "nf4")


class CompressionConfig(ScopedConfig):
    """What the weights become. What is None is left to NNCF."""

    mode: Mode = searchable(
        "int8_asym", Choice("int8_asym", "int8_sym", "int4_asym", "int4_sym"), doc="Type of the compressed weights."
    )
    ratio: float | None = searchable(
        None,
        FloatRange(0.5, 1.0),
        doc="Share of the weights in 4 bit; the rest is kept in the backup mode.",
        when={"mode": _FOUR_BIT},
        ge=0.0,
        le=1.0,
    )
    group_size: int | None = searchable(
        None, Ordered(32, 64, 128), doc="Weights that share a scale; -1: a whole row.", when={"mode": _FOUR_BIT}, ge=-1
    )
    all_layers: bool | None = Field(None, description="Compress embeddings and the last layer to 4 bit as well.")
    backup_mode: Literal["none", "int8_sym", "int8_asym"] | None = Field(
        None, description="What becomes of weights that are not compressed to 4 bit."
    )
    sensitivity_metric: str | None = Field(None, description="How NNCF ranks layers for the mixed precision of ratio.")
    awq: bool | None = Field(None, description="Activation-aware scaling; better with data.")
    scale_estimation: bool | None = Field(None, description="Fit scales to the layers' outputs; needs data.")
    gptq: bool | None = Field(None, description="GPTQ; needs data.")
    lora_correction: bool | None = Field(None, description="Low-rank correction of the error; needs data.")
    data_config: DataRef | None = Field(None, description="Data to calibrate with.")
    subset_size: int = Field(128, ge=1, description="How many samples calibrate.")

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, values: Any) -> Any:
        # Olive nests NNCF's arguments and spells modes in capitals or with its own names.
        if isinstance(values, Mapping) and isinstance(values.get("compress_config"), Mapping):
            rest = {key: value for key, value in values.items() if key != "compress_config"}
            values = {**values["compress_config"], **rest}
        if isinstance(values, Mapping) and isinstance(values.get("mode"), str):
            values = {**values, "mode": values["mode"].rpartition(".")[2].lower()}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> CompressionConfig:
        if self.mode not in _FOUR_BIT:
            only = ("ratio", "group_size", "all_layers", "backup_mode", "sensitivity_metric", "awq")
            told = [name for name in only if getattr(self, name) is not None]
            if told:
                raise ValueError(f"{', '.join(told)} apply to 4-bit modes only; mode is {self.mode}")
        if self.data_config is None:
            told = [name for name in ("scale_estimation", "gptq", "lora_correction") if getattr(self, name)]
            if told:
                raise ValueError(f"{', '.join(told)} need data to calibrate with; name a data_config")
        return self


class OpenVINOWeightCompression(Pass):
    """Compress weights with NNCF; activations stay as they are.

    1. A model whose weights are compressed already is refused.
    2. Without a data_config nothing is calibrated: NNCF then uses the weights alone.
    """

    Config = CompressionConfig

    def plan(self, info: ModelInfo, config: CompressionConfig, accelerator: Accelerator) -> ModelInfo:
        """See Pass.plan."""
        return refuse_quantized(super().plan(info, config, accelerator), self.spec.name).with_(quantization=config.mode)

    def run(self, model: Model, config: CompressionConfig, context: PassContext) -> Model:
        """See Pass.run."""
        lib = nncf()
        graph = openvino().Core().read_model(model.folder / f"{ir_name(model)}.xml")
        options: dict[str, Any] = {
            name: value
            for name in ("ratio", "group_size", "all_layers", "awq", "scale_estimation", "gptq", "lora_correction")
            if (value := getattr(config, name)) is not None
        }
        if config.backup_mode is not None:
            options["backup_mode"] = lib.BackupMode(config.backup_mode)
        if config.sensitivity_metric is not None:
            options["sensitivity_metric"] = lib.SensitivityMetric(config.sensitivity_metric.lower())
        if config.data_config is not None:
            dataset, used = calibration_dataset(graph, config.data_config, model, context, config.subset_size)
            options |= {"dataset": dataset, "subset_size": used}
        try:
            graph = lib.compress_weights(
                graph, mode=lib.CompressWeightsMode(config.mode), ignored_scope=config.nncf_scope(), **options
            )
        except lib.InvalidGroupSizeError as error:
            raise ConfigError(
                f"group_size {config.group_size} does not divide the width of every layer: {error}"
            ) from error
        save_ir(graph, context.output_dir, ir_name(model))
        return replaced(model, context, (), quantization=config.mode)


def refuse_quantized(info: ModelInfo, name: str) -> ModelInfo:
    """Return info. Raises ConfigError when the weights are quantized already."""
    if info.attributes.get("quantization"):
        raise ConfigError(
            f"{name} takes float weights; these are {info.attributes['quantization']} already: leave one of the two out"
        )
    return info
