"""Runs a public workflow on stand-ins and judges what it wrote: a part of sample_workflows.py and encoder.py."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "olive-workflows" / "current"
CALLS = 40

Call = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""One forward call: inputs by name → the output that is compared."""


@dataclass(frozen=True)
class Judged:
    """What a sample's output is beside its source."""

    file: str
    stand_in: str
    bytes_before: int
    bytes_after: int
    ms_before: float
    ms_after: float
    quality: str
    kept: bool
    """Whether the quality that the sample states holds."""


@dataclass(frozen=True)
class Sample:
    """A workflow. prepare: makes what the file names below a folder; judge: (source call, batches, quality text and
    verdict) of the source in that folder and the call of its output."""

    file: str
    stand_in: str
    prepare: Callable[[Path], None]
    judge: Callable[[Path, Call], tuple[Call, list[dict[str, np.ndarray]], str, bool]]
    source: str
    """The source's weights, a glob below the folder."""
    output: str = "last_hidden_state"
    changes: Mapping[str, Any] = field(default_factory=dict)


def prose() -> list[str]:
    """Return sentences of English prose: the topics of Python's own documentation."""
    import re
    from pydoc_data.topics import topics

    text = " ".join(value for _, value in sorted(topics.items()))
    found = (" ".join(part.split()) for part in re.split(r"(?<=[.])\s+(?=[A-Z])", text))
    return [sentence for sentence in found if 60 < len(sentence) < 300 and sentence.count("*") < 3]


def run_sample(sample: Sample, folder: Path) -> Judged:
    """Make the stand-ins, run the workflow through the command, and judge what it wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    sample.prepare(folder)
    document = json.loads((FOLDER / sample.file).read_text(encoding="utf-8"))
    for path, value in sample.changes.items():
        place = document
        *outer, last = path.split(".")
        for key in outer:
            place = place[key]
        place[last] = value
    (folder / "workflow.json").write_text(json.dumps(document, indent=1))
    sources = [path for path in folder.glob(sample.source) if path.is_file()]
    before = sum(path.stat().st_size for path in sources)
    command = [
        sys.executable,
        "-m",
        "drupe",
        "run",
        "workflow.json",
        "--output-dir",
        "out",
        "--cache-dir",
        "cache",
    ]
    command += ["--quiet", "--allow", "user-scripts", "--allow", "remote-code"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise SystemExit(f"{sample.file} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    graph = next(path for path in sorted((folder / "out").rglob("*.onnx")))
    ours = ort_call(graph, sample.output)
    theirs, batches, quality, kept = sample.judge(folder, ours)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(CALLS + 5):
        batch = batches[number % len(batches)]
        order = [(theirs, times[0]), (ours, times[1])]
        for call, seconds in order if number % 2 else order[::-1]:
            started = time.perf_counter()
            call(batch)
            if number >= 5:
                seconds.append(1000 * (time.perf_counter() - started))
    after = sum(p.stat().st_size for p in graph.parent.iterdir() if p.suffix in (".onnx", ".data"))
    return Judged(
        sample.file, sample.stand_in, before, after, *(statistics.median(s) for s in times), quality=quality, kept=kept
    )


def ort_call(graph: Path, output: str) -> Call:
    """Return a call of a graph on plain onnxruntime; inputs that it lacks are left out."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(str(graph), settings, providers=["CPUExecutionProvider"])
    wanted = {item.name for item in session.get_inputs()}
    names = [item.name for item in session.get_outputs()]
    name = output if output in names else names[0]

    def call(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        found: np.ndarray = session.run([name], {key: value for key, value in batch.items() if key in wanted})[0]
        return found

    return call


def torch_call(model: Any, output: str) -> Call:
    """Return a call of a transformers model."""
    import inspect

    import torch

    torch.set_num_threads(1)
    names = inspect.signature(model.forward).parameters

    def call(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            given = {key: torch.from_numpy(value) for key, value in batch.items() if key in names}
            found: np.ndarray = model(**given)[output].numpy()
        return found

    return call


def cosines(ours: Call, theirs: Call, batches: list[dict[str, np.ndarray]]) -> float:
    """Return the mean cosine between two models' outputs, a vector per token pooled by the mean."""
    found = []
    for batch in batches:
        a, b = (np.asarray(call(batch), dtype=np.float64) for call in (ours, theirs))
        if a.ndim == 3:
            a, b = a.mean(axis=1), b.mean(axis=1)
        found += list((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))
    return float(np.mean(found))


def accuracies(ours: Call, theirs: Call, batches: list[dict[str, np.ndarray]], classes: np.ndarray) -> tuple[str, bool]:
    """Return the accuracies of both models as a text, and whether the first is at most 0.02 less."""
    said = [
        np.array([int(np.asarray(call(batch)).reshape(-1).argmax()) for batch in batches]) for call in (ours, theirs)
    ]
    own, source = (float((answers == classes).mean()) for answers in said)
    return f"accuracy {own:.3f}, source {source:.3f} (at most 0.02 less), n = {len(classes)}", own >= source - 0.02
