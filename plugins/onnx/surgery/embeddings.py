"""Surgeons for decoders' two large tables, the embedding and the head, which often are one."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from drupe.core.config import PluginConfig
from drupe.plugins.onnx.surgery.arithmetic import flat_gemm
from drupe.plugins.onnx.surgery.surgeon import Surgeon, Theatre, constant

__all__ = ["QuantizeEmbeddingInt8", "ShareEmbeddingLmHead", "TieWordEmbeddings"]

_MICROSOFT = "com.microsoft"


class TieWordEmbeddings(Surgeon):
    """Where the head's weights are the embedding's, transposed, one table serves both; float or quantized."""

    def operate(self, model: Any, config: Any) -> int:
        return _tie_floats(model) or _share_quantized(model)


class ShareEmbeddingLmHead(Surgeon):
    """Where a quantized head holds the numbers of a quantized embedding, one table serves both."""

    def operate(self, model: Any, config: Any) -> int:
        return _share_quantized(model)


def _tie_floats(model: Any) -> int:
    import numpy as np

    tables = [
        node.inputs[0]
        for node in model.graph
        if node.op_type == "Gather" and not node.domain and node.inputs[0].is_initializer()
    ]
    count = 0
    for node in list(model.graph):
        if node.op_type != "MatMul" or node.domain:
            continue
        head = constant(node.inputs[1])
        if head is None or head.ndim != 2:
            continue
        for table in tables:
            known = table.const_value
            if tuple(known.shape) != head.shape[::-1] or not np.array_equal(known.numpy(), head.T):
                continue
            theatre = Theatre(model.graph)
            out = flat_gemm(theatre, node, node.inputs[0], table, None, transposed=True)
            if out is None:
                break
            theatre.put(out, node.outputs[0])
            count += 1
            break
    return count


def _share_quantized(model: Any) -> int:
    import numpy as np

    embeddings = [node for node in model.graph if node.op_type == "GatherBlockQuantized"]
    count = 0
    for node in list(model.graph):
        if node.op_type != "MatMulNBits":
            continue
        for embedding in embeddings:
            if not _same_table(embedding, node):
                continue
            theatre = Theatre(model.graph)
            # The embedding is read first, so its table stays and the head's becomes a view of it.
            for mine, theirs in ((0, 1), (2, 2), (3, 3)):
                if mine >= len(embedding.inputs) or theirs >= len(node.inputs):
                    continue
                source, target = embedding.inputs[mine], node.inputs[theirs]
                if source is None or target is None or source is target:
                    continue
                shape = theatre.weight(f"{target.name}_shape", np.asarray(target.shape.numpy(), dtype=np.int64))
                view = theatre.add(embedding, "Reshape", [source, shape], dtype=target.dtype)
                view.shape = target.shape
                old = target
                node.replace_input_with(theirs, view)
                if not tuple(old.uses()) and old.is_initializer():
                    del model.graph.initializers[old.name]
            count += 1
            break
    return count


def _same_table(embedding: Any, head: Any) -> bool:
    import numpy as np

    bits = [int(node.attributes["bits"].value) if "bits" in node.attributes else 4 for node in (embedding, head)]
    blocks = [int(node.attributes["block_size"].value) for node in (embedding, head)]
    if bits[0] != bits[1] or blocks[0] != blocks[1]:
        return False
    for mine, theirs in ((0, 1), (2, 2), (3, 3)):
        a = constant(embedding.inputs[mine]) if mine < len(embedding.inputs) else None
        b = constant(head.inputs[theirs]) if theirs < len(head.inputs) else None
        if (a is None) != (b is None):
            return False
        if a is None or b is None:
            continue
        if a.dtype != b.dtype or not np.array_equal(a.reshape(-1), b.reshape(-1)):
            return False
    return True


class QuantizeEmbeddingInt8Config(PluginConfig):
    """How the table is cut."""

    block_size: Literal[16, 32, 64, 128, 256] = Field(32, description="Numbers of a row that share a scale.")


class QuantizeEmbeddingInt8(Surgeon):
    """An embedding's table gets 8 bits, rounded as ONNX Runtime rounds a head, so that the two can be shared."""

    Config: ClassVar[type[PluginConfig]] = QuantizeEmbeddingInt8Config

    def operate(self, model: Any, config: QuantizeEmbeddingInt8Config) -> int:
        import numpy as np
        from onnxruntime.capi._pybind_state import quantize_matmul_8bits

        count = 0
        for node in list(model.graph):
            if node.op_type != "Gather" or node.domain or int(_axis(node)) != 0:
                continue
            table = constant(node.inputs[0])
            if table is None or table.ndim != 2 or not np.issubdtype(table.dtype, np.floating) or table.shape[0] < 2:
                continue
            rows, width = table.shape
            if width % config.block_size:
                raise self.fail(
                    f"the table {node.inputs[0].name} is {width} wide, which blocks of {config.block_size} don't divide"
                )
            blocks = width // config.block_size
            packed = np.zeros((rows, blocks, config.block_size), dtype=np.uint8)
            scales = np.zeros((rows, blocks), dtype=table.dtype)
            zeros = np.zeros((rows, blocks), dtype=np.uint8)
            source = np.ascontiguousarray(table.T)
            quantize_matmul_8bits(packed, source, scales, zeros, config.block_size, rows, width, True)
            theatre = Theatre(model.graph)
            out = theatre.add(
                node,
                "GatherBlockQuantized",
                [
                    theatre.weight(f"{node.inputs[0].name}_q8", packed.reshape(rows, width)),
                    node.inputs[1],
                    theatre.weight(f"{node.inputs[0].name}_scales", scales),
                ],
                domain=_MICROSOFT,
                dtype=node.outputs[0].dtype,
                bits=8,
                block_size=config.block_size,
                gather_axis=0,
                quantize_axis=1,
            )
            theatre.put(out, node.outputs[0])
            count += 1
        return count


def _axis(node: Any) -> Any:
    return node.attributes["axis"].value if "axis" in node.attributes else 0
