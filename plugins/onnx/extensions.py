"""The operators of onnxruntime-extensions: a library that a session loads before a graph that uses them."""

from __future__ import annotations

from typing import Any

from drupe.core.errors import EvaluationError
from drupe.core.model import Model

__all__ = ["DOMAINS", "register_extensions", "uses_extensions"]

DOMAINS = ("ai.onnx.contrib", "com.microsoft.extensions")
"""Where the library's operators are."""


def uses_extensions(proto: Any) -> bool:
    """Whether a graph imports operators of the library."""
    return any(entry.domain in DOMAINS for entry in proto.opset_import)


def register_extensions(model: Model, settings: Any) -> None:
    """Let a session load the library where the model says that it needs it. settings: onnxruntime.SessionOptions.

    Raises EvaluationError where the library is not installed, or does not fit the installed ONNX Runtime.
    """
    if not model.attributes.get("use_ort_extensions"):
        return
    try:
        from onnxruntime_extensions import get_library_path
    except ImportError as error:
        raise EvaluationError(
            "the model needs the operators of onnxruntime-extensions, which is not installed: "
            "pip install 'drupe[extensions]'"
        ) from error
    try:
        settings.register_custom_ops_library(get_library_path())
    except Exception as error:
        raise EvaluationError(f"ONNX Runtime can't load the library of onnxruntime-extensions: {error}") from error
