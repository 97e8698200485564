"""Cuts a graph into pieces that run one after another, and puts pieces together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from drupe.core.errors import ConfigError, PassError
from drupe.plugins.onnx.graphs import inner_graphs, rename_values
from drupe.plugins.onnx.joining import same_functions, same_opsets
from drupe.plugins.onnx.stacks import node_path

__all__ = ["assign_nodes", "composed", "inputs_of", "pieces"]


def assign_nodes(pass_name: str, graph: Any, assignments: Mapping[str, int]) -> list[int]:
    """Return for each node of a graph the piece that it goes into.

    assignments: module name to piece. A node belongs to the module that its name begins with; where no node's does,
    to one that ends like it (exporters leave out what calls no module: /decoder for model.decoder). Others follow what
    they are calculated from; those that only depend on the graph's inputs go where they are first needed. Raises
    PassError where no node has such a name, or where a piece would need what a later one gives.
    """
    paths = [node_path(node.name) for node in graph.node]
    modules = _modules_of(set(paths), assignments)
    own = [_of_module(path, modules) for path in paths]
    if all(piece is None for piece in own):
        names = ", ".join(node.name or "''" for node in list(graph.node)[:4])
        raise PassError(
            f"{pass_name}: no node of the graph belongs to {', '.join(list(assignments)[:3])}…; they are named {names}…"
        )
    makers = {name: number for number, node in enumerate(graph.node) for name in node.output if name}
    found: list[int | None] = []
    for number, node in enumerate(graph.node):
        before = [found[makers[name]] for name in inputs_of(node) if name in makers and makers[name] < number]
        least = max((piece for piece in before if piece is not None), default=None)
        piece = own[number]
        if piece is not None and least is not None and piece < least:
            raise PassError(
                f"{pass_name}: node {node.name} is in piece {piece} and needs what piece {least} gives; "
                "modules must be split in the order in which they run"
            )
        found.append(least if piece is None else piece)
    users: dict[int, list[int]] = {}
    for number, node in enumerate(graph.node):
        for name in inputs_of(node):
            if name in makers:
                users.setdefault(makers[name], []).append(number)
    last = max(piece for piece in found if piece is not None)
    for number in reversed(range(len(found))):
        if found[number] is None:
            later = [piece for user in users.get(number, ()) if (piece := found[user]) is not None]
            found[number] = min(later, default=last)
    numbers = {piece: place for place, piece in enumerate(sorted({piece for piece in found if piece is not None}))}
    return [numbers[piece] for piece in found if piece is not None]


def _modules_of(paths: Set[tuple[str, ...]], assignments: Mapping[str, int]) -> dict[tuple[str, ...], int]:
    """Return the pieces by the modules' paths as the graph's nodes have them."""
    there = {path[:length] for path in paths for length in range(1, len(path) + 1)}
    found: dict[tuple[str, ...], int] = {}
    absent: list[tuple[tuple[str, ...], int]] = []
    for name, piece in assignments.items():
        path = node_path(name)
        if path in there:
            found[path] = piece
        else:
            absent.append((path, piece))
    for path, piece in absent:
        # A number alone names no module: layers.0 is the least.
        least = 2 if path[-1].isdigit() else 1
        for start in range(1, len(path) - least + 1):
            if path[start:] in there and path[start:] not in found:
                found[path[start:]] = piece
                break
    return found


def _of_module(path: tuple[str, ...], modules: Mapping[tuple[str, ...], int]) -> int | None:
    for length in range(len(path), 0, -1):
        if (piece := modules.get(path[:length])) is not None:
            return piece
    return None


def inputs_of(node: Any) -> Iterator[str]:
    """Yield the values that a node reads, those that graphs inside it take from around them as well."""
    yield from (name for name in node.input if name)
    for graph in inner_graphs(node):
        inside = {value.name for value in (*graph.input, *graph.initializer)}
        inside |= {name for inner in graph.node for name in inner.output}
        yield from (name for inner in graph.node for name in inputs_of(inner) if name not in inside)
        yield from (value.name for value in graph.output if value.name not in inside)


def pieces(proto: Any, places: Sequence[int], scratch: Path) -> list[Any]:
    """Return the models of the pieces. places: each node's piece. scratch: a file that may be written.

    A weight that several pieces use is in each of them. What one piece gives and another needs has its name in both.
    """
    from onnx import helper

    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    given = {value.name: value for value in graph.input if value.name not in weights}
    wanted = {value.name: value for value in graph.output}
    of_constant = {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
    makers = {
        name: place
        for node, place in zip(graph.node, places, strict=True)
        for name in node.output
        if name and name not in of_constant
    }
    needed: dict[str, set[int]] = {}
    for node, place in zip(graph.node, places, strict=True):
        for name in inputs_of(node):
            needed.setdefault(name, set()).add(place)
    if lost := [name for name in wanted if name not in makers]:
        raise PassError(
            f"the output {lost[0]} is an input or a constant of the graph, which no piece calculates; take it out"
        )
    cuts = [name for name, made in makers.items() if any(place != made for place in needed.get(name, ()))]
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    types = _types(proto, cuts, known, scratch)
    models = []
    for piece in range(max(places) + 1):
        nodes = [
            node
            for node, place in zip(graph.node, places, strict=True)
            if (piece in needed.get(node.output[0], ()) if node.op_type == "Constant" else place == piece)
        ]
        made = {name for node in nodes for name in node.output}
        # Equal text twice would be two inputs: names are taken once, in the order in which they are read.
        read = list(dict.fromkeys(name for node in nodes for name in inputs_of(node) if name not in made))
        outputs = [name for name in makers if name in made and (name in cuts or name in wanted)]
        part = helper.make_graph(
            nodes,
            f"{graph.name}_{piece}",
            [given[name] if name in given else types[name] for name in read if name not in weights],
            [wanted[name] if name in wanted else types[name] for name in outputs],
            [weights[name] for name in read if name in weights],
            value_info=[known[name] for name in made if name in known and name not in outputs],
        )
        model = helper.make_model(part, opset_imports=list(proto.opset_import), ir_version=proto.ir_version)
        model.producer_name, model.producer_version = proto.producer_name, proto.producer_version
        model.functions.extend(proto.functions)
        models.append(model)
    return models


def _types(proto: Any, names: Sequence[str], known: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """Return the value infos of values, asking ONNX Runtime for those whose type the graph does not tell."""
    import onnx
    import onnxruntime as ort

    from drupe.plugins.onnx.graphs import save_graph

    found = {name: known[name] for name in names if name in known and known[name].type.HasField("tensor_type")}
    missing = [name for name in names if name not in found]
    if not missing:
        return found
    asked = onnx.ModelProto()
    asked.CopyFrom(proto)
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing)
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = save_graph(asked, scratch.parent, scratch.name)
    try:
        session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise PassError(
            f"the types of {', '.join(missing[:3])}, which go from one piece to another, are not told, and ONNX "
            f"Runtime can't load the graph to find them: {error}"
        ) from error
    for item in session.get_outputs():
        if item.name in missing:
            if not item.type.startswith("tensor("):
                raise PassError(
                    f"the value {item.name} goes from one piece to another, and is a {item.type}; pieces give each "
                    "other tensors: name modules as block_to_split between which only tensors pass"
                )
            kind = {"float": "FLOAT", "double": "DOUBLE"}.get(item.type[7:-1], item.type[7:-1].upper())
            found[item.name] = onnx.helper.make_tensor_value_info(
                item.name, onnx.TensorProto.DataType.Value(kind), item.shape
            )
    return found


def composed(pass_name: str, models: Mapping[str, Any], kept: Sequence[str]) -> Any:
    """Return one model of several, run in order: what one gives feeds inputs of that name in those behind it.

    kept: values that stay outputs although another model takes them. Raises ConfigError where the models don't fit.
    """
    from onnx import helper

    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    nodes: list[Any] = []
    taken: set[str] = set()
    used: set[str] = set()
    types: dict[str, Any] = {}
    functions = same_functions(pass_name, *models.values())
    opsets = [helper.make_opsetid(*entry) for entry in same_opsets(pass_name, *models.values()).items()]
    for title, model in models.items():
        graph = model.graph
        own = {tensor.name for tensor in graph.initializer}
        for value in graph.input:
            if value.name in own:
                continue
            there = outputs.get(value.name) or inputs.get(value.name)
            if there is not None and not _alike(there, value):
                raise ConfigError(
                    f"{pass_name}: {title} takes {value.name} as {_text(value)}, and it is {_text(there)} before"
                )
            if value.name in outputs:
                used.add(value.name)
            else:
                inputs.setdefault(value.name, value)
        names = {value.name for value in graph.output}
        for name in sorted(names):
            if name in outputs or name in inputs:
                raise ConfigError(f"{pass_name}: {title} gives {name}, which there is before it; rename it")
        renamed = _renamed(title, graph, names | {value.name for value in graph.input}, taken, weights)
        for tensor in graph.initializer:
            tensor.name = renamed.get(tensor.name, tensor.name)
            weights.setdefault(tensor.name, tensor)
        for node in graph.node:
            rename_values(node, renamed)
            nodes.append(node)
            taken.update(node.output)
        outputs.update({value.name: value for value in graph.output})
        for value in graph.value_info:
            value.name = renamed.get(value.name, value.name)
            types[value.name] = value
    for number, node in enumerate(_doubles(nodes)):
        node.name = f"{node.name}_{number}"
    order = {name: place for place, name in enumerate(kept)}
    last = [value for name, value in outputs.items() if name not in used or name in order]
    last.sort(key=lambda value: order.get(value.name, len(order)))
    # Nothing tells the types of what a provider compiled but the graph itself.
    compiled = [name for node in nodes if node.op_type == "EPContext" for name in node.output]
    shown = {value.name for value in last}
    known = {**types, **outputs}
    told = [known[name] for name in compiled if name in known and name not in shown]
    graph = helper.make_graph(nodes, "composed", list(inputs.values()), last, list(weights.values()), value_info=told)
    version = max(model.ir_version for model in models.values())
    result = helper.make_model(graph, opset_imports=opsets, ir_version=version)
    result.functions.extend(functions)
    return result


def _renamed(title: str, graph: Any, fixed: set[str], taken: set[str], weights: Mapping[str, Any]) -> dict[str, str]:
    """Return new names for values inside a graph that are called as others are; equal weights stay one."""
    renamed = {}
    for tensor in graph.initializer:
        there = weights.get(tensor.name)
        same = there is not None and there.SerializeToString() == tensor.SerializeToString()
        if tensor.name in taken or (there is not None and not same):
            renamed[tensor.name] = f"{title}/{tensor.name}"
    for node in graph.node:
        for name in node.output:
            if name and name not in fixed and (name in taken or name in weights):
                renamed[name] = f"{title}/{name}"
    return renamed


def _doubles(nodes: Sequence[Any]) -> Iterator[Any]:
    seen: set[str] = set()
    for node in nodes:
        if node.name and node.name in seen:
            yield node
        seen.add(node.name)


def _alike(one: Any, other: Any) -> bool:
    a, b = one.type.tensor_type, other.type.tensor_type
    if a.elem_type != b.elem_type:
        return False
    if not (a.HasField("shape") and b.HasField("shape")):
        return True
    if len(a.shape.dim) != len(b.shape.dim):
        return False
    pairs = zip(a.shape.dim, b.shape.dim, strict=True)
    return all(not (x.dim_value and y.dim_value) or x.dim_value == y.dim_value for x, y in pairs)


def _text(value: Any) -> str:
    from onnx import TensorProto

    kind = value.type.tensor_type
    sizes = [dim.dim_param or dim.dim_value or "?" for dim in kind.shape.dim]
    return f"{TensorProto.DataType.Name(kind.elem_type).lower()}{sizes}".replace("'", "")
