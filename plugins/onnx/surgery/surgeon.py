"""The base of surgeons, and what they cut with: nodes and weights under free names, values in place of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from drupe.core.config import PluginConfig
from drupe.core.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from drupe.plugins.onnx.surgery.specs import SurgeonSpec

__all__ = ["Surgeon", "Theatre", "all_nodes", "constant", "single_use"]


class Surgeon:
    """One kind of change to a graph. `operate` is called on any graph; where there is nothing to do, it does nothing.

    version: raise it when the same graph would now become another.
    """

    Config: ClassVar[type[PluginConfig]] = PluginConfig
    version: ClassVar[int] = 1

    def __init__(self, spec: SurgeonSpec) -> None:
        self.spec = spec

    def operate(self, model: Any, config: Any) -> int:
        """Change the onnx_ir.Model in place and return at how many places. Raises ConfigError for a wrong config."""
        raise NotImplementedError

    def fail(self, message: str) -> ConfigError:
        """Return an error that names the surgeon."""
        return ConfigError(f"GraphSurgeries: {self.spec.name}: {message}")


def all_nodes(model: Any) -> Iterator[Any]:
    """The nodes of a model's graph and of the graphs inside its nodes, as they were at the start."""
    yield from list(model.graph.all_nodes())


def constant(value: Any) -> np.ndarray | None:
    """Return what a value is, where it is the same for every input: a weight or a Constant's output; else None."""
    import onnx_ir as ir

    if value is None or (value.is_graph_input() and not value.is_initializer()):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    found: np.ndarray | None = None if tensor is None else tensor.numpy()
    return found


def single_use(value: Any) -> bool:
    """Whether one node reads the value once, and nothing else does."""
    return not value.is_graph_output() and len(tuple(value.uses())) == 1


class Theatre:
    """Where one graph is operated on: makes nodes and weights with names that are free."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self._names = {*graph.initializers, *(value.name for value in graph.inputs)}
        for node in graph.all_nodes():
            self._names |= {node.name, *(value.name for value in node.outputs)}

    def name(self, wanted: str) -> str:
        """Return the wanted name, or the first free one that begins like it."""
        name, number = wanted, 1
        while name in self._names:
            name, number = f"{wanted}_{number}", number + 1
        self._names.add(name)
        return name

    def weight(self, name: str, array: Any) -> Any:
        """Add a weight and return its value. array: a numpy array or an onnx_ir tensor."""
        import onnx_ir as ir

        free = self.name(name)
        tensor = ir.tensor(array, name=free)
        value = ir.Value(name=free, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        self.graph.register_initializer(value)
        return value

    def add(
        self,
        before: Any,
        op_type: str,
        inputs: Sequence[Any],
        *,
        domain: str = "",
        name: str | None = None,
        dtype: Any = None,
        num_outputs: int = 1,
        **attributes: Any,
    ) -> Any:
        """Insert a node before another and return its output, or its outputs where it has several."""
        import onnx_ir as ir

        node = ir.node(
            op_type,
            inputs,
            {key: value for key, value in attributes.items() if value is not None},
            domain=domain,
            num_outputs=num_outputs,
            name=self.name(name or f"{before.name or before.op_type}_{op_type}"),
        )
        for index, output in enumerate(node.outputs):
            output.name = self.name(f"{node.name}_output_{index}")
            if dtype is not None:
                output.type = ir.TensorType(dtype)
        if domain and domain not in self.graph.opset_imports:
            self.graph.opset_imports[domain] = 1
        self.graph.insert_before(before, node)
        return node.outputs[0] if num_outputs == 1 else node.outputs

    def put(self, new: Any, old: Any) -> None:
        """Put a value in another's place, for the graph's outputs as well; what then has no reader is removed."""
        node = old.producer()
        if new.shape is None:
            new.shape = old.shape
        if new.type is None:
            new.type = old.type
        if old.is_graph_output():
            name = old.name
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            old.name = self.name(f"{name}_replaced")
            new.name = name
        else:
            old.replace_all_uses_with(new)
        if node is not None:
            self.drop(node)

    def drop(self, node: Any) -> None:
        """Remove a node that nobody reads, and those before it that are then read by nobody, and their weights."""
        if any(tuple(output.uses()) or output.is_graph_output() for output in node.outputs):
            return
        inputs = [value for value in node.inputs if value is not None]
        graph = node.graph
        graph.remove(node, safe=True)
        for value in inputs:
            if tuple(value.uses()) or value.is_graph_output():
                continue
            producer = value.producer()
            if producer is not None and producer.graph is not None:
                self.drop(producer)
            elif value.is_initializer() and value.name in graph.initializers:
                del graph.initializers[value.name]
