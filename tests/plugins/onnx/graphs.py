"""What the tests of graph passes share: running one by name, and what plain onnxruntime says of its result."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from drupe.core.accelerators import Accelerator
from drupe.core.context import JobContext
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.testing import make_context

CPU = Accelerator("cpu", "CPUExecutionProvider")


def run_pass(name: str, model: Model, folder: Path, *, context: JobContext | None = None, **config: Any) -> Model:
    """Run a pass and stage its result: the files that it kept of its input are copied beside those it wrote."""
    subject = get_registry().create("drupe_passes", name)
    context = context or make_context(folder, accelerator=CPU)
    result = subject(model, type(subject).Config.model_validate(config), context)
    for file in result.files:
        target = context.output_dir / file
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model.folder / file, target)
    staged: Model = result.at(context.output_dir)
    return staged


def graph_file(model: Model) -> Path:
    return next(model.folder.glob("*.onnx"))


def proto_of(model: Model) -> Any:
    return onnx.load(str(graph_file(model)))


def kinds(model: Model) -> dict[str, int]:
    """How many nodes of each operator the graph has."""
    found: dict[str, int] = {}
    for node in proto_of(model).graph.node:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


def answers(model: Model, batch: dict[str, np.ndarray], *, as_written: bool = False) -> list[np.ndarray]:
    """What plain onnxruntime makes of a batch. as_written: without fusing the graph's operators into others."""
    settings = ort.SessionOptions()
    if as_written:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(graph_file(model)), settings, providers=["CPUExecutionProvider"])
    values: list[np.ndarray] = session.run(None, batch)
    return values


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def saved(folder: Path, text: str, weights: dict[str, np.ndarray] | None = None, *, check: bool = True) -> Model:
    """A model of a graph that is written as text; weights: initializers by name; check: by onnx's own checker."""
    from onnx import numpy_helper

    proto = onnx.parser.parse_model(text)
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    for name, value in (weights or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    if check:
        onnx.checker.check_model(proto)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, folder / "model.onnx")
    return Model.from_dir("onnx", folder, {"onnx_file": "model.onnx"})
