"""The operators of onnxruntime-extensions: a library that a session loads before a graph that uses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drupe.core.errors import EvaluationError

__all__ = ["register_extensions"]


def register_extensions(attributes: Mapping[str, Any], settings: Any) -> None:
    """Let a session load the library where a model's attributes say that it needs it.

    settings: onnxruntime.SessionOptions.

    Raises EvaluationError where the library is not installed, or does not fit the installed ONNX Runtime.
    """
    if not attributes.get("use_ort_extensions"):
        return
    try:
        from onnxruntime_extensions import get_library_path
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime_extensions"
        how = "pip install 'drupe[extensions]'" if absent else "pip install --force-reinstall onnxruntime-extensions"
        raise EvaluationError(
            "the model needs the operators of onnxruntime-extensions, which "
            f"{'is not installed' if absent else f'is installed and can not be imported ({error})'}: {how}"
        ) from error
    try:
        settings.register_custom_ops_library(get_library_path())
    except Exception as error:
        raise EvaluationError(f"ONNX Runtime can't load the library of onnxruntime-extensions: {error}") from error
