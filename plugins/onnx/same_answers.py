"""A graph beside another on made-up inputs: how far apart they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drupe.core.context import PassContext
from drupe.core.errors import PassError
from drupe.core.model import Model
from drupe.plugins.metrics.differences import differences
from drupe.plugins.onnx.calibration import input_shapes
from drupe.plugins.onnx.made_up import made_up_batch, table_sizes

if TYPE_CHECKING:
    import numpy as np

__all__ = ["differences_by_output", "largest_difference", "made_up_padded"]


def made_up_padded(proto: Any, model: Model, seed: int) -> dict[str, np.ndarray]:
    """Return two made-up inputs of a graph as a batch; the second is padded where there is an attention mask."""
    batch = made_up_batch(input_shapes(proto, model), seed=seed, batch_size=2, below=table_sizes(proto))
    mask = batch.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        mask[-1, mask.shape[1] * 3 // 4 :] = 0
    return batch


def differences_by_output(
    pass_name: str, model: Model, source: Any, result: Any, batch: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, np.dtype[Any]]]:
    """Return output → (largest difference as a share of the source's largest number, the source's type).

    source, result: files or onnx.ModelProto of less than 2 GB. What the mask leaves out does not count. What is no
    number in one alone is infinitely far. Raises PassError for another shape, and for a graph that ONNX
    Runtime can't run.
    """
    import numpy as np

    theirs = _outputs(pass_name, model, source, batch)
    mask = batch.get("attention_mask")
    found = {}
    for name, ours in _outputs(pass_name, model, result, batch).items():
        a, b = (_unpadded(np.atleast_1d(value), mask) for value in (ours, theirs[name]))
        if a.shape != b.shape:
            raise PassError(f"{pass_name}: output {name!r} has the shape {a.shape}; the source's is {b.shape}")
        wide = b.astype(np.float64)
        scale = float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0)) or 1.0
        found[name] = (differences(a, wide).largest / scale, b.dtype)
    return found


def largest_difference(
    pass_name: str, model: Model, source: Any, result: Any, context: PassContext
) -> tuple[str, float]:
    """Return the output that differs most on made-up inputs, and by what share of the source's largest number."""
    batch = made_up_padded(source, model, context.seed)
    found = differences_by_output(pass_name, model, source, result, batch)
    name = max(found, key=lambda output: found[output][0])
    return name, found[name][0]


def _outputs(pass_name: str, model: Model, graph: Any, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime as ort

    from drupe.plugins.onnx.extensions import register_extensions

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    register_extensions(model.attributes, settings)
    what = graph.name if isinstance(graph, Path) else "the graph"
    try:
        given = str(graph) if isinstance(graph, Path) else graph.SerializeToString()
        session = ort.InferenceSession(given, settings, providers=["CPUExecutionProvider"])
        values = session.run(None, {item.name: batch[item.name] for item in session.get_inputs()})
    except Exception as error:
        raise PassError(f"{pass_name}: ONNX Runtime can't run {what} on made-up inputs: {error}") from error
    return {item.name: value for item, value in zip(session.get_outputs(), values, strict=True)}


def _unpadded(output: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Return an output without the positions that the mask leaves out: what they hold is nobody's."""
    if mask is None or mask.ndim != 2 or output.shape[:2] != mask.shape:
        return output
    kept: np.ndarray = output[mask.astype(bool)]
    return kept
