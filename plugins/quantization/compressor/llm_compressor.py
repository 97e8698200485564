"""LLMCompressor: checkpoints for vLLM (compressed-tensors), by the library llmcompressor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, DrupeError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.quantization.calibration import calibration_tokens
from drupe.plugins.quantization.compressor.config import LLMCompressorConfig
from drupe.plugins.quantization.compressor.library import (
    check_layers,
    library_modifiers,
    loader,
    quiet,
    recipe_of,
)
from drupe.plugins.quantization.compressor.recipes import FILLERS, QUANTIZERS, modifiers, read_recipe, sparsity_of
from drupe.plugins.quantization.compressor.schemes import SCHEMES
from drupe.plugins.quantization.config import check_device, device_of, stored_attributes
from drupe.plugins.quantization.decoders import check_float, check_zeros_stay
from drupe.plugins.quantization.saving import copy_beside

__all__ = ["METHOD", "LLMCompressor"]

METHOD = "compressed-tensors"


class LLMCompressor(Pass):
    """Quantizes or thins out a model with llmcompressor, for vLLM.

    The result is a compressed-tensors checkpoint, with the recipe that made it (recipe.yaml). vLLM runs it with the
    scheme's kernels; transformers opens it where compressed-tensors is installed and calculates what the scheme would
    give, activations rounded as well, so that it can be measured anywhere. ModelBuilder and the ONNX exporters can't
    read it; docs/quantized-checkpoints.md says which quantizer is for what. The library's transformers is older than
    the one that other passes need: give the pass a `host` that is a PythonEnvironment with its requirements.

    Rules: 1. What the library would pass over in a recipe is an error: unknown stages, modifiers and arguments, targets
    that match nothing. 2. Sparsity alone gives a float model that other passes read. 3. AWQModifier needs an
    accelerator (the library pins its memory); AutoAWQQuantizer does the same on a CPU. 4. transformers 5.18 and newer
    open W4A16_ASYM, whose zero points are packed, with CompressedTensorsConfig(dequantize=True) only; Drupe does so.
    """

    Config: ClassVar[type[PassConfig]] = LLMCompressorConfig
    version = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse adapters and quantized models; say whether the result is quantized, as far as the file tells."""
        planned = super().plan(info, config, accelerator)
        name = self.spec.name
        check_float(name, info)
        if info.attributes.get("mixed_precision"):
            raise ConfigError(
                f"{name}: an earlier pass chose bits for layers, which it can't follow; leave that pass out, or give "
                "the layers their schemes in a recipe"
            )
        if config.calibrates and not config.has_recipe:
            self._check_writes(info, config)
        recipe = config.recipe
        if config.recipe_file is not None and (path := Path(config.recipe_file).expanduser()).is_absolute():
            recipe = self._read(path) if path.is_file() else None
        if _fills_zeros(config, recipe):
            check_zeros_stay(name, "use algorithm: rtn, whose grids keep them", info)
        quantizes = config.scheme is not None
        if config.has_recipe:
            quantizes = recipe is None or _quantizes(recipe)
        told = _told_sparsity(config, recipe)
        dtype = _dtype(config) or info.attributes.get("dtype")
        return planned.with_(quantization=METHOD if quantizes else None, dtype=dtype, **told)

    def check(self, config: Any, accelerator: Accelerator) -> None:
        """AWQ needs an accelerator where the job runs."""
        check_device(self.spec.name, config.device)
        if config.recipe is not None and "AWQModifier" in dict(modifiers(config.recipe)):
            self._check_awq()

    def rehearsal(self, config: Any) -> Any:
        """Two short sequences."""
        return config.model_copy(update={"nsamples": 2, "seqlen": 16})

    def run(self, model: Model, config: LLMCompressorConfig, context: PassContext) -> Model:
        """Load, calibrate, compress, write."""
        import torch

        from drupe.plugins.huggingface.loading import load_model
        from drupe.plugins.huggingface.scrub import scrub_folder

        quiet()
        torch.set_num_threads(context.resources.thread_count)
        torch.manual_seed(context.seed)
        recipe = self._recipe(config, context)
        given = library_modifiers(self.spec.name, recipe)
        network = load_model(model, dtype=_dtype(config), device=device_of(config.device, context))
        if not config.has_recipe:
            check_layers(self.spec.name, network, config)
        self._compress(network, given, model, config, context)
        quantized = _quantized_layers(network)
        if _quantizes(recipe) and not quantized:
            raise PassError(f"{self.spec.name}: the recipe quantized no layer; look at its targets and ignore")
        context.report["layers"] = len(quantized)
        if fallen := sorted(name for modifier in given for name in getattr(modifier, "_rtn_fallback_module_names", ())):
            context.report["rounded_to_nearest"] = fallen
        network.save_pretrained(context.output_dir, save_compressed=True)
        scrub_folder(context.output_dir)
        copy_beside(model, context)
        context.progress(1, 1, "written")
        attributes = stored_attributes(model.attributes, network.dtype)
        attributes |= _told_sparsity(config, recipe)
        if quantized:
            attributes["quantization"] = METHOD
        return Model.from_dir("hf", context.output_dir, attributes)

    def _recipe(self, config: LLMCompressorConfig, context: PassContext) -> Mapping[str, Any]:
        if config.recipe_file is not None:
            recipe = self._read((context.workflow_dir or Path()) / Path(config.recipe_file).expanduser())
            if "AWQModifier" in dict(modifiers(recipe)):
                self._check_awq()
            return recipe
        return config.recipe if config.recipe is not None else recipe_of(config)

    def _read(self, path: Path) -> Mapping[str, Any]:
        try:
            return read_recipe(path)
        except ValueError as error:
            raise ConfigError(f"{self.spec.name}: recipe_file: {error}") from error

    def _check_writes(self, info: ModelInfo, config: LLMCompressorConfig) -> None:
        """A model that calibrates with its own text must be one that writes."""
        task = str(info.attributes.get("task") or "text-generation")
        if config.data_config is None and task.removesuffix("-with-past") not in ("text-generation", "causal-lm"):
            raise ConfigError(
                f"{self.spec.name}: calibration needs text, and a model for {task} writes none itself; give a "
                "data_config"
            )

    def _check_awq(self) -> None:
        import torch

        if not torch.accelerator.is_available():
            raise ConfigError(
                f"{self.spec.name}: AWQModifier needs an accelerator where the pass runs, and PyTorch sees none; use "
                "algorithm: gptq, or the pass AutoAWQQuantizer"
            )

    def _compress(
        self, network: Any, given: Sequence[Any], model: Model, config: LLMCompressorConfig, context: PassContext
    ) -> None:
        """Apply the modifiers in place."""
        from llmcompressor import oneshot

        name, texts = self.spec.name, None
        if any(modifier.requires_calibration_data for modifier in given):
            if config.pipeline == "datafree":
                raise ConfigError(f"{name}: pipeline: datafree has no calibration, which the recipe's modifiers need")
            self._check_writes(model.info, config)
            texts = calibration_tokens(
                name, network, model, config.data_config, config.nsamples, config.seqlen, context
            )
        elif config.data_config is not None:
            context.report["calibration"] = "not needed: nothing that was asked for looks at activations before it runs"
        context.progress(0, 1, "compressing")
        try:
            oneshot(
                model=network,
                recipe=list(given),
                dataset=None if texts is None else loader(texts),
                num_calibration_samples=len(texts or ()) or 1,
                max_seq_length=config.seqlen,
                pipeline=config.pipeline,
                sequential_targets=config.sequential_targets,
                trust_remote_code_model=bool(model.attributes.get("remote_code", False)),
            )
        except DrupeError:
            raise
        except Exception as error:
            told = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise PassError(f"{name}: llmcompressor failed: {told[0]}") from error


def _dtype(config: LLMCompressorConfig) -> str | None:
    scheme = SCHEMES.get(config.scheme or "") if not config.has_recipe else None
    return config.dtype or ("bfloat16" if scheme is not None and scheme.bfloat16 else None)


def _fills_zeros(config: LLMCompressorConfig, recipe: Mapping[str, Any] | None) -> bool:
    """Whether weights that were zero are not afterwards."""
    if recipe is not None:
        return any(name in FILLERS for name, _ in modifiers(recipe))
    return not config.has_recipe and config.scheme is not None and config.algorithm == "gptq"


def _told_sparsity(config: LLMCompressorConfig, recipe: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the attribute that says how sparse the weights are made, as SparseGPT tells it; {} where they are not."""
    if config.has_recipe:
        found = None if recipe is None else sparsity_of(recipe)
    else:
        zeros, of = (int(part) for part in config.mask_structure.split(":"))
        found = [zeros, of] if of and config.sparsity is not None else config.sparsity
    return {} if found is None else {"sparsity": found}


def _quantizes(recipe: Mapping[str, Any]) -> bool:
    return any(name in QUANTIZERS for name, _ in modifiers(recipe))


def _quantized_layers(network: Any) -> list[str]:
    return [
        name for name, module in network.named_modules() if getattr(module, "quantization_scheme", None) is not None
    ]
