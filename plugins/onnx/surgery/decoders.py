"""Surgeons for decoders as onnxruntime-genai builds them, and for the attention of vision encoders."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from drupe.core.config import PluginConfig
from drupe.plugins.onnx.surgery.surgeon import Surgeon, Theatre, all_nodes, constant

__all__ = ["AttentionMaskToSequenceLengths", "PackedAttentionToLoopMHA", "RemoveRopeMultiCache"]


class RemoveRopeMultiCacheConfig(PluginConfig):
    """Which table stays."""

    use_large_cache: bool = Field(
        False,
        description="Keep the table for long contexts; otherwise that for short ones, which then limits the context.",
    )


class RemoveRopeMultiCache(Surgeon):
    """Of two tables of rotary positions, between which an If chooses by the context's length, one stays."""

    Config: ClassVar[type[PluginConfig]] = RemoveRopeMultiCacheConfig

    def operate(self, model: Any, config: RemoveRopeMultiCacheConfig) -> int:
        count = 0
        for node in list(model.graph):
            if node.op_type != "If" or node.domain:
                continue
            branches = [_constants(node.attributes[name].value) for name in ("then_branch", "else_branch")]
            if any(tables is None for tables in branches):
                continue
            then, otherwise = branches
            large, small = (then, otherwise) if then[0].size > otherwise[0].size else (otherwise, then)
            theatre = Theatre(model.graph)
            for output, table in zip(node.outputs, large if config.use_large_cache else small, strict=True):
                theatre.put(theatre.weight(f"{output.name}_table", table), output)
            count += 1
        return count


def _constants(graph: Any) -> Any:
    """Return the tables that a branch gives; None where it gives anything else."""
    found = [constant(value) for value in graph.outputs]
    if not found or any(table is None or table.ndim != 2 for table in found):
        return None
    return found


class AttentionMaskToSequenceLengths(Surgeon):
    """The lengths that GroupQueryAttention needs become inputs, in place of being counted from the attention mask.

    past_seq_len: int32 (batch_size, 1), tokens of each row less one; total_seq_len: int32 (1), tokens of the longest.
    onnxruntime-genai's plain generator does not feed them; runtimes that run static graphs step by step do.
    """

    def operate(self, model: Any, config: Any) -> int:
        import onnx_ir as ir

        nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
        masks = [value for value in model.graph.inputs if value.name == "attention_mask"]
        if not nodes or not masks:
            return 0
        theatre = Theatre(model.graph)
        past = ir.Value(
            name=theatre.name("past_seq_len"),
            type=ir.TensorType(ir.DataType.INT32),
            shape=ir.Shape(["batch_size", 1]),
        )
        total = ir.Value(name=theatre.name("total_seq_len"), type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape([1]))
        model.graph.inputs.extend([past, total])
        for node in nodes:
            for index, new in ((5, past), (6, total)):
                old = node.inputs[index]
                node.replace_input_with(index, new)
                producer = old.producer() if old is not None else None
                if producer is not None and producer.graph is not None:
                    theatre.drop(producer)
        mask = masks[0]
        if not tuple(mask.uses()):
            model.graph.inputs.remove(mask)
        return len(nodes)


class PackedAttentionToLoopMHA(Surgeon):
    """custom::PackedAttention(q, k, v, cu_seqlens) → a loop over the packed sequences, each in a MultiHeadAttention.

    q, k, v: (1, heads, length, size); cu_seqlens: where each sequence begins, and the end; the result: (1, length,
    heads, size).
    """

    def operate(self, model: Any, config: Any) -> int:
        count = 0
        for node in list(model.graph):
            if node.op_type != "PackedAttention" or node.domain != "custom":
                continue
            theatre = Theatre(model.graph)
            theatre.put(_loop(theatre, node), node.outputs[0])
            count += 1
        if count and not any(node.domain == "custom" for node in all_nodes(model)):
            model.graph.opset_imports.pop("custom", None)
        return count


def _loop(theatre: Theatre, node: Any) -> Any:
    import numpy as np
    import onnx
    import onnx_ir as ir

    heads = int(node.attributes["num_heads"].value)
    scale = node.attributes["scale"].value if "scale" in node.attributes else None
    kind = node.inputs[0].dtype or ir.DataType.FLOAT

    def number(name: str, *values: int) -> Any:
        return theatre.weight(name, np.asarray(values, dtype=np.int64))

    packed = []
    for value in node.inputs[:3]:
        rows = theatre.add(node, "Transpose", [value], perm=[0, 2, 1, 3], dtype=kind)
        shape = theatre.add(node, "Shape", [rows], start=0, end=2, dtype=ir.DataType.INT64)
        flat = theatre.add(node, "Concat", [shape, number("all_heads", -1)], axis=0, dtype=ir.DataType.INT64)
        packed.append(theatre.add(node, "Reshape", [rows, flat], dtype=kind))
    bounds = theatre.add(node, "Cast", [node.inputs[3]], to=int(ir.DataType.INT64), dtype=ir.DataType.INT64)
    ends = theatre.add(node, "Size", [bounds], dtype=ir.DataType.INT64)
    trips = theatre.add(
        node, "Sub", [ends, theatre.weight("one", np.asarray(1, dtype=np.int64))], dtype=ir.DataType.INT64
    )
    nothing = theatre.add(
        node, "Slice", [packed[2], number("none", 0), number("none", 0), number("axis", 1)], dtype=kind
    )
    attribute = f"<num_heads = {heads}" + (f", scale = {float(scale)!r}>" if scale is not None else ">")
    type_name = {"FLOAT": "float", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "DOUBLE": "double"}[kind.name]
    # The body reads the packed values and the bounds from the graph around it.
    text = f"""attend (int64 i, bool go, {type_name}[B, L, H] done) => (bool go_on, {type_name}[B, M, H] more)
    <int64[1] one = {{1}}, int64[1] first = {{0}}> {{
      at = Unsqueeze(i, first)
      next = Add(at, one)
      begin = Gather<axis = 0>(BOUNDS, at)
      end = Gather<axis = 0>(BOUNDS, next)
      q = Slice(QUERY, begin, end, one)
      k = Slice(KEY, begin, end, one)
      v = Slice(VALUE, begin, end, one)
      attended = com.microsoft.MultiHeadAttention {attribute} (q, k, v)
      more = Concat<axis = 1>(done, attended)
      go_on = Identity(go)
    }}"""
    names = dict(zip(("QUERY", "KEY", "VALUE", "BOUNDS"), (value.name for value in (*packed, bounds)), strict=True))
    body = onnx.parser.parse_graph(text)
    for inner in body.node:
        inner.name = f"{node.name}_{inner.output[0]}"
        for index, name in enumerate(inner.input):
            inner.input[index] = names.get(name, f"{node.name}_{name}" if name else "")
        for index, name in enumerate(inner.output):
            inner.output[index] = f"{node.name}_{name}"
    for value in (*body.input, *body.output, *body.initializer):
        value.name = f"{node.name}_{value.name}"
    return _with_body(theatre, node, body, [trips, None, nothing], [*packed, bounds], kind)


def _with_body(theatre: Theatre, node: Any, body: Any, inputs: list[Any], outer: list[Any], kind: Any) -> Any:
    """Insert a Loop whose body is a GraphProto that reads values of the graph around it."""
    import onnx_ir as ir
    from onnx_ir import serde

    graph = serde.deserialize_graph(body)
    known = {value.name: value for value in outer}
    for inner in graph:
        for index, value in enumerate(inner.inputs):
            if value is not None and value.name in known and value is not known[value.name]:
                inner.replace_input_with(index, known[value.name])
    theatre.graph.opset_imports.setdefault("com.microsoft", 1)
    loop = ir.node("Loop", inputs, {"body": graph}, num_outputs=1, name=theatre.name(f"{node.name}_Loop"))
    loop.outputs[0].name = theatre.name(f"{node.name}_attended_all")
    loop.outputs[0].type = ir.TensorType(kind)
    theatre.graph.insert_before(node, loop)
    import numpy as np

    heads = int(node.attributes["num_heads"].value)
    split = theatre.weight("split_heads", np.asarray([0, 0, heads, -1], dtype=np.int64))
    return theatre.add(node, "Reshape", [loop.outputs[0], split], dtype=kind)
