"""OnnxPeepholeOptimizer: constants folded, what is dead or double removed, chains of casts and reshapes made one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import PassError
from drupe.core.model import Model
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig
from drupe.plugins.onnx.idle import tell_idle

__all__ = ["OnnxPeepholeOptimizer", "OnnxPeepholeOptimizerConfig"]


class OnnxPeepholeOptimizerConfig(GraphPassConfig):
    """Which clean-ups are made."""

    onnxscript_optimize: bool = Field(True, description="Fold constants and remove what is dead, with onnxscript.")
    tidy: bool = Field(True, description="Remove identities, double weights and double calculations, with onnx-ir.")
    onnxoptimizer_optimize: bool = Field(False, description="The passes of the package onnxoptimizer as well.")
    onnxslim: bool = Field(False, description="The passes of the package onnxslim as well.")
    fuse_reshape_operations: bool = Field(True, description="One reshape in place of two in a row.")
    cast_chain_elimination: bool = Field(
        True, description="One cast, or none, in place of two in a row of which the first loses nothing."
    )
    fix_com_microsoft_opset: bool = Field(
        True, description="Name version 1 of the com.microsoft operators where the graph uses them."
    )


class OnnxPeepholeOptimizer(GraphPass):
    """Cleans up a graph without changing what it calculates."""

    Config: ClassVar[type[PassConfig]] = OnnxPeepholeOptimizerConfig
    version = 2

    def requirements(self, config: OnnxPeepholeOptimizerConfig, accelerator: Accelerator) -> Sequence[str]:
        """The optional packages that were asked for."""
        return [
            *(["onnxoptimizer>=0.3.13"] if config.onnxoptimizer_optimize else []),
            *(["onnxslim>=0.1.50"] if config.onnxslim else []),
        ]

    def rewrite(
        self, proto: Any, path: Path, model: Model, config: OnnxPeepholeOptimizerConfig, context: PassContext
    ) -> Any:
        """Clean up, outer packages last."""
        import onnx_ir as ir
        from onnx_ir.passes import common

        before = len(proto.graph.node)
        if config.fix_com_microsoft_opset:
            _fix_opset(proto)
        tree = ir.from_proto(proto)
        if config.onnxscript_optimize:
            from onnxscript.optimizer import optimize_ir

            optimize_ir(tree)
            _hold_constants(tree)
        if config.cast_chain_elimination:
            context.report["casts_removed"] = _shorten_casts(tree)
        if config.fuse_reshape_operations:
            context.report["reshapes_fused"] = _fuse_reshapes(tree)
        if config.tidy:
            for step in (
                common.IdentityEliminationPass(),
                common.DeduplicateInitializersPass(),
                common.CommonSubexpressionEliminationPass(),
            ):
                tree = step(tree).model
        tree = common.RemoveUnusedNodesPass()(tree).model
        result = ir.to_proto(tree)
        if config.onnxoptimizer_optimize:
            import onnxoptimizer

            result = onnxoptimizer.optimize(result)
        if config.onnxslim:
            import onnxslim

            result = onnxslim.slim(result)
        for kind in ("input", "output"):
            names, now = ([value.name for value in getattr(g, kind)] for g in (proto.graph, result.graph))
            if (kind == "output" and names != now) or set(now) - set(names):
                raise PassError(
                    f"{self.spec.name}: the graph's {kind}s {', '.join(names)} became {', '.join(now)}; an output that "
                    "is an input or a weight as it is can't be kept: take it out of the graph first"
                )
        context.report["nodes"] = [before, len(result.graph.node)]
        counted = {"cast_chain_elimination": "casts_removed", "fuse_reshape_operations": "reshapes_fused"}
        asked = [name for name in counted if name in config.model_fields_set and getattr(config, name)]
        tell_idle(self.spec.name, path.name, [n for n in asked if not context.report[counted[n]]], context)
        return result


def _fix_opset(proto: Any) -> None:
    used = {node.domain for node in proto.graph.node}
    for entry in proto.opset_import:
        if entry.domain == "com.microsoft":
            entry.version = 1
            return
    if "com.microsoft" in used:
        proto.opset_import.add(domain="com.microsoft", version=1)


def _hold_constants(model: Any) -> None:
    """Make initializers of constants that nodes read and the graph does not hold: a rule of onnxscript leaves such."""
    graph = model.graph
    there = {id(value) for value in (*graph.inputs, *graph.initializers.values())}
    for node in list(graph):
        for value in node.inputs:
            if value is None or value.producer() is not None or id(value) in there or value.const_value is None:
                continue
            there.add(id(value))
            if value.name is None or value.name in graph.initializers:
                value.name = f"{value.name or 'constant'}_{len(graph.initializers)}"
            graph.register_initializer(value)


_HOLDS = {
    # Casts from the key to the values and back lose nothing.
    "BOOL": {"UINT8", "INT8", "INT16", "INT32", "INT64", "FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE"},
    "UINT8": {"INT16", "INT32", "INT64", "FLOAT16", "FLOAT", "DOUBLE", "UINT16", "UINT32", "UINT64"},
    "INT8": {"INT16", "INT32", "INT64", "FLOAT16", "FLOAT", "DOUBLE"},
    "INT16": {"INT32", "INT64", "FLOAT", "DOUBLE"},
    "INT32": {"INT64", "DOUBLE"},
    "FLOAT16": {"FLOAT", "DOUBLE"},
    "BFLOAT16": {"FLOAT", "DOUBLE"},
    "FLOAT": {"DOUBLE"},
}


def _shorten_casts(model: Any) -> int:
    count = 0
    for node in list(model.graph):
        if node.op_type != "Cast" or node.domain:
            continue
        first = node.inputs[0].producer() if node.inputs[0] is not None else None
        if first is None or first.op_type != "Cast" or first.domain or first.graph is not model.graph:
            continue
        source = first.inputs[0]
        if source.dtype is None or first.outputs[0].dtype is None:
            continue
        middle = first.attributes["to"].value
        end = node.attributes["to"].value
        kinds = {kind.value: kind.name for kind in type(source.dtype)}
        if kinds[middle] not in _HOLDS.get(source.dtype.name, set()) and kinds[middle] != source.dtype.name:
            continue
        if end == source.dtype.value and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
        else:
            node.replace_input_with(0, source)
        count += 1
    return count


def _fuse_reshapes(model: Any) -> int:
    count = 0
    for node in list(model.graph):
        if node.op_type != "Reshape" or node.domain or node.inputs[0] is None:
            continue
        first = node.inputs[0].producer()
        if first is None or first.op_type != "Reshape" or first.domain or first.graph is not model.graph:
            continue
        # A 0 takes the length from the shape before, which the fused reshape no longer sees.
        shape = node.inputs[1].const_value if node.inputs[1] is not None else None
        if shape is None or (shape.numpy() == 0).any():
            continue
        node.replace_input_with(0, first.inputs[0])
        count += 1
    return count
