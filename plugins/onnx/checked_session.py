"""Opens what an exporter wrote, to run it beside the module that it was written of."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

from drupe.plugins.onnx.graphs import byte_size, unknown_operators

__all__ = ["checked_session"]

_CHECKED = 1 << 30
"""Graphs up to so many bytes are run as a check."""


def checked_session(proto: Any, tensors: Iterable[Any]) -> Any:
    """Return an ONNX Runtime session of a graph; None where running it would say nothing or cost too much.

    That is without onnxruntime, for tensors on other devices or of other floats than float32, for graphs of more than
    1 GiB, and for operators that ONNX Runtime lacks: a library may bring them where the graph is run. tensors: the
    module's inputs and weights. Raises ValueError, with what ONNX Runtime says, for a graph that it can't load.
    """
    import torch

    if importlib.util.find_spec("onnxruntime") is None:
        return None
    for value in tensors:
        if value.device.type != "cpu" or (value.is_floating_point() and value.dtype is not torch.float32):
            return None
    if byte_size(proto) > _CHECKED:
        return None
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = torch.get_num_threads()
    # A few runs on small inputs: weights laid out anew for speed would only take memory and time.
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return ort.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        if unknown_operators(proto):
            return None
        raise ValueError(str(error)[:300]) from error
