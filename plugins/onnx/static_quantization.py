"""OnnxStaticQuantization: weights and activations in few bits, by ranges that calibration data show (onnxruntime)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import Choice, PassConfig, searchable
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.plugins.onnx.calibration import CalibrationConfig, calibration_batches, reader
from drupe.plugins.onnx.graph_pass import GraphPass, check_node_names
from drupe.plugins.onnx.graphs import byte_size
from drupe.plugins.onnx.idle import absent_operators, tell_idle
from drupe.plugins.onnx.index_arithmetic import index_arithmetic
from drupe.plugins.onnx.masking import masking
from drupe.plugins.onnx.preprocess import preprocess
from drupe.plugins.onnx.tensor_overrides import ATTRIBUTE, MARK, fixed_overrides, plain_type, quantized_types

__all__ = [
    "OnnxStaticQuantization",
    "OnnxStaticQuantizationConfig",
    "StaticOptions",
    "check_overrides",
    "check_unquantized",
    "quantizable",
    "quantize_statically",
]

_BITS = ("int4", "uint4", "int8", "uint8", "int16", "uint16")
_OPTIONS = {
    # onnxruntime reads these from the names in its documentation, not from literals in its source.
    "CalibTensorRangeSymmetric", "CalibMovingAverage", "CalibMovingAverageConstant", "CalibMaxIntermediateOutputs",
    "CalibPercentile",
}  # fmt: skip


class StaticOptions(CalibrationConfig):
    """Options of onnxruntime's quantize_static."""

    precision: Literal["int4", "uint4", "int8", "uint8", "int16", "uint16"] = searchable(
        "int8", Choice("int8", "uint8"), doc="Type of the weights."
    )
    activation_type: Literal["int8", "uint8", "int16", "uint16"] = searchable(
        "uint8", Choice("int8", "uint8", "uint16"), doc="Type of the activations; 16 bits keep most of the quality."
    )
    calibrate_method: Literal["MinMax", "Entropy", "Percentile", "Distribution"] = searchable(
        "MinMax", Choice("MinMax", "Entropy", "Percentile"), doc="How the activations' ranges are read off the data."
    )
    quant_format: Literal["QDQ", "QOperator"] = searchable(
        "QDQ", Choice("QDQ", "QOperator"), doc="Pairs of QuantizeLinear and DequantizeLinear, or quantized operators."
    )
    per_channel: bool = searchable(False, Choice(True, False), doc="A scale per output channel of the weights.")
    reduce_range: bool = searchable(
        False, Choice(True, False), doc="7-bit weights, for CPUs whose 8-bit products overflow."
    )
    op_types_to_quantize: list[str] | None = Field(None, description="Operators to quantize; default: all that can be.")
    op_types_to_exclude: list[str] | None = Field(None, description="Operators to leave as they are.")
    nodes_to_quantize: list[str] | None = Field(None, description="Only these nodes.")
    nodes_to_exclude: list[str] | None = Field(None, description="Not these nodes.")
    quant_preprocess: bool = Field(True, description="Infer shapes and tidy the graph first.")
    calibration_providers: list[str] | None = Field(
        None, description="Execution providers that run the calibration; default: the CPU."
    )
    activation_symmetric: bool = Field(False, description="Activations' ranges lie around zero.")
    weight_symmetric: bool | None = Field(None, description="Weights' ranges lie around zero; default: signed ones do.")
    extra_options: Mapping[str, Any] = Field(
        default_factory=dict, description="Other options of onnxruntime's quantizer, by its names."
    )

    @field_validator("precision", "activation_type", mode="before")
    @classmethod
    def _older_type(cls, value: Any) -> Any:
        """onnxruntime's spelling is read as well: QUInt8 is uint8."""
        plain = str(value).removeprefix("Q").lower() if isinstance(value, str) and value.startswith("Q") else value
        return plain if plain in _BITS else value

    @model_validator(mode="after")
    def _known_options(self) -> StaticOptions:
        known = _known_options()
        for name in self.extra_options:
            if known and name not in known:
                import difflib

                near = difflib.get_close_matches(name, known, n=1)
                raise ValueError(
                    f"extra_options.{name}: onnxruntime's quantizer has no such option"
                    + (f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(sorted(known))}")
                )
        return self


def _known_options() -> frozenset[str]:
    from drupe.core.introspect import mapping_keys

    try:
        return frozenset({*mapping_keys("onnxruntime.quantization", "extra_options"), *_OPTIONS})
    except LookupError:
        return frozenset()


class OnnxStaticQuantizationConfig(StaticOptions):
    """What is quantized, and what calibrates it."""

    @model_validator(mode="after")
    def _calibrated(self) -> OnnxStaticQuantizationConfig:
        if not self.calibrated:
            raise ValueError("static quantization needs calibration data; name a data config as data_config")
        return self


class OnnxStaticQuantization(GraphPass):
    """Quantizes weights and activations by calibrated ranges."""

    Config: ClassVar[type[PassConfig]] = OnnxStaticQuantizationConfig
    version = 2

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse a graph that is quantized already, weights in blocks aside: their products can still be calibrated."""
        planned = super().plan(info, config, accelerator)
        check_unquantized(self.spec.name, info, config)
        check_overrides(self.spec.name, info, config)
        return planned

    def requirements(self, config: Any, accelerator: Accelerator) -> Sequence[str]:
        """neural-compressor for SmoothQuant."""
        return ["neural-compressor>=2.4"] if config.extra_options.get("SmoothQuant") else []

    def rehearsal(self, config: Any) -> Any:
        """Two samples."""
        return config.model_copy(update={"max_calibration_samples": 2})

    def outcome(self, attributes: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
        """The graph is quantized."""
        return {"quantization": f"{config.precision}-static", MARK: None, ATTRIBUTE: None}

    def rewrite(self, proto: Any, path: Path, model: Model, config: StaticOptions, context: PassContext) -> Any:
        """Quantize with onnxruntime."""
        return quantize_statically(self.spec.name, proto, path, model, config, context)


def check_unquantized(name: str, info: ModelInfo, config: Any) -> None:
    """Raise ConfigError for a graph that is quantized already in a way that can't be quantized further."""
    quantization = info.attributes.get("quantization")
    if quantization and ("static" in str(quantization) or "dynamic" in str(quantization)):
        raise ConfigError(f"{name}: the graph is quantized already ({quantization})")


def check_overrides(name: str, info: ModelInfo, config: StaticOptions) -> None:
    """Raise ConfigError where types of single tensors, noted in the model, could not be obeyed."""
    if MARK not in info.attributes:
        return
    if config.quant_format != "QDQ":
        raise ConfigError(
            f"{name}: the model has {ATTRIBUTE}, types of single tensors, which only quant_format QDQ can have"
        )
    if "TensorQuantOverrides" in config.extra_options:
        raise ConfigError(
            f"{name}: the model has {ATTRIBUTE}, and extra_options have TensorQuantOverrides; leave out one of the two"
        )


def quantize_statically(
    name: str, proto: Any, path: Path, model: Model, config: StaticOptions, context: PassContext
) -> Any:
    """Return the quantized graph. Raises ConfigError for names and data that don't fit, PassError for no effect."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    scratch = context.output_dir.parent
    if config.quant_preprocess:
        proto = preprocess(path, scratch / "preprocessed.onnx", context, skip_symbolic_shape=True)
    for field in ("nodes_to_quantize", "nodes_to_exclude"):
        check_node_names(name, proto, field, getattr(config, field))
    excluded_types = set(config.op_types_to_exclude or ())
    lists = {field: getattr(config, field) for field in ("op_types_to_quantize", "op_types_to_exclude")}
    tell_idle(name, path.name, absent_operators(proto, **lists), context)
    excluded = [node.name for node in proto.graph.node if node.op_type in excluded_types]
    chosen = set(config.nodes_to_quantize or ())
    spared = [name for name in (*index_arithmetic(proto), *masking(proto)) if name not in chosen]
    if spared:
        context.report["left_in_float"] = {"masks_and_indices": len(spared)}
        context.log.info(
            "%s: %d nodes that mask attention or calculate indices stay in float32; with the surgeon "
            "ReplaceAttentionMaskValue before it masks are quantized as well",
            name,
            len(spared),
        )
    excluded += spared
    equal = config.calibrate_method in ("Entropy", "Percentile", "Distribution")
    batches = calibration_batches(name, proto, model, config, context, equal=equal)
    options: dict[str, Any] = {"ActivationSymmetric": config.activation_symmetric, **config.extra_options}
    noted = model.attributes.get(ATTRIBUTE) or {}
    if noted:
        options["TensorQuantOverrides"] = fixed_overrides(
            name, proto, noted, config.activation_type, symmetric=config.activation_symmetric
        )
    if config.weight_symmetric is not None:
        options["WeightSymmetric"] = config.weight_symmetric
    # The quantizer knows types only where shape inference reached; inside fused operators all is float32.
    options.setdefault("DefaultTensorType", onnx.TensorProto.FLOAT)
    work = scratch / "quantized.onnx"
    try:
        quantize_static(
            proto,
            str(work),
            reader(batches, context),
            quant_format=QuantFormat[config.quant_format],
            op_types_to_quantize=sorted(config.op_types_to_quantize or quantizable()),
            per_channel=config.per_channel,
            reduce_range=config.reduce_range,
            activation_type=_quant_type(QuantType, config.activation_type),
            weight_type=_quant_type(QuantType, config.precision),
            nodes_to_quantize=config.nodes_to_quantize,
            nodes_to_exclude=[*(config.nodes_to_exclude or ()), *excluded],
            use_external_data_format=byte_size(proto) > 2**30,
            calibrate_method=CalibrationMethod[config.calibrate_method],
            calibration_providers=config.calibration_providers,
            extra_options=options,
        )
    except (AttributeError, KeyError, TypeError, AssertionError) as error:
        # Faults of the library on graphs that it does not foresee, fused operators in QOperator format among them.
        other = "try quant_format: QDQ, or " if config.quant_format == "QOperator" else ""
        raise PassError(
            f"{name}: onnxruntime's quantizer failed on this graph ({type(error).__name__}: {error}); {other}leave "
            "operators out with op_types_to_exclude or nodes_to_exclude"
        ) from error
    result = onnx.load(str(work))
    marks = ("QLinear", "QuantizeLinear", "Integer")
    count = sum(any(mark in node.op_type for mark in marks) for node in result.graph.node)
    if count == sum(any(mark in node.op_type for mark in marks) for node in proto.graph.node):
        kinds = sorted({node.op_type for node in proto.graph.node})
        raise PassError(
            f"{name} found nothing to quantize; the graph has {', '.join(kinds[:12])}; see op_types_to_quantize and "
            "nodes_to_exclude"
        )
    context.report["quantized_nodes"] = count
    if noted:
        _tell_overrides(name, result, noted, context)
    return result


def _tell_overrides(name: str, result: Any, noted: Mapping[str, Any], context: PassContext) -> None:
    """Tell which of the noted tensors have their type, and which can't."""
    types = quantized_types(result)
    obeyed = [tensor for tensor, value in noted.items() if plain_type(value) in types.get(tensor, ())]
    context.report["overridden_tensors"] = obeyed
    if left := [tensor for tensor in noted if tensor not in obeyed]:
        context.log.warning(
            "%s: %s do not have the types that the model notes: what gives them is not quantized, or hands the type of "
            "its input on",
            name,
            ", ".join(left),
        )


def _quant_type(types: Any, name: str) -> Any:
    return types[f"QUInt{name[4:]}" if name.startswith("u") else f"QInt{name[3:]}"]


def quantizable() -> list[str]:
    """Return the operators that onnxruntime's quantizer knows."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QLinearOpsRegistry, *QDQRegistry})
