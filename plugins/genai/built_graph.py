"""The graph that the model builder wrote: made reproducible, and checked for what was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drupe.core.errors import PassError

__all__ = ["check_graph", "without_commit"]


def without_commit(path: Path) -> Any:
    """Take the commit out of the producer version of the built model and return its graph, an onnx.GraphProto.

    The builder asks git for it in its own folder, and so finds the commit of whatever repository the environment lies
    in: equal work would give another digest after every commit there.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    version, plus, _ = model.producer_version.partition("+")
    if plus:
        model.producer_version = version
        path.write_bytes(model.SerializeToString(deterministic=True))
    return model.graph


def check_graph(graph: Any, config: Any) -> dict[str, Any]:
    """Read the built graph and raise PassError unless it is quantized as asked; return what was found."""
    import onnx

    bits: dict[int, int] = {}
    blocks: set[int] = set()
    zero_points = 0
    for node in graph.node:
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            width = int(attributes.get("bits", 4))
            bits[width] = bits.get(width, 0) + 1
            blocks.add(int(attributes.get("block_size", 32)))
            zero_points += node.op_type == "MatMulNBits" and len(node.input) > 3 and bool(node.input[3])
    found = {"nodes": len(graph.node), "quantized_nodes_by_bits": {str(k): v for k, v in sorted(bits.items())}}
    if config.precision not in ("int4", "int8") or config.use_qdq:
        return found
    wanted = 4 if config.precision == "int4" else 8
    if wanted not in bits:
        raise PassError(f"ModelBuilder was asked for {config.precision} and the graph has no {wanted}-bit weights")
    if config.block_size is not None and config.block_size not in blocks:
        raise PassError(
            f"ModelBuilder was asked for block_size {config.block_size} and the graph has blocks of {sorted(blocks)}"
        )
    if config.is_symmetric is True and zero_points:
        raise PassError(f"ModelBuilder was asked for symmetric weights and {zero_points} nodes have zero points")
    return {**found, "block_sizes": sorted(blocks)}
