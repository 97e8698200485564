"""The parameters of LLMCompressor, and which of them go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from drupe.core.config import Choice, DataRef, FileRef, FloatRange, Ordered, PassConfig, searchable, tell
from drupe.plugins.quantization.compressor.recipes import staged
from drupe.plugins.quantization.compressor.schemes import SCHEMES

__all__ = ["LLMCompressorConfig"]

_OF_A_RECIPE = (
    "scheme", "algorithm", "group_size", "smoothing_strength", "sparsity", "mask_structure", "targets", "ignore",
    "actorder", "dampening_frac", "block_size",
)  # fmt: skip
"""Parameters whose place a recipe takes."""


class LLMCompressorConfig(PassConfig):
    """A scheme and how it is reached, or a recipe; what calibrates; how the result is stored."""

    scheme: Literal[
        "W4A16", "W4A16_ASYM", "W8A16", "W8A8", "W4A8", "W4AFP8", "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4",
        "NVFP4A16", "MXFP4", "MXFP4A16", "MXFP8",
    ] | None = searchable(
        "W4A16",
        Choice("W4A16", "W8A16", "W8A8", "FP8_DYNAMIC"),
        doc="The library's preset: bits of weights (W) and activations (A). null: nothing is quantized, for sparsity "
        "alone.",
    )  # fmt: skip
    algorithm: Literal["gptq", "rtn"] = searchable(
        "gptq",
        Choice("gptq", "rtn"),
        doc="How weights are rounded: so that layers' outputs change least, or to nearest.",
    )
    group_size: Literal[-1, 32, 64, 128] | None = searchable(
        None,
        Ordered(32, 64, 128),
        doc="Columns that share a scale, of W8A16 and the W4 schemes; it must divide the layers' widths. -1: the whole "
        "row. Not given: 128.",
        when={"scheme": [name for name, scheme in SCHEMES.items() if scheme.changeable]},
    )
    smoothing_strength: float | None = searchable(
        None,
        FloatRange(0.3, 0.9),
        doc="SmoothQuant before rounding: how much of the activations' outliers goes into the weights.",
        ge=0,
        le=1,
    )
    sparsity: float | None = Field(
        None, gt=0, lt=1, description="Share of the weights that SparseGPT sets to zero, before rounding to nearest."
    )
    mask_structure: str = Field(
        "2:4",
        pattern=r"^\d+:\d+$",
        description="n:m sets n of each m neighbours to zero, which fixes the sparsity; 0:0: wherever they are.",
    )
    targets: list[str] = Field(
        ["Linear"],
        min_length=1,
        description="Layers by class name, full name, or re: and a pattern of names.",
    )
    ignore: list[str] = Field(["lm_head"], description="Those of them that stay as they are, written alike.")
    actorder: Literal["static", "weight"] | None = Field(
        "static", description="GPTQ takes columns by their importance; null: as they come."
    )
    dampening_frac: float = searchable(
        0.01, FloatRange(0.001, 0.1, log=True), doc="Share of the mean added to the Hessian's diagonal.", gt=0
    )
    block_size: int = Field(128, ge=1, description="Columns that GPTQ and SparseGPT mend together.")
    recipe: Mapping[str, Any] | None = Field(
        None,
        description="A recipe of the library instead of all of the above: modifiers by name with their arguments, "
        "alone or in stages.",
    )
    recipe_file: FileRef | None = Field(None, description="A recipe as a file, in YAML or JSON.")
    data_config: DataRef | None = Field(
        None, description="Text that calibrates; without it the model writes some itself."
    )
    nsamples: int = Field(128, ge=1, description="How many sequences calibrate.")
    seqlen: int = Field(256, ge=2, description="Tokens of a sequence at most.")
    pipeline: Literal["independent", "sequential", "basic", "datafree"] = Field(
        "independent",
        description="How calibration runs: each modifier as suits it, layer by layer, the whole model at once, or not "
        "at all.",
    )
    sequential_targets: list[str] | None = Field(
        None, min_length=1, description="Class names of what sequential calibration takes as one layer; default: found."
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None,
        description="Of what is not quantized. Not given: as the model is stored; bfloat16 for NVFP4 and MX schemes, "
        "which transformers runs in it only.",
    )
    device: str | None = Field(
        None, description="Where the model is calculated: cpu, cuda; default: as the target has."
    )

    @field_validator("recipe")
    @classmethod
    def _checked_recipe(cls, value: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        return None if value is None else staged(value)

    @model_validator(mode="after")
    def _together(self, info: ValidationInfo) -> LLMCompressorConfig:
        for fault in self._faults():
            raise ValueError(fault)
        tell(info, *self._without_effect())
        return self

    def _without_effect(self) -> list[str]:
        """What is said and changes nothing, as far as no recipe says what is done."""
        if self.has_recipe:
            return []
        solves = self.scheme is not None and self.algorithm == "gptq"
        idle: dict[str, str] = {}
        if not solves:
            idle["actorder"] = "GPTQ does not run"
        if not solves and self.sparsity is None:
            idle |= dict.fromkeys(("dampening_frac", "block_size"), "neither GPTQ nor SparseGPT runs")
        if not self.calibrates:
            idle |= dict.fromkeys(("pipeline", "sequential_targets"), "nothing that was asked for calibrates")
        return [f"{name} has no effect: {why}" for name, why in idle.items() if name in self.model_fields_set]

    def _faults(self) -> list[str]:
        found = []
        changed = [name for name in _OF_A_RECIPE if getattr(self, name) != type(self).model_fields[name].default]
        if self.recipe is not None and self.recipe_file is not None:
            found.append("recipe and recipe_file are both given; leave one out")
        if self.has_recipe and changed:
            found.append(f"{', '.join(changed)} and a recipe contradict each other; say it in the recipe")
        if self.scheme is None and self.sparsity is None and not self.has_recipe:
            found.append(
                "scheme is null and there is no sparsity: nothing is left to do; give one of them, or a recipe"
            )
        if self.scheme is None and "algorithm" in self.model_fields_set and self.sparsity is not None:
            found.append(f"algorithm: {self.algorithm} rounds weights, and scheme is null; leave one of them out")
        if self.scheme is not None and self.sparsity is not None and self.algorithm == "gptq" and not self.has_recipe:
            found.append("algorithm: gptq fills the zeros that sparsity asks for; take algorithm: rtn, or scheme: null")
        if self.scheme is None and self.smoothing_strength is not None:
            found.append("smoothing_strength is for a scheme, and scheme is null")
        return [*found, *self._faults_of_scheme(), *self._faults_of_sparsity()]

    def _faults_of_scheme(self) -> list[str]:
        scheme = SCHEMES.get(self.scheme or "")
        if scheme is None:
            return [f"group_size is {self.group_size}; there is no scheme for it"] if self.group_size else []
        found = []
        if self.group_size is not None and not scheme.changeable:
            names = ", ".join(name for name, other in SCHEMES.items() if other.changeable)
            found.append(f"group_size is for {names}; {self.scheme} has its own")
        if scheme.bfloat16 and self.dtype not in (None, "bfloat16"):
            found.append(f"dtype is {self.dtype}; transformers runs {self.scheme} in bfloat16 only")
        if self.smoothing_strength is not None and "A16" in (self.scheme or ""):
            found.append(f"smoothing_strength moves outliers of activations, and {self.scheme} leaves them in float; "
                         "take W8A8 or another scheme that rounds activations")  # fmt: skip
        if self.pipeline == "datafree" and self.calibrates and not self.has_recipe:
            found.append(
                "pipeline: datafree has no calibration, which the scheme, algorithm or sparsity asked for needs"
            )
        return found

    def _faults_of_sparsity(self) -> list[str]:
        zeros, of = (int(part) for part in self.mask_structure.split(":"))
        if (zeros, of) != (0, 0) and not 0 < zeros < of:
            return [f"mask_structure is {self.mask_structure}; expected n:m with n below m, or 0:0"]
        if self.sparsity is None:
            return [] if self.mask_structure == "2:4" else ["mask_structure is for sparsity, which is not given"]
        if of and abs(self.sparsity - zeros / of) > 1e-6:
            return [f"mask_structure {self.mask_structure} sets {zeros / of:.3g} of the weights to zero, sparsity says "
                    f"{self.sparsity}; make them one, or take 0:0"]  # fmt: skip
        return []

    @property
    def has_recipe(self) -> bool:
        """Whether a recipe says what is done."""
        return self.recipe is not None or self.recipe_file is not None

    @property
    def calibrates(self) -> bool:
        """Whether what the fields ask for needs text."""
        scheme = SCHEMES.get(self.scheme or "")
        rounds_with_data = scheme is not None and (self.algorithm == "gptq" or scheme.static)
        return rounds_with_data or self.sparsity is not None or self.smoothing_strength is not None
