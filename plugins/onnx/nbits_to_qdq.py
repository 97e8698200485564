"""MatMulNBitsToQDQ: ONNX Runtime's own products of few bits → DequantizeLinear and MatMul, which other tools read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import PassError
from drupe.core.model import Model
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig, check_node_names
from drupe.plugins.onnx.opset import opset_of

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MatMulNBitsToQDQ", "MatMulNBitsToQDQConfig"]

_OPSET = 21
"""The first version of the operator set whose DequantizeLinear takes blocks and integers of 4 bits."""
_CHANGED_BEFORE = 18
"""Operators changed their form (axes of reductions) up to this version; from it on, graphs read the same at 21."""


class MatMulNBitsToQDQConfig(GraphPassConfig):
    """How the weights are written."""

    use_transpose_op: bool = Field(
        False,
        description="Keep the weights as rows of outputs and transpose them in the graph; else they are turned once.",
    )
    use_int4: bool = Field(False, description="Signed integers (int4, int8) in place of unsigned ones.")
    add_zero_point: bool = Field(
        False, description="Write the zero points of symmetric weights as well, for tools that want them."
    )
    nodes_to_exclude: list[str] | None = Field(None, description="Names of MatMulNBits nodes that stay.")


class MatMulNBitsToQDQ(GraphPass):
    """Writes MatMulNBits nodes of 4 and 8 bits as standard operators with the same weights."""

    Config: ClassVar[type[PassConfig]] = MatMulNBitsToQDQConfig
    version = 1

    def outcome(self, attributes: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
        """The graph's operator set is 21 at least."""
        return {"opset": max(_OPSET, int(attributes["opset"]))} if "opset" in attributes else {}

    def rewrite(
        self, proto: Any, path: Path, model: Model, config: MatMulNBitsToQDQConfig, context: PassContext
    ) -> Any:
        """Write each node anew."""
        import onnx_ir as ir

        from drupe.plugins.onnx.surgery.surgeon import Theatre

        check_node_names(self.spec.name, proto, "nodes_to_exclude", config.nodes_to_exclude)
        version = opset_of(proto)
        if version < _CHANGED_BEFORE:
            raise PassError(
                f"{self.spec.name} writes opset {_OPSET}, and the graph has {version}, from which operators changed "
                f"their form; put OnnxOpVersionConversion with target_opset {_OPSET} before the quantization"
            )
        if version < _OPSET and any(node.op_type == "GroupNormalization" for node in proto.graph.node):
            raise PassError(f"{self.spec.name}: GroupNormalization changed with opset {_OPSET}; export with it")
        tree = ir.from_proto(proto)
        excluded = set(config.nodes_to_exclude or ())
        count = 0
        for node in list(tree.graph.all_nodes()):
            if node.op_type == "MatMulNBits" and node.name not in excluded:
                self._replace(Theatre(node.graph), node, config)
                count += 1
        if not count:
            raise PassError(f"{self.spec.name} found no MatMulNBits node; quantize the weights in blocks first")
        tree.graph.opset_imports[""] = max(_OPSET, version)
        tree.ir_version = max(tree.ir_version, 10)
        context.report["nodes_rewritten"] = count
        return ir.to_proto(tree)

    def _replace(self, theatre: Any, node: Any, config: MatMulNBitsToQDQConfig) -> None:
        import numpy as np
        import onnx_ir as ir

        from drupe.plugins.onnx.surgery.surgeon import constant

        read = {name: int(node.attributes[name].value) for name in ("K", "N", "block_size")}
        bits = int(node.attributes["bits"].value) if "bits" in node.attributes else 4
        inputs = [*node.inputs, *[None] * (6 - len(node.inputs))]
        if bits not in (4, 8) or inputs[4] is not None:
            what = f"{bits} bits" if bits not in (4, 8) else "reordered columns (g_idx)"
            raise PassError(f"{self.spec.name}: {node.name} has {what}; DequantizeLinear takes 4 or 8 bits in order")
        packed, scale = constant(inputs[1]), constant(inputs[2])
        if packed is None or scale is None:
            raise PassError(f"{self.spec.name}: the weights of {node.name} are no constants")
        rows, blocks = read["N"], -(-read["K"] // read["block_size"])
        weight = _unpacked(packed.reshape(rows, -1), bits)[:, : read["K"]]
        scale = scale.reshape(rows, blocks)
        zero = self._zero_points(node, constant(inputs[3]), rows, blocks, bits, config)
        middle = 1 << (bits - 1)
        if config.use_int4:
            weight = (weight.astype(np.int16) - middle).astype(np.int8)
            zero = None if zero is None else (zero.astype(np.int16) - middle).astype(np.int8)
        axis = 1 if config.use_transpose_op else 0
        if not config.use_transpose_op:
            weight, scale = weight.T, scale.T
            zero = None if zero is None else zero.T
        kind = getattr(ir.DataType, f"{'' if config.use_int4 else 'U'}INT{bits}")
        name = inputs[1].name

        def integers(label: str, values: Any) -> Any:
            array = np.ascontiguousarray(values)
            if bits == 4:
                array = array.astype(kind.numpy())
            return theatre.weight(f"{name}_{label}", ir.tensor(array, dtype=kind))

        dtype = inputs[2].dtype or ir.DataType.FLOAT
        terms = [integers("quantized", weight), theatre.weight(f"{name}_scales", np.ascontiguousarray(scale))]
        if zero is not None:
            terms.append(integers("zero_points", zero))
        value = theatre.add(
            node,
            "DequantizeLinear",
            terms,
            axis=axis,
            block_size=read["block_size"],
            dtype=dtype,
            name=f"{node.name}_DQ",
        )
        if config.use_transpose_op:
            value = theatre.add(node, "Transpose", [value], perm=[1, 0], dtype=dtype)
        out = theatre.add(node, "MatMul", [inputs[0], value], dtype=dtype, name=f"{node.name}_MatMul")
        if inputs[5] is not None:
            out = theatre.add(node, "Add", [out, inputs[5]], dtype=dtype)
        theatre.put(out, node.outputs[0])

    def _zero_points(
        self, node: Any, stored: Any, rows: int, blocks: int, bits: int, config: MatMulNBitsToQDQConfig
    ) -> np.ndarray | None:
        """Return unsigned zero points (rows, blocks); None where DequantizeLinear's own, zero, is meant."""
        import numpy as np

        middle = 1 << (bits - 1)
        if stored is None:
            # Without zero points MatMulNBits means the middle, which signed integers have at zero.
            if config.use_int4 and not config.add_zero_point:
                return None
            return np.full((rows, blocks), middle, dtype=np.uint8)
        if stored.dtype != np.uint8:
            raise PassError(
                f"{self.spec.name}: {node.name} has zero points of {stored.dtype}; DequantizeLinear takes integers"
            )
        return _unpacked(stored.reshape(rows, -1), bits)[:, :blocks]


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Return one number a byte of rows that hold two (4 bits, the lower one first) or one (8 bits)."""
    import numpy as np

    if bits == 8:
        return packed
    return np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(packed.shape[0], -1)
