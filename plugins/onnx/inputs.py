"""What a graph is given when it runs. Imports nothing: those who read graphs and who read folders of them share it."""

from __future__ import annotations

from typing import Any

__all__ = ["graph_inputs"]


def graph_inputs(graph: Any) -> list[Any]:
    """Return the inputs of an onnx.GraphProto that are no weights, as it tells them."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]
