"""Tells what was asked for by name and found nothing in a graph: one notice for each graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from drupe.core.context import PassContext
from drupe.plugins.onnx.graphs import inner_graphs

__all__ = ["absent_operators", "tell_idle"]


def tell_idle(pass_name: str, graph: str, idle: Sequence[str], context: PassContext, hint: str = "") -> None:
    """Tell, in the log and the report, that options changed nothing. graph: its file; idle: what was asked for."""
    if not idle:
        return
    context.report.setdefault("without_effect", {})[graph] = list(idle)
    more = f"; {hint}" if hint else ""
    context.log.warning("%s: %s found nothing to change in %s%s", pass_name, ", ".join(idle), graph, more)


def absent_operators(proto: Any, **fields: Iterable[str] | None) -> list[str]:
    """Return "field (Operator, …)" for each field whose operators the graph does not have, nor the graphs inside it."""
    there = set(_operators(proto.graph))
    absent = {name: [kind for kind in kinds or () if kind not in there] for name, kinds in fields.items()}
    return [f"{name} ({', '.join(kinds)})" for name, kinds in absent.items() if kinds]


def _operators(graph: Any) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for inner in inner_graphs(node):
            yield from _operators(inner)
