"""OnnxScriptFusion: a transformer's parts fused into ONNX Runtime's operators by onnxscript's patterns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import PassError
from drupe.core.model import Model
from drupe.plugins.onnx.calibration import graph_inputs
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig
from drupe.plugins.onnx.graphs import graph_paths
from drupe.plugins.onnx.made_up import made_up_batch, table_sizes

if TYPE_CHECKING:
    import numpy as np

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

        proto = onnx.load(str(source), load_external_data=False)
        inputs = graph_inputs(proto, model)
        batch = made_up_batch(inputs, seed=context.seed, batch_size=2, below=table_sizes(proto))
        mask = batch.get("attention_mask")
        if mask is not None and mask.ndim == 2:
            mask[-1, mask.shape[1] * 3 // 4 :] = 0
        theirs = _outputs(self.spec.name, model, source, batch)
        for name, ours in _outputs(self.spec.name, model, result, batch).items():
            a, b = (_unpadded(np.asarray(value), mask) for value in (ours, theirs[name]))
            if a.shape != b.shape:
                raise PassError(f"{self.spec.name}: output {name!r} has the shape {a.shape}; the source's is {b.shape}")
            if not np.issubdtype(b.dtype, np.floating):
                if not np.array_equal(a, b):
                    raise PassError(f"{self.spec.name}: output {name!r} is not the source's after {_fired(context)}")
                continue
            scale = float(np.nanmax(np.abs(b.astype(np.float64)), initial=0.0)) or 1.0
            same = np.isnan(a) & np.isnan(b)
            errors = np.where(same, 0.0, np.abs(a.astype(np.float64) - b.astype(np.float64)))
            share = float(errors.max(initial=0.0)) / scale
            allowed = config.tolerance or (_TOLERANCE_OF_HALVES if b.dtype == np.float16 else _TOLERANCE)
            differences[name] = max(share, differences.get(name, 0.0))
            # A number that is none where the source has one compares as false.
            if not share <= allowed:
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


def _outputs(pass_name: str, model: Model, path: Path, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime as ort

    from drupe.plugins.onnx.extensions import register_extensions

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    register_extensions(model.attributes, settings)
    try:
        session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        values = session.run(None, {item.name: batch[item.name] for item in session.get_inputs()})
    except Exception as error:
        raise PassError(f"{pass_name}: ONNX Runtime can't run {path.name} on made-up inputs: {error}") from error
    return {item.name: value for item, value in zip(session.get_outputs(), values, strict=True)}


def _unpadded(output: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Return an output without the positions that the mask leaves out: what they hold is nobody's."""
    if mask is None or mask.ndim != 2 or output.shape[:2] != mask.shape:
        return output
    kept: np.ndarray = output[mask.astype(bool)]
    return kept
