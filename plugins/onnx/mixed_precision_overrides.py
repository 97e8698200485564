"""MixedPrecisionOverrides: which activations static quantization gives 16 bits, by list or by how much it matters."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import FileRef, FloatRange, PassConfig, searchable, tell_unused
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.plugins.onnx.calibration import CalibrationConfig, calibration_batches
from drupe.plugins.onnx.graph_pass import GraphPass
from drupe.plugins.onnx.graphs import graph_paths, name_all_nodes
from drupe.plugins.onnx.idle import absent_operators, tell_idle
from drupe.plugins.onnx.preprocess import preprocess
from drupe.plugins.onnx.static_quantization import check_unquantized, quantizable
from drupe.plugins.onnx.tensor_overrides import (
    ATTRIBUTE,
    MARK,
    fit_weights,
    plain_type,
    told_of,
    unknown_tensors,
)

__all__ = ["MixedPrecisionOverrides", "MixedPrecisionOverridesConfig"]

_OF_MEASURING = ("ratio", "wide_type", "sensitivity_samples", "max_calibration_samples", "op_types_to_quantize")
"""Fields that say how tensors are found."""


class MixedPrecisionOverridesConfig(CalibrationConfig):
    """Which tensors; or data by which they are found."""

    overrides_config: FileRef | None = Field(
        None, description="JSON file of tensor → type (QUInt16, …), or such a mapping itself; then nothing is measured."
    )
    overrides: Mapping[str, Any] | None = Field(None, description="The same as a mapping: tensor → type.")
    ratio: float = searchable(
        0.1,
        FloatRange(0.02, 0.5),
        doc="Share of the activations that get 16 bits: those that move the outputs most when they alone have 8.",
        gt=0,
        le=1,
    )
    wide_type: Literal["uint16", "int16"] = Field("uint16", description="What they get.")
    sensitivity_samples: int = Field(8, ge=1, description="With how many of the samples it is measured.")
    op_types_to_quantize: list[str] | None = Field(
        None, description="Operators that will be quantized; default: all that can be."
    )
    element_wise_binary_ops: list[str] | None = Field(
        None,
        description="Operators whose weights get the type of their activations; default: Add, Sub, Mul and Div.",
    )

    @model_validator(mode="before")
    @classmethod
    def _mapping(cls, values: Any) -> Any:
        """Take a mapping that stands as overrides_config for what it is."""
        if isinstance(values, Mapping) and isinstance(values.get("overrides_config"), Mapping):
            if values.get("overrides") is not None:
                raise ValueError("give overrides_config or overrides, not both")
            return {**values, "overrides_config": None, "overrides": values["overrides_config"]}
        return values

    @model_validator(mode="after")
    def _one_way(self, info: ValidationInfo) -> MixedPrecisionOverridesConfig:
        told = [self.overrides_config is not None, self.overrides is not None, self.calibrated]
        if sum(told) != 1:
            raise ValueError(
                "give the tensors as overrides_config (a file, or tensor → type), or data by which they are found as "
                f"data_config; {'nothing' if not any(told) else 'more than one'} is given"
            )
        for name, value in (self.overrides or {}).items():
            try:
                plain_type(value)
            except ValueError as error:
                raise ValueError(f"overrides_config: {name}: {error}") from None
        if not self.calibrated:
            tell_unused(info, self, _OF_MEASURING, "the tensors are given, and nothing is measured")
        return self


class MixedPrecisionOverrides(GraphPass):
    """Notes in the model which tensors OnnxStaticQuantization gives another type than the rest.

    Rules: 1. An activation's weight is how far the outputs move, on the user's samples, when it alone is rounded to
    8 bits by its own range. 2. A weight that an elementwise operator joins with an activation of 16 bits gets them
    too; where others want it in 8 it is copied. 3. What is noted is the attribute mixed_precision_overrides; all
    that is measured is in the report.
    """

    Config: ClassVar[type[PassConfig]] = MixedPrecisionOverridesConfig
    version = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse a graph that is quantized already."""
        planned = super().plan(info, config, accelerator)
        check_unquantized(self.spec.name, info, config)
        return planned.with_(tensor_types=True)

    def rehearsal(self, config: Any) -> Any:
        """Two samples, one of them to measure with."""
        return config.model_copy(update={"max_calibration_samples": 2, "sensitivity_samples": 1})

    def run(self, model: Model, config: MixedPrecisionOverridesConfig, context: PassContext) -> Model:
        """Find the tensors, make the graph fit them, and note them."""
        if (count := len(graph_paths(model))) != 1:
            raise ConfigError(f"{self.spec.name} is for models of one graph; this one has {count}")
        result = super().run(model, config, context)
        return result.derive(attributes={MARK: True, ATTRIBUTE: told_of(context.report["overrides"])})

    def rewrite(
        self, proto: Any, path: Path, model: Model, config: MixedPrecisionOverridesConfig, context: PassContext
    ) -> Any:
        """Choose the tensors, and give weights beside them their type."""
        types = self._told(config, context)
        if types is None:
            types = self._measured(proto, path, model, config, context)
        if absent := unknown_tensors(proto, types):
            raise ConfigError(f"{self.spec.name}: overrides_config: the graph has no tensor {', '.join(absent[:3])}")
        idle = absent_operators(
            proto,
            op_types_to_quantize=config.op_types_to_quantize if config.calibrated else None,
            element_wise_binary_ops=config.element_wise_binary_ops,
        )
        tell_idle(self.spec.name, path.name, idle, context)
        name_all_nodes(proto)
        operators = config.element_wise_binary_ops or ["Add", "Sub", "Mul", "Div"]
        types, copies = fit_weights(proto, types, operators)
        context.report["overrides"] = types
        context.report["copied_weights"] = copies
        return proto

    def _told(self, config: MixedPrecisionOverridesConfig, context: PassContext) -> dict[str, str] | None:
        """Return the user's own list, or None where there is none."""
        listed = config.overrides
        if config.overrides_config is not None:
            path = (context.workflow_dir or Path()) / Path(config.overrides_config).expanduser()
            try:
                listed = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ConfigError(f"{self.spec.name}: overrides_config {path.name} can't be read: {error}") from error
            if not isinstance(listed, Mapping):
                raise ConfigError(
                    f"{self.spec.name}: overrides_config {path.name} holds a {type(listed).__name__}; expected "
                    "tensor → type"
                )
        if listed is None:
            return None
        try:
            return {str(name): plain_type(value) for name, value in listed.items()}
        except ValueError as error:
            raise ConfigError(f"{self.spec.name}: overrides_config: {error}") from error

    def _measured(
        self, proto: Any, path: Path, model: Model, config: MixedPrecisionOverridesConfig, context: PassContext
    ) -> dict[str, str]:
        from drupe.plugins.onnx.activation_sensitivity import activation_ranges, output_errors

        scratch = context.output_dir.parent
        known = quantizable()
        if config.op_types_to_quantize is not None and (
            strange := [name for name in config.op_types_to_quantize if name not in known]
        ):
            raise ConfigError(
                f"{self.spec.name}: op_types_to_quantize: onnxruntime's quantizer has no {', '.join(strange)}; it has "
                f"{', '.join(known)}"
            )
        shaped = preprocess(path, scratch / "shaped.onnx", context, skip_symbolic_shape=True)
        batches = calibration_batches(self.spec.name, shaped, model, config, context, equal=False)
        op_types = config.op_types_to_quantize or known
        ranges = activation_ranges(shaped, batches, op_types, scratch, context)
        few = batches[: config.sensitivity_samples]
        errors = output_errors(self.spec.name, shaped, ranges, few, scratch, context)
        order = sorted(errors, key=lambda name: (-errors[name], name))
        context.report["sensitivity"] = {name: errors[name] for name in order}
        chosen = [name for name in order[: math.ceil(config.ratio * len(order))] if errors[name] > 0]
        return dict.fromkeys(chosen, config.wide_type)
