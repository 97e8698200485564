"""What an exporter's errors mean."""

from __future__ import annotations

import re
from collections.abc import Sequence

from drupe.core.errors import PassError

__all__ = ["ExporterFailed", "HoldsHereOnly", "exporter_failed"]


class ExporterFailed(PassError):
    """An exporter can't write a model; the other one may."""


class HoldsHereOnly(ExporterFailed):
    """An exporter wrote a graph that is the model for inputs of the example's sizes alone."""


def exporter_failed(error: BaseException, *, dynamo: bool) -> ExporterFailed:
    """Return what an exporter's error means: the operator that it has no ONNX for and the place in the module.

    torch.export tells both in the errors that its own stems from; the older exporter in its text and its graph.
    """
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    texts = [str(link).strip() for link in chain]
    operator = _first(r"(?:function found for <OpOverload\(op=|Exporting the operator )'([\w.:]+)'", texts)
    node = _first(r"translating node %(\w+)", texts)
    other = "use_dynamo_exporter: false" if dynamo else "use_dynamo_exporter: true"
    if operator is not None:
        where = f" (node {node})" if node else ""
        return ExporterFailed(
            f"the operator {operator}{where} has no counterpart in ONNX; replace it in the model, or try {other}, or "
            "another target_opset"
        )
    # The deepest cause says what it was; what stands above it tells of the exporter's own steps, in colours.
    said = next((text for text in reversed(texts) if text), type(error).__name__)
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", said).splitlines() if line.strip()]
    # What is announced stands in the next line.
    plain = " ".join(lines[:2])[:300] if lines[0].endswith(":") else lines[0]
    return ExporterFailed(f"the exporter failed: {plain}; try {other}, or another target_opset")


def _first(pattern: str, texts: Sequence[str]) -> str | None:
    return next((match[1] for text in texts if (match := re.search(pattern, text))), None)
