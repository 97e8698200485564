"""Types of single tensors that static quantization obeys: reading them, making a graph fit them, handing them on.

They travel as the model's attribute `mixed_precision_overrides`: tensor → [{"quant_type": "QUInt16"}], in the spelling
of ONNX Runtime's TensorQuantOverrides. That there are such is known earlier, as the attribute `tensor_types`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from drupe.core.errors import ConfigError
from drupe.core.model import ModelInfo
from drupe.plugins.onnx.graphs import name_all_nodes, replace_name

__all__ = [
    "ATTRIBUTE",
    "MARK",
    "fit_weights",
    "fixed_overrides",
    "plain_type",
    "quantized_types",
    "refuse_overrides",
    "told_of",
    "unknown_tensors",
]

ATTRIBUTE = "mixed_precision_overrides"
MARK = "tensor_types"
_TYPES = ("int8", "uint8", "int16", "uint16")
_FLOATS = (1, 10)
"""onnx.TensorProto.FLOAT and FLOAT16."""


def plain_type(value: Any) -> str:
    """Return int8, uint8, int16 or uint16 for what a user or ONNX Runtime writes: "QUInt16", [{"quant_type": …}].

    Raises ValueError for what is no such type.
    """
    given = value
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 1:
        given = given[0]
    if isinstance(given, Mapping) and set(given) == {"quant_type"}:
        given = given["quant_type"]
    text = str(given).removeprefix("Q").lower() if isinstance(given, str) else ""
    if text not in _TYPES:
        raise ValueError(f"{value!r} is no type of a tensor; expected one of {', '.join(_TYPES)}")
    return text


def told_of(types: Mapping[str, str]) -> dict[str, list[dict[str, str]]]:
    """Return tensor → plain type as the attribute has it."""
    return {name: [{"quant_type": _ort_name(kind)}] for name, kind in types.items()}


def _ort_name(kind: str) -> str:
    return f"QUInt{kind[4:]}" if kind.startswith("u") else f"QInt{kind[3:]}"


def unknown_tensors(proto: Any, names: Iterable[str]) -> list[str]:
    """Return, with the nearest that it has, the names that are of no tensor of a graph."""
    graph = proto.graph
    known = {name for node in graph.node for name in (*node.input, *node.output)}
    known |= {value.name for value in (*graph.input, *graph.initializer)}
    told = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            told.append(f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    return told


def refuse_overrides(pass_name: str, info: ModelInfo) -> None:
    """Raise ConfigError for a model that notes types of activations, which a pass does not quantize."""
    if MARK in info.attributes:
        raise ConfigError(
            f"{pass_name}: the model has {ATTRIBUTE}, types of single activations, which have none here; use "
            "OnnxStaticQuantization, or leave out MixedPrecisionOverrides"
        )


def fit_weights(proto: Any, types: Mapping[str, str], operators: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Give the weights of elementwise operators the 16 bits that their activations have, for kernels want one type.

    A weight that other nodes take in 8 bits is copied for those that don't. Returns the types with those of such
    weights, and the names of the copies; the graph is changed in place.
    """
    from onnx import TensorProto

    graph = proto.graph
    given = {value.name for value in graph.input}
    weights = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type in _FLOATS and tensor.name not in given and tensor.name not in types
    }
    wanted: dict[str, dict[str, list[Any]]] = {}
    for node in graph.node:
        if node.op_type not in operators or node.domain not in ("", "ai.onnx"):
            continue
        wide = next((types[n] for n in (*node.output, *node.input) if types.get(n, "").endswith("16")), None)
        for name in {name for name in node.input if name in weights} if wide else ():
            wanted.setdefault(name, {}).setdefault(str(wide), []).append(node)
    result, copies = dict(types), []
    for name, by_type in wanted.items():
        users = sum(name in node.input for node in graph.node)
        if len(by_type) == 1 and users == sum(map(len, by_type.values())):
            result[name] = next(iter(by_type))
            continue
        for kind, nodes in by_type.items():
            copy = TensorProto()
            copy.CopyFrom(weights[name])
            copy.name = f"{name}_{kind}"
            graph.initializer.append(copy)
            for node in nodes:
                replace_name(node.input, name, copy.name)
            result[copy.name] = kind
            copies.append(copy.name)
    return result, copies


def fixed_overrides(
    pass_name: str, proto: Any, attribute: Mapping[str, Any], activation_type: str, *, symmetric: bool
) -> dict[str, Any]:
    """Return ONNX Runtime's TensorQuantOverrides of what the attribute says, with conversions where types meet.

    Nodes next to a tensor of another type take and give that type; tensors around them are converted to it and back.
    Raises ConfigError for a tensor that the graph lacks, and for types that can't stand side by side.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.execution_providers.qnn.mixed_precision_overrides_utils import (
        MixedPrecisionTensorQuantOverridesFixer,
    )
    from onnxruntime.quantization.tensor_quant_overrides import TensorQuantOverridesHelper

    if absent := unknown_tensors(proto, attribute):
        raise ConfigError(
            f"{pass_name}: the model's {ATTRIBUTE} name {', '.join(absent[:3])}, which the graph lacks; put "
            "MixedPrecisionOverrides right before this pass"
        )
    default = QuantType[_ort_name(activation_type)]
    types = {name: plain_type(value) for name, value in attribute.items()}
    weights = {tensor.name for tensor in proto.graph.initializer}
    # ONNX Runtime looks at the first for types that need a newer operator set: those of 16 bits come first.
    order = sorted(types, key=lambda name: not types[name].endswith("16"))
    asked = {
        name: [{"quant_type": QuantType[_ort_name(types[name])]}]
        for name in order
        if name in weights or types[name] != activation_type
    }
    if not asked:
        return {}
    name_all_nodes(proto)
    helper = TensorQuantOverridesHelper(asked)
    try:
        fixer = MixedPrecisionTensorQuantOverridesFixer.create_from_model(helper, proto, default)
        fixer.apply(default_activation_qtype=default, default_activation_symmetric=symmetric)
    except ValueError as error:
        raise ConfigError(
            f"{pass_name}: the types of single tensors do not go together ({error}); choose one type of 16 bits, and "
            f"{activation_type} elsewhere"
        ) from error
    return dict(helper.get_dict())


def quantized_types(proto: Any) -> dict[str, set[str]]:
    """Return the types that tensors of a graph of pairs have: of activations by name, of weights by their old name."""
    from onnx import TensorProto

    graph = proto.graph
    kinds = {tensor.name: TensorProto.DataType.Name(tensor.data_type).lower() for tensor in graph.initializer}
    found: dict[str, set[str]] = {
        name.removesuffix("_quantized"): {kind} for name, kind in kinds.items() if name.endswith("_quantized")
    }
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and len(node.input) == 3 and node.input[2] in kinds:
            # What the graph gives as an output is renamed before it is quantized.
            name = node.input[0].removesuffix("_QuantizeLinear_Input")
            found.setdefault(name, set()).add(kinds[node.input[2]])
    return found
