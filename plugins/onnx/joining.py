"""What two graphs must have in common to become parts of one: operator sets, functions, weights that both hold."""

from __future__ import annotations

import hashlib
from typing import Any

from drupe.core.errors import ConfigError

__all__ = ["content_of", "same_functions", "same_opsets"]


def same_opsets(pass_name: str, *protos: Any) -> dict[str, int]:
    """Return domain → version of the operator sets of several graphs.

    Raises ConfigError where they use two versions of ONNX's own set; of others the newer one is taken.
    """
    found: dict[str, int] = {}
    for proto in protos:
        for entry in proto.opset_import:
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            if not domain and found.get(domain, entry.version) != entry.version:
                raise ConfigError(
                    f"{pass_name}: the graphs are of operator sets {found[domain]} and {entry.version}; export them "
                    "with the same target_opset, or put OnnxOpVersionConversion before it"
                )
            found[domain] = max(found.get(domain, 0), entry.version)
    return found


def same_functions(pass_name: str, *protos: Any) -> list[Any]:
    """Return the functions of several graphs, each once. Raises ConfigError where two of one name differ."""
    found: dict[tuple[str, str], Any] = {}
    for proto in protos:
        for function in proto.functions:
            known = found.setdefault((function.domain, function.name), function)
            if known.SerializeToString(deterministic=True) != function.SerializeToString(deterministic=True):
                raise ConfigError(f"{pass_name}: two graphs have a function {function.name}, and they differ")
    return list(found.values())


def content_of(tensor: Any) -> tuple[int, tuple[int, ...], str]:
    """Return what tells a weight from others: type, shape and the digest of its values."""
    from onnx import numpy_helper

    data = tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
    return int(tensor.data_type), tuple(tensor.dims), hashlib.sha256(data).hexdigest()
