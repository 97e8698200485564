"""OnnxQuantization: static or dynamic, so that a search can choose between the two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import Choice, PassConfig, searchable
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.plugins.onnx.dynamic_quantization import quantize_dynamically
from drupe.plugins.onnx.static_quantization import OnnxStaticQuantization, StaticOptions
from drupe.plugins.onnx.tensor_overrides import ATTRIBUTE, MARK, refuse_overrides

__all__ = ["OnnxQuantization", "OnnxQuantizationConfig"]


class OnnxQuantizationConfig(StaticOptions):
    """Which way, and the options of both; those of static quantization alone have no effect on the dynamic way."""

    quant_mode: Literal["static", "dynamic"] = searchable(
        "static", Choice("static", "dynamic"), doc="Activations by calibrated ranges, or as they come."
    )
    MatMulConstBOnly: bool = Field(True, description="Quantize MatMul only where the second input is a weight.")

    @model_validator(mode="after")
    def _fits(self) -> OnnxQuantizationConfig:
        if self.quant_mode == "static" and not self.calibrated:
            raise ValueError(
                "quant_mode static needs calibration data; name a data config as data_config, or choose dynamic"
            )
        if self.quant_mode == "dynamic" and self.precision not in ("int8", "uint8"):
            raise ValueError(f"quant_mode dynamic has weights of int8 or uint8, not {self.precision}")
        return self


class OnnxQuantization(OnnxStaticQuantization):
    """Quantizes weights and activations in one of two ways."""

    Config: ClassVar[type[PassConfig]] = OnnxQuantizationConfig
    version = 2

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """As static quantization does; refuse the dynamic way off a CPU, and types of single tensors on it."""
        if config.quant_mode == "dynamic":
            refuse_overrides(self.spec.name, info)
        planned = super().plan(info, config, accelerator)
        if config.quant_mode == "dynamic" and accelerator.device != "cpu":
            raise ConfigError(f"{self.spec.name}: dynamic quantization is for CPUs; choose quant_mode static")
        return planned

    def outcome(self, attributes: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
        """The graph is quantized."""
        return {"quantization": f"{config.precision}-{config.quant_mode}", MARK: None, ATTRIBUTE: None}

    def rewrite(self, proto: Any, path: Path, model: Model, config: Any, context: PassContext) -> Any:
        """Quantize one way or the other."""
        if config.quant_mode == "static":
            return super().rewrite(proto, path, model, config, context)
        return quantize_dynamically(
            self.spec.name,
            proto,
            path,
            context,
            precision=config.precision,
            per_channel=config.per_channel,
            reduce_range=config.reduce_range,
            preprocessed=config.quant_preprocess,
            op_types=config.op_types_to_quantize,
            excluded_types=config.op_types_to_exclude,
            nodes=config.nodes_to_quantize,
            excluded=config.nodes_to_exclude,
            options={"MatMulConstBOnly": config.MatMulConstBOnly, **config.extra_options},
        )
