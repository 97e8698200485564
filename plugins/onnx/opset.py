"""OnnxOpVersionConversion: a graph in another version of the operator set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import PassError
from drupe.core.model import Model
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig

__all__ = ["OnnxOpVersionConversion", "OnnxOpVersionConversionConfig", "opset_of"]


class OnnxOpVersionConversionConfig(GraphPassConfig):
    """The version to convert to."""

    target_opset: int = Field(21, ge=7, le=24, description="Version of the ONNX operator set.")


class OnnxOpVersionConversion(GraphPass):
    """Converts each operator to its form in another version (onnx.version_converter)."""

    Config: ClassVar[type[PassConfig]] = OnnxOpVersionConversionConfig
    version = 1

    def outcome(self, attributes: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
        """The graph's new version."""
        return {"opset": config.target_opset}

    def rewrite(
        self, proto: Any, path: Path, model: Model, config: OnnxOpVersionConversionConfig, context: PassContext
    ) -> Any:
        """Convert; weights stay aside, so that the converter sees a small graph."""
        from onnx import version_converter

        now = opset_of(proto)
        if now == config.target_opset:
            return proto
        if proto.functions:
            # The converter leaves functions behind, and what is in them is of the old version.
            from onnx import inliner

            proto = inliner.inline_local_functions(proto)
        extra = [entry for entry in proto.opset_import if entry.domain not in ("", "ai.onnx")]
        try:
            result = version_converter.convert_version(proto, config.target_opset)
        except Exception as error:
            first = str(error).strip().splitlines()[0]
            raise PassError(
                f"{self.spec.name} can't convert opset {now} to {config.target_opset}: {first}; "
                "export the model with that target_opset instead"
            ) from error
        domains = {entry.domain for entry in result.opset_import}
        result.opset_import.extend(entry for entry in extra if entry.domain not in domains)
        if opset_of(result) != config.target_opset:
            raise PassError(
                f"{self.spec.name} stopped at opset {opset_of(result)} on the way from {now} to {config.target_opset}"
            )
        return result


def opset_of(proto: Any) -> int:
    """Return the version of the standard operator set that a graph uses."""
    return next((int(entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
