"""Quantizes weights and activations of an IR to 8 bit."""

from __future__ import annotations

from typing import Any, Literal

from drupe import Accelerator, Choice, DataRef, Model, ModelInfo, Pass, PassContext, searchable
from pydantic import Field

from drupe_openvino.calibration import calibration_dataset
from drupe_openvino.compression import refuse_quantized
from drupe_openvino.devices import device_name
from drupe_openvino.ir import ir_name, replaced, save_ir
from drupe_openvino.libraries import nncf, openvino
from drupe_openvino.scope import ScopedConfig

__all__ = ["OpenVINOQuantization"]


class QuantizationConfig(ScopedConfig):
    """How activations are quantized and what calibrates them."""

    data_config: DataRef = Field(description="Data to calibrate with.")
    preset: Literal["performance", "mixed"] | None = searchable(
        None, Choice("performance", "mixed"), doc="performance: symmetric; mixed: asymmetric activations. None: NNCF's."
    )
    target_device: Literal["auto", "any", "cpu", "gpu", "npu"] = Field(
        "auto", description="Which device's arithmetic to quantize for; auto: the target's."
    )
    model_type: Literal["transformer"] | None = Field(
        None, description="transformer: keep what attention needs exact; None: by the model's inputs."
    )
    subset_size: int = Field(300, ge=1, description="How many samples calibrate.")
    fast_bias_correction: bool = Field(True, description="Correct biases by means only; slower and closer without.")
    smooth_quant_alpha: float | None = searchable(
        None, Choice(0.5, 0.8, 0.95), doc="Strength of SmoothQuant for matrix products; -1 turns it off.", ge=-1, le=1
    )


class OpenVINOQuantization(Pass):
    """Post-training quantization with NNCF.

    1. Inputs and outputs keep their types.
    2. A model that takes input_ids counts as a transformer unless model_type says otherwise.
    """

    Config = QuantizationConfig

    def plan(self, info: ModelInfo, config: QuantizationConfig, accelerator: Accelerator) -> ModelInfo:
        """See Pass.plan."""
        return refuse_quantized(super().plan(info, config, accelerator), self.spec.name).with_(quantization="int8")

    def run(self, model: Model, config: QuantizationConfig, context: PassContext) -> Model:
        """See Pass.run."""
        lib = nncf()
        graph = openvino().Core().read_model(model.folder / f"{ir_name(model)}.xml")
        dataset, used = calibration_dataset(graph, config.data_config, model, context, config.subset_size)
        options: dict[str, Any] = {}
        takes_text = any("input_ids" in item.get_names() for item in graph.inputs)
        if config.model_type or takes_text:
            options["model_type"] = lib.ModelType.TRANSFORMER
        if config.preset is not None:
            options["preset"] = lib.QuantizationPreset(config.preset)
        if config.smooth_quant_alpha is not None:
            alphas = lib.AdvancedSmoothQuantParameters(matmul=config.smooth_quant_alpha)
            options["advanced_parameters"] = lib.AdvancedQuantizationParameters(smooth_quant_alphas=alphas)
        graph = lib.quantize(
            graph,
            dataset,
            subset_size=used,
            target_device=lib.TargetDevice(self._device(config, context.accelerator)),
            fast_bias_correction=config.fast_bias_correction,
            ignored_scope=config.nncf_scope(),
            **options,
        )
        save_ir(graph, context.output_dir, ir_name(model))
        return replaced(model, context, (), quantization="int8")

    def _device(self, config: QuantizationConfig, accelerator: Accelerator) -> str:
        wanted = config.target_device.upper()
        if wanted == "AUTO":
            wanted = device_name(accelerator)
        return wanted if wanted in ("CPU", "GPU", "NPU") else "ANY"
