"""QuantizationPreprocess: shapes are inferred and the graph is tidied, which quantizers build on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.model import Model
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig

__all__ = ["QuantizationPreprocess", "QuantizationPreprocessConfig", "preprocess"]


class QuantizationPreprocessConfig(GraphPassConfig):
    """Which preparations are made (onnxruntime.quantization.quant_pre_process)."""

    skip_optimization: bool = Field(True, description="Leave the graph's nodes as they are.")
    skip_onnx_shape: bool = Field(False, description="Leave out onnx's shape inference.")
    skip_symbolic_shape: bool = Field(
        False,
        description="Leave out onnxruntime's symbolic shape inference; where it fails, it is left out with a notice.",
    )
    auto_merge: bool = Field(False, description="Merge axes whose names differ where the graph demands it.")
    int_max: int = Field(2**31 - 1, description="Lengths from which a number counts as unbounded.")
    guess_output_rank: bool = Field(False, description="Give outputs of unknown operators the rank of their input.")
    verbose: int = Field(0, ge=0, le=3, description="How much the inference logs.")


class QuantizationPreprocess(GraphPass):
    """Infers shapes and tidies the graph before quantization."""

    Config: ClassVar[type[PassConfig]] = QuantizationPreprocessConfig
    version = 1

    def rewrite(
        self, proto: Any, path: Path, model: Model, config: QuantizationPreprocessConfig, context: PassContext
    ) -> Any:
        """Prepare the graph."""
        return preprocess(
            path,
            context.output_dir.parent / "preprocessed.onnx",
            context,
            skip_optimization=config.skip_optimization,
            skip_onnx_shape=config.skip_onnx_shape,
            skip_symbolic_shape=config.skip_symbolic_shape,
            auto_merge=config.auto_merge,
            int_max=config.int_max,
            guess_output_rank=config.guess_output_rank,
            verbose=config.verbose,
        )


def preprocess(path: Path, work: Path, context: PassContext, **options: Any) -> Any:
    """Return the graph of a file with inferred shapes where they can be had. work: a file to write.

    options: of quant_pre_process; by default the nodes stay as they are.
    """
    import contextlib

    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    full = {"skip_optimization": True, **options}
    if not full.get("skip_symbolic_shape"):
        # Symbolic inference fails on many exported graphs, and onnx's own is enough for most.
        # Where it fails it leaves the graph in the working directory.
        source, target = str(path.resolve()), str(work.resolve())
        with contextlib.chdir(work.parent):
            try:
                quant_pre_process(source, target, **full)
            except Exception as error:
                context.log.warning("symbolic shape inference fails on this graph (%s); onnx's is used", error)
                full["skip_symbolic_shape"] = True
    if full.get("skip_symbolic_shape"):
        quant_pre_process(str(path), str(work), **full)
    return onnx.load(str(work))
