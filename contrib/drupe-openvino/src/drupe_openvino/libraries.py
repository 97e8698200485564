"""Imports OpenVINO and NNCF, which report their use to their maker unless they are kept from it."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

__all__ = ["nncf", "openvino"]


def openvino() -> Any:
    """Return the module `openvino`. Importing it sends nothing."""
    _silence_telemetry()
    return importlib.import_module("openvino")


def nncf() -> Any:
    """Return the module `nncf`, quiet on standard output. Importing and using it sends nothing."""
    _silence_telemetry()
    module = importlib.import_module("nncf")
    logging.getLogger("nncf").setLevel(logging.WARNING)
    return module


def _silence_telemetry() -> None:
    # Both libraries do without the telemetry package when it can't be imported; None makes its import fail.
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
