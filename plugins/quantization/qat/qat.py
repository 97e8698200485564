"""QuantizationAwareTraining: trains a module that rounds its weights and activations as its ONNX graph will."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.quantization.qat.config import QuantizationAwareTrainingConfig

__all__ = ["QuantizationAwareTraining", "QuantizationAwareTrainingConfig"]

_FIXED = ("PyTorch.TorchScript", "PyTorch.ExportedProgram")


class QuantizationAwareTraining(Pass):
    """Trains on with weights and activations rounded, so that the model learns to be right on its grid.

    Batch norms are folded when they have learned. OnnxConversion writes the result with QuantizeLinear and
    DequantizeLinear: weights as whole numbers, activations by the ranges that training showed. (Jacob et al. 2018,
    arXiv 1712.05877)
    """

    Config: ClassVar[type[PassConfig]] = QuantizationAwareTrainingConfig
    version = 2

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse models that are quantized or fixed already."""
        planned = super().plan(info, config, accelerator)
        name = self.spec.name
        if quantization := info.attributes.get("quantization"):
            raise ConfigError(f"{name} trains float models; this one is quantized ({quantization})")
        if info.attributes.get("adapter"):
            raise ConfigError(f"{name} trains whole models; put MergeAdapterWeights before it")
        form = info.attributes.get("model_file_format")
        if form in _FIXED:
            raise ConfigError(
                f"{name} changes modules before it trains them, which a {form} does not allow; give the module as "
                "PyTorch.EntireModel, or by a model_loader"
            )
        if info.kind == "hf" and config.train_data_config is None and config.input_shapes is not None:
            raise ConfigError(f"{name}: input_shapes have no names; an HfModel is shown a batch of its training data")
        return planned.with_(quantization="qat")

    def check(self, config: Any, accelerator: Accelerator) -> None:
        """Lightning, where it is asked for."""
        from drupe.plugins.quantization.qat.lightning import check_lightning

        check_lightning(config)

    def rehearsal(self, config: Any) -> Any:
        """Two steps."""
        return config.model_copy(update={"num_steps": 2, "num_epochs": None, "checkpoint_path": None})

    def run(self, model: Model, config: QuantizationAwareTrainingConfig, context: PassContext) -> Model:
        """Load, put quantizers in, train, fold, write what was learned."""
        import torch

        from drupe.plugins.quantization.qat.loop import check_finite
        from drupe.plugins.quantization.qat.preparing import finish
        from drupe.plugins.quantization.qat.saving import FOLDER, save
        from drupe.plugins.quantization.qat.scripts import Functions
        from drupe.plugins.quantization.qat.session import load, prepared, trained

        started = time.monotonic()
        functions = Functions.load(config, context)
        torch.set_num_threads(context.resources.thread_count)
        torch.manual_seed(context.seed if config.seed is None else config.seed)
        device = "cuda" if context.accelerator.device == "gpu" and torch.cuda.is_available() else "cpu"
        module = load(model, context)
        data, recipe, left = prepared(model, module, config, functions, context, device)
        result, report = trained(model, module, data, config, functions, context, device)
        check_finite(result)
        recipe = finish(result.to("cpu"), recipe)
        save(result, recipe, context.output_dir / FOLDER)
        context.report["quantization_aware_training"] = {
            **report,
            "seconds": round(time.monotonic() - started, 1),
            "fused": [list(pair) for pair in recipe.fused],
            "layers": len(recipe.weights),
            "activations": len(recipe.inputs) + len(recipe.outputs),
            "left_in_float": dict(left),
        }
        return model.derive(add_dir=context.output_dir / FOLDER, prefix=FOLDER, attributes={"quantization": "qat"})
