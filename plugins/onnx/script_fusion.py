"""OnnxScriptFusion: a transformer's parts fused into ONNX Runtime's operators by onnxscript's patterns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import PassError
from drupe.core.model import Model
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig
from drupe.plugins.onnx.graphs import graph_paths
from drupe.plugins.onnx.same_answers import differences_by_output, made_up_padded

__all__ = ["OnnxScriptFusion", "OnnxScriptFusionConfig"]

_TOLERANCE = 1e-3
_TOLERANCE_OF_HALVES = 2e-2
"""Half precision has three digits, and sums in another order lose one."""


class OnnxScriptFusionConfig(GraphPassConfig):
    """How near the result must be to its source."""

    tolerance: float | None = Field(
        None,
        gt=0,
        description="Largest difference on made-up inputs, as a share of the source's largest number; default: 0.001, "
        "and 0.02 of half precision.",
    )


class OnnxScriptFusion(GraphPass):
    """Fuses attention, norms, activations and rotary positions (onnxscript.rewriter.ort_fusions).

    Rules: 1. Which fusions fired is in the report. 2. Patterns may take a graph for what it is not: on the CPU the
    result is run beside its source on made-up inputs with padding, and one that says something else is an error.
    """

    Config: ClassVar[type[PassConfig]] = OnnxScriptFusionConfig
    version = 1

    def rewrite(
        self, proto: Any, path: Path, model: Model, config: OnnxScriptFusionConfig, context: PassContext
    ) -> Any:
        """Fuse, and count."""
        import onnx_ir as ir
        from onnxscript.rewriter.ort_fusions import optimize_for_ort

        before = _own_operators(proto)
        tree, counts = optimize_for_ort(ir.from_proto(proto))
        result = ir.to_proto(tree)
        fired = Counter(context.report.get("fusions", {})) + Counter(counts)
        context.report["fusions"] = dict(fired)
        new = Counter(context.report.get("operators", {})) + (_own_operators(result) - before)
        context.report["operators"] = dict(new)
        if not counts or not any(counts.values()):
            context.log.warning(
                "%s: none of onnxscript's patterns fits %s; it is only tidied. They are those of graphs that "
                "OnnxConversion exports with use_dynamo_exporter",
                self.spec.name,
                path.name,
            )
        return result

    def run(self, model: Model, config: OnnxScriptFusionConfig, context: PassContext) -> Model:
        """Fuse each graph, then run each beside its source."""
        result = super().run(model, config, context)
        accelerator = context.accelerator
        if accelerator.device != "cpu" or accelerator.execution_provider not in (None, "CPUExecutionProvider"):
            context.log.info("%s: the result is for another device, and was not run here", self.spec.name)
            return result
        differences: dict[str, float] = {}
        for path in graph_paths(model):
            written = context.output_dir / path.relative_to(model.folder)
            context.progress(0, 1, f"comparing {path.name} with its source")
            self._compare(model, path, written, config, context, differences)
        context.report["largest_difference"] = differences
        return result

    def _compare(
        self,
        model: Model,
        source: Path,
        result: Path,
        config: OnnxScriptFusionConfig,
        context: PassContext,
        differences: dict[str, float],
    ) -> None:
        """Raise PassError where an output differs by more than is allowed; note by how much."""
        import numpy as np
        import onnx

        batch = made_up_padded(onnx.load(str(source), load_external_data=False), model, context.seed)
        for name, (share, dtype) in differences_by_output(self.spec.name, model, source, result, batch).items():
            allowed = config.tolerance or (_TOLERANCE_OF_HALVES if dtype == np.float16 else _TOLERANCE)
            differences[name] = max(share, differences.get(name, 0.0))
            if share > allowed:
                raise PassError(
                    f"{self.spec.name}: output {name!r} differs from its source by {share:.2g} of its largest number "
                    f"after {_fired(context)}; allowed is {allowed:.2g}. Use OrtTransformersOptimization in its place, "
                    "or raise tolerance if that is near enough"
                )


def _own_operators(proto: Any) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node if node.domain == "com.microsoft")


def _fired(context: PassContext) -> str:
    fused: Mapping[str, int] = context.report.get("fusions", {})
    return ", ".join(f"{name} × {count}" for name, count in fused.items()) or "tidying alone"
