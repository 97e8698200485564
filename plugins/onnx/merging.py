"""OptimumMerging: a decoder's first step and its later ones → one graph that chooses between them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.plugins.onnx.decoding import PAST, USE_CACHE
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig, check_loads
from drupe.plugins.onnx.graphs import (
    byte_size,
    companions,
    external_files,
    graph_paths,
    inner_graphs,
    save_graph,
    scrub_graph,
)
from drupe.plugins.onnx.joining import content_of, same_functions, same_opsets

__all__ = ["OptimumMerging", "OptimumMergingConfig", "merged"]

_INT32, _INT64 = 6, 7
"""Numbers of onnx.TensorProto.DataType."""


class OptimumMergingConfig(GraphPassConfig):
    """How the graph is written."""


class OptimumMerging(GraphPass):
    """Merges a decoder without past and one with past into one graph whose input use_cache_branch (bool, shape (1,))
    says which of them runs. The weights that both have are kept once.

    The components are told apart by their inputs: the one that takes past keys and values is the one with past. Others
    (an encoder) are an error: name the two decoders as components of OptimumConversion. A model that is one graph
    already, as newer versions of Optimum export it, stays as it is.

    Rules: 1. both give the same outputs, in names and order; a key or value of an encoder that only the first step
    gives is passed on by the later ones. 2. both use the same version of each operator set. 3. the merged graph gives
    what its branches gave: no node is changed.

    Passes that look for nodes in the graph itself find one If in it: fuse and quantize the decoders before.
    """

    Config: ClassVar[type[PassConfig]] = OptimumMergingConfig
    version = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """The result is one graph."""
        return super().plan(info, config, accelerator).with_(components=None, outputs=None)

    def run(self, model: Model, config: OptimumMergingConfig, context: PassContext) -> Model:
        """Write model.onnx, or decoder_model_merged.onnx where that is what the components lead to."""
        import onnx

        if model.kind != "composite":
            context.report["merged"] = "the model is one graph already"
            return model.derive()
        paths = graph_paths(model)
        if len(paths) != 2:
            names = ", ".join(str(component["name"]) for component in model.attributes["components"])
            raise ConfigError(
                f"{self.spec.name} merges two decoders, one without and one with past; the model has {len(paths)} "
                f"components ({names}). Name two as components of OptimumConversion"
            )
        graphs = {path.stem: onnx.load(str(path)) for path in paths}
        taking = {name for name, proto in graphs.items() if any(PAST.search(v.name) for v in proto.graph.input)}
        if len(taking) != 1 or len(graphs) != 2:
            raise ConfigError(
                f"{self.spec.name}: of {' and '.join(str(path.name) for path in paths)} "
                f"{'both take' if taking else 'none takes'} past keys and values; expected one that does and one not"
            )
        with_past = next(iter(taking))
        first = next(name for name in graphs if name != with_past)
        context.progress(0, 1, "merging")
        proto = merged(self.spec.name, graphs[first], graphs[with_past])
        scrub_graph(proto)
        external = config.save_as_external_data or any(external_files(path) for path in paths)
        # Saving takes out what is written beside the graph.
        size = byte_size(proto)
        written = save_graph(
            proto,
            context.output_dir,
            "decoder_model_merged.onnx" if first == "decoder_model" else "model.onnx",
            external=external,
            data_name=config.external_data_name,
            threshold=config.size_threshold,
        )
        del graphs, proto
        check_loads(self.spec.name, written, size, model.attributes, context)
        companions(model.folder, context.output_dir)
        context.progress(1, 1, "merged")
        kept = {key: value for key, value in model.attributes.items() if key not in ("components", "outputs")}
        return Model.from_dir("onnx", context.output_dir, {**kept, "onnx_file": written.name})


def merged(pass_name: str, first: Any, later: Any) -> Any:
    """Return the onnx.ModelProto that runs `later` where use_cache_branch is true, and `first` where it is not.

    Raises ConfigError for graphs of different operator sets, and PassError where they don't fit together otherwise.
    """
    from onnx import TensorProto, helper

    opsets = [helper.make_opsetid(*entry) for entry in same_opsets(pass_name, first, later).items()]
    functions = same_functions(pass_name, first, later)
    _pass_on(later, first)
    given = [[value.name for value in proto.graph.output] for proto in (first, later)]
    if sorted(given[0]) != sorted(given[1]):
        only = sorted(set(given[0]) ^ set(given[1]))
        raise PassError(f"{pass_name}: the decoders don't give the same outputs; only one gives {', '.join(only[:6])}")
    inputs = _inputs(pass_name, first, later)
    results = [(value.name, value.type.tensor_type.elem_type, _shape(value)) for value in first.graph.output]
    weights: dict[str, Any] = {}
    taken = {*inputs, *given[0], USE_CACHE}
    without = _branch(first, weights, "no_past", given[0], taken)
    with_past = _branch(later, weights, "with_past", given[0], taken)
    gate = helper.make_node("If", [USE_CACHE], given[0], name="use_cache", then_branch=with_past, else_branch=without)
    outputs = [helper.make_tensor_value_info(*result) for result in results]
    flag = helper.make_tensor_value_info(USE_CACHE, TensorProto.BOOL, [1])
    graph = helper.make_graph([gate], "merged", [*inputs.values(), flag], outputs, initializer=list(weights.values()))
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, producer_name=first.producer_name)
    model.ir_version = max(first.ir_version, later.ir_version)
    return model


def _branch(proto: Any, weights: dict[str, Any], title: str, outputs: Sequence[str], taken: Collection[str]) -> Any:
    """Return a graph as a branch; its weights go to those that both share. taken: names that weights can't have."""
    from onnx import helper

    graph = proto.graph
    held = {tensor.name for tensor in graph.initializer}
    known = {value.name: value.name for value in graph.input if value.name not in held} | _shared(
        proto, weights, title, taken
    )
    # A branch sees the inputs and weights of the graph around it; its own values must not have their names.
    _rename(graph, lambda name: known.get(name, f"{title}/{name}"))
    for node in graph.node:
        # Unnamed nodes stay so: equal names are refused.
        node.name = f"/{title}/{node.name.lstrip('/')}" if node.name else ""
    found = {value.name: value for value in graph.output}
    ordered = [found[f"{title}/{name}"] for name in outputs]
    return helper.make_graph(
        list(graph.node), title, [], ordered, initializer=list(graph.initializer), value_info=list(graph.value_info)
    )


def _pass_on(later: Any, first: Any) -> None:
    """Add to the later steps what only the first one computes and they are given: an encoder's keys and values."""
    from onnx import helper

    there = {value.name for value in later.graph.output}
    taken = {value.name: value for value in later.graph.input}
    for value in first.graph.output:
        source = taken.get(value.name.replace("present", "past_key_values", 1))
        if value.name not in there and source is not None and ".encoder." in value.name:
            later.graph.node.append(
                helper.make_node("Identity", [source.name], [value.name], name=f"pass_on/{value.name}")
            )
            kind = source.type.tensor_type.elem_type
            later.graph.output.append(helper.make_tensor_value_info(value.name, kind, _shape(source)))


def _inputs(pass_name: str, first: Any, later: Any) -> dict[str, Any]:
    """Return the inputs of both: those of the later steps, whose axes are the freer ones, and those of the first."""
    own = [{tensor.name for tensor in proto.graph.initializer} for proto in (first, later)]
    found: dict[str, Any] = {}
    for proto, weights in ((later, own[1]), (first, own[0])):
        for value in proto.graph.input:
            if value.name in weights:
                continue
            there = found.setdefault(value.name, value)
            if there.type.tensor_type.elem_type != value.type.tensor_type.elem_type:
                raise PassError(f"{pass_name}: the decoders take {value.name} in different types")
    free = {value.name: value for value in first.graph.input}
    for name, value in found.items():
        if name in free and not PAST.search(name):
            # A later step may have been exported for one token only; the first one takes any number.
            dims = zip(value.type.tensor_type.shape.dim, free[name].type.tensor_type.shape.dim, strict=False)
            for dim, other in dims:
                if other.dim_param and not dim.dim_param:
                    dim.dim_param = other.dim_param
    return found


def _shape(value: Any) -> list[int | str | None]:
    return [dim.dim_param or (dim.dim_value or None) for dim in value.type.tensor_type.shape.dim]


def _shared(proto: Any, weights: dict[str, Any], title: str, taken: Collection[str]) -> dict[str, str]:
    """Move a graph's weights to those of both, equal ones once, and return their names there.

    Single numbers and short lists of whole ones stay: they are shapes and axes, which ONNX Runtime wants to see beside
    the nodes that read them.
    """
    by_content = {content_of(tensor): name for name, tensor in weights.items()}
    names: dict[str, str] = {}
    for tensor in proto.graph.initializer:
        if not tensor.dims or (len(tensor.dims) == 1 and tensor.data_type in (_INT32, _INT64)):
            continue
        content = content_of(tensor)
        if content not in by_content:
            free = tensor.name not in weights and tensor.name not in taken
            name = tensor.name if free else f"{title}/{tensor.name}"
            copy = type(tensor)()
            copy.CopyFrom(tensor)
            copy.name = name
            weights[name] = copy
            by_content[content] = name
        names[tensor.name] = by_content[content]
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in names]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return names


def _rename(graph: Any, new: Callable[[str], str]) -> None:
    """Give every value of a graph, and of those inside it, the name that `new` has for it; "" stays: it is no value."""
    stack = [graph]
    while stack:
        part = stack.pop()
        for values in (part.input, part.output, part.value_info, part.initializer):
            for value in values:
                value.name = new(value.name)
        for node in part.node:
            for names in (node.input, node.output):
                renamed = [new(name) if name else name for name in names]
                del names[:]
                names.extend(renamed)
            stack.extend(inner_graphs(node))
