"""How far a graph's outputs move when one activation alone is rounded to 8 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drupe.core.context import PassContext
from drupe.core.errors import PassError
from drupe.plugins.onnx.calibration import reader
from drupe.plugins.onnx.graphs import byte_size, replace_name, save_graph
from drupe.plugins.onnx.opset import opset_of
from drupe.plugins.onnx.splitting import inputs_of

if TYPE_CHECKING:
    import numpy as np

__all__ = ["activation_ranges", "output_errors"]

_LEAST_OPSET = 13
_FLAGS = "drupe.rounded"


def activation_ranges(
    proto: Any,
    batches: Sequence[Mapping[str, np.ndarray]],
    op_types: Sequence[str],
    scratch: Path,
    context: PassContext,
) -> dict[str, tuple[float, float]]:
    """Return activation → (smallest, largest value) over batches, of those that operators of op_types take or give.

    Left out is what only a Relu or Clip reads: the quantizer gives it the range of what they let through. scratch: a
    folder to write in.
    """
    import numpy as np
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    large = byte_size(proto) > 2**30
    path = save_graph(proto, scratch / "calibrated", "model.onnx")
    calibrator = create_calibrator(
        path,
        op_types_to_calibrate=list(op_types),
        augmented_model_path=str(scratch / "calibrated" / "augmented.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
        use_external_data_format=large,
    )
    calibrator.collect_data(reader(batches, context))
    found = calibrator.compute_data()
    weights = {tensor.name for tensor in proto.graph.initializer} | _cut(proto.graph)
    return {
        name: (float(np.min(data.range_value[0])), float(np.max(data.range_value[1])))
        for name, data in found.items()
        if name not in weights
    }


def _cut(graph: Any) -> set[str]:
    """Return what nothing but one Relu or Clip reads."""
    readers: dict[str, list[str]] = {value.name: ["the caller"] for value in graph.output}
    for node in graph.node:
        for name in inputs_of(node):
            readers.setdefault(name, []).append(node.op_type)
    return {name for name, kinds in readers.items() if kinds in (["Relu"], ["Clip"])} - {v.name for v in graph.input}


def output_errors(
    pass_name: str,
    proto: Any,
    ranges: Mapping[str, tuple[float, float]],
    batches: Sequence[Mapping[str, np.ndarray]],
    scratch: Path,
    context: PassContext,
) -> dict[str, float]:
    """Return activation → squared error of the outputs, as a share of their square, when it alone has 8 bits.

    The mean over batches and outputs of floats. One graph serves for all: each activation passes a switch. Raises
    PassError for a graph without outputs of floats, or of an operator set before 13.
    """
    import numpy as np
    import onnxruntime as ort

    if opset_of(proto) < _LEAST_OPSET:
        raise PassError(
            f"{pass_name}: the graph has opset {opset_of(proto)}, and measuring needs {_LEAST_OPSET}; put "
            "OnnxOpVersionConversion before"
        )
    names = list(ranges)
    if not names:
        raise PassError(f"{pass_name}: no operator of the graph takes or gives an activation that can be quantized")
    path = save_graph(_switched(proto, ranges), scratch / "switched", "model.onnx")
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = context.resources.thread_count
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    outputs = [item.name for item in session.get_outputs() if item.type in ("tensor(float)", "tensor(float16)")]
    if not outputs:
        raise PassError(f"{pass_name}: no output of the graph is of floats, so none can move a little")
    totals = np.zeros(len(names))
    for place, batch in enumerate(batches):
        flags = np.zeros(len(names), dtype=bool)
        exact = session.run(outputs, {**batch, _FLAGS: flags})
        for index in range(len(names)):
            context.progress(place * len(names) + index, len(batches) * len(names), "rounding one activation at a time")
            flags[:] = False
            flags[index] = True
            moved = session.run(outputs, {**batch, _FLAGS: flags})
            totals[index] += sum(map(_share, moved, exact)) / len(outputs)
    return dict(zip(names, (totals / len(batches)).tolist(), strict=True))


def _share(ours: np.ndarray, theirs: np.ndarray) -> float:
    import numpy as np

    kept = np.isfinite(ours) & np.isfinite(theirs)
    a, b = ours[kept].astype(np.float64), theirs[kept].astype(np.float64)
    return float(((a - b) ** 2).sum() / ((b * b).sum() or 1.0))


def _switched(proto: Any, ranges: Mapping[str, tuple[float, float]]) -> Any:
    """Return the graph with a further input, bool (activations,), that says which of them are rounded."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    switched = onnx.ModelProto()
    switched.CopyFrom(proto)
    graph = switched.graph
    inputs = {value.name for value in graph.input}
    count = len(ranges)
    graph.input.append(helper.make_tensor_value_info(_FLAGS, TensorProto.BOOL, [count]))
    graph.initializer.append(numpy_helper.from_array(np.ones(count, np.int64), "drupe.ones"))
    flags = [f"drupe.flag.{index}" for index in range(count)]
    made = [helper.make_node("Split", [_FLAGS, "drupe.ones"], flags, "drupe.flags", axis=0)]
    behind: dict[str, Any] = {}
    for index, (name, (low, high)) in enumerate(ranges.items()):
        exact = f"{name}.exact"
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / 255 or 1.0
        graph.initializer.extend(
            [
                numpy_helper.from_array(np.array(scale, np.float32), f"{name}.scale"),
                numpy_helper.from_array(np.array(round(-low / scale), np.uint8), f"{name}.zero"),
            ]
        )
        # An input keeps its name, and those that read it get another; otherwise who makes it does.
        source, target = (name, exact) if name in inputs else (exact, name)
        switch = _switch(index, source, target, flags[index], name)
        if name in inputs:
            for node in graph.node:
                replace_name(node.input, name, exact)
            made.append(switch)
        else:
            behind[name] = switch
    nodes = []
    for node in graph.node:
        switches = [behind[name] for name in node.output if name in behind]
        for switch in switches:
            replace_name(node.output, switch.output[0], f"{switch.output[0]}.exact")
        nodes += [node, *switches]
    del graph.node[:]
    graph.node.extend([*made, *nodes])
    return switched


def _switch(index: int, source: str, target: str, flag: str, name: str) -> Any:
    from onnx import TensorProto, helper

    def branch(title: str, nodes: list[Any], output: str) -> Any:
        # Its shape is whatever the activation has.
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        return helper.make_graph(nodes, title, [], [value])

    rounded, kept = f"{name}.rounded", f"{name}.kept"
    scale, zero, bits = f"{name}.scale", f"{name}.zero", f"{name}.bits"
    return helper.make_node(
        "If",
        [flag],
        [target],
        f"drupe.switch.{index}",
        then_branch=branch(
            f"rounded_{index}",
            [
                helper.make_node("QuantizeLinear", [source, scale, zero], [bits]),
                helper.make_node("DequantizeLinear", [bits, scale, zero], [rounded]),
            ],
            rounded,
        ),
        else_branch=branch(f"kept_{index}", [helper.make_node("Identity", [source], [kept])], kept),
    )
