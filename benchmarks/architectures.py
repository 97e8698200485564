"""Every pass on tiny models of many architectures: what works, what is refused, what goes wrong.

    python benchmarks/architectures.py --out FOLDER [--only NAME …] [--passes NAME …]
    python benchmarks/architectures.py --out FOLDER --report

Each architecture runs in a process of its own and adds lines to FOLDER/rows.jsonl; a run that was stopped goes on. A
result is compared with its source on padded batches of several sizes and lengths, loaded by plain onnxruntime,
onnxruntime-genai, or transformers. Outcomes: works; refused (a message, before or while it worked); wrong (other
outputs, or nothing done); traceback (an error that is no message).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# Not this folder, first where a script is run: the builder of onnxruntime-genai imports a module `quantization`.
if str(Path(__file__).resolve().parent) in sys.path:
    sys.path.remove(str(Path(__file__).resolve().parent))

from benchmarks.architecture_models import ARCHITECTURES
from benchmarks.architecture_report import markdown
from benchmarks.architecture_trials import (
    EIGHT,
    EXACT,
    FOUR,
    HALF,
    Trial,
    Wrong,
    compare_genai,
    compare_graph,
    compare_network,
    compare_steps,
    exporter,
    session,
)
from drupe.core.errors import DrupeError
from drupe.core.model import Model
from drupe.plugins.genai.architectures import buildable

Case = Callable[[Trial], float]
_STEPS = {"max_steps": 3, "learning_rate": 0.01, "per_device_train_batch_size": 2}


def _graph_pass(name: str, limit: float, *, traced: bool = False, **config: Any) -> Case:
    def case(trial: Trial) -> float:
        return compare_graph(trial, trial.run(name, trial.graph(traced=traced), **config), limit)

    return case


def _stepped_pass(name: str, limit: float, *, traced: bool = False, **config: Any) -> Case:
    def case(trial: Trial) -> float:
        return compare_steps(trial, trial.run(name, trial.stepped(traced=traced), **config), limit)

    return case


def _weights(name: str, limit: float, *, build: bool = False, changed: bool = True, **config: Any) -> Case:
    def case(trial: Trial) -> float:
        result = trial.run(name, trial.source, **config)
        error = compare_network(trial, result, limit, changed=changed)
        if not build or trial.architecture.model not in buildable():
            return error
        return max(error, compare_genai(trial, trial.run("ModelBuilder", result, shared_embeddings=False), limit))

    return case


def _imported(trial: Trial) -> float:
    return compare_network(trial, trial.source, EXACT)


def _export(traced: bool) -> Case:
    return lambda trial: compare_graph(trial, trial.graph(traced=traced), EXACT)


def _steps(traced: bool) -> Case:
    return lambda trial: compare_steps(trial, trial.stepped(traced=traced), EXACT)


def _fixed(trial: Trial) -> float:
    graph = trial.graph()
    batch = trial.batches[-1]
    inputs = [item.name for item in session(graph).get_inputs()]
    shape = next(iter(batch.values())).shape
    known = {**{k: list(v.shape) for k, v in batch.items()}, "token_type_ids": list(shape)}
    if lacking := [name for name in inputs if name not in known]:
        raise Wrong(f"the graph wants {', '.join(lacking)}")
    result = trial.run("DynamicToFixedShape", graph, input_name=inputs, input_shape=[known[name] for name in inputs])
    left = [item.name for item in session(result).get_outputs() if not all(isinstance(n, int) for n in item.shape)]
    if left:
        raise Wrong(f"{', '.join(left)} still has open axes")
    whole = trial.batches, trial.expected
    try:
        trial.batches, trial.expected = whole[0][-1:], whole[1][-1:]
        return compare_graph(trial, result, EXACT)
    finally:
        trial.batches, trial.expected = whole


def _split(trial: Trial) -> float:
    marked = trial.run("CaptureSplitInfo", trial.source, num_splits=2)
    parts = trial.run("SplitModel", trial.run("OnnxConversion", marked, **exporter(True)))
    return compare_graph(trial, trial.run("ComposeOnnxModels", parts), EXACT)


def _tuned(name: str, **config: Any) -> Case:
    def case(trial: Trial) -> float:
        adapted = trial.run(name, trial.source, train_data_config="data", training_args=_STEPS, r=4, **config)
        before = compare_network(trial, adapted, 2.0, changed=True)
        merged = trial.run("MergeAdapterWeights", adapted)
        trial.expected, kept = [_said(adapted, batch) for batch in trial.batches], trial.expected
        try:
            return min(before, compare_network(trial, merged, EXACT))
        finally:
            trial.expected = kept

    return case


def _said(model: Model, batch: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from drupe.plugins.huggingface.loading import load_model

    with torch.inference_mode():
        out = load_model(model, dtype="float32")(
            **{name: torch.from_numpy(value) for name, value in batch.items()}, return_dict=True
        )
    return {k: v.numpy() for k, v in out.items() if isinstance(v, torch.Tensor)}


def _extracted(trial: Trial) -> float:
    adapted = trial.run("LoRA", trial.source, train_data_config="data", training_args=_STEPS, r=4)
    trial.expected, kept = [_said(adapted, batch) for batch in trial.batches], trial.expected
    try:
        graph = trial.run("OnnxConversion", adapted, **exporter(True))
        compare_graph(trial, graph, EXACT)
        return compare_graph(trial, trial.run("ExtractAdapters", graph, make_inputs=False), EXACT)
    finally:
        trial.expected = kept


def _trained(trial: Trial) -> float:
    trained = trial.run(
        "QuantizationAwareTraining", trial.source, train_data_config="data", num_steps=3, train_batch_size=4,
        learning_rate=1e-5,
    )  # fmt: skip
    compare_network(trial, trained, 0.5, changed=True)
    trial.expected, kept = [_said(trained, batch) for batch in trial.batches], trial.expected
    try:
        return compare_graph(trial, trial.run("OnnxConversion", trained, **exporter(True)), EIGHT / 4)
    finally:
        trial.expected = kept


def _built(limit: float, **config: Any) -> Case:
    return lambda trial: compare_genai(trial, trial.run("ModelBuilder", trial.source, **config), limit)


def _mixed(trial: Trial) -> float:
    noted = trial.run("SelectiveMixedPrecision", trial.source)
    result = trial.run("Rtn", noted, group_size=32, lm_head=True)
    return compare_network(trial, result, FOUR, changed=True)


_GRAPH: Mapping[str, Case] = {
    "HfModel": _imported,
    "OnnxConversion": _export(False),
    "OnnxConversion, traced": _export(True),
    "OrtTransformersOptimization": _graph_pass("OrtTransformersOptimization", EXACT),
    "OrtTransformersOptimization, traced": _graph_pass("OrtTransformersOptimization", EXACT, traced=True),
    "OrtTransformersOptimization, float16": _graph_pass("OrtTransformersOptimization", HALF, traced=True, float16=True),
    "OnnxPeepholeOptimizer": _graph_pass("OnnxPeepholeOptimizer", EXACT),
    "OnnxPeepholeOptimizer, traced": _graph_pass("OnnxPeepholeOptimizer", EXACT, traced=True, onnxslim=True),
    "OnnxDynamicQuantization": _graph_pass("OnnxDynamicQuantization", EIGHT),
    "OnnxStaticQuantization": _graph_pass("OnnxStaticQuantization", 3 * EIGHT, data_config="data"),
    "OnnxFloatToFloat16": _graph_pass("OnnxFloatToFloat16", HALF),
    "OnnxFloatToFloat16, traced": _graph_pass("OnnxFloatToFloat16", HALF, traced=True, keep_io_types=True),
    "OrtMixedPrecision": _graph_pass("OrtMixedPrecision", HALF),
    "DynamicToFixedShape": _fixed,
    "OnnxOpVersionConversion": _graph_pass("OnnxOpVersionConversion", EXACT, target_opset=21),
    "OnnxOpVersionConversion, older": _graph_pass("OnnxOpVersionConversion", EXACT, traced=True, target_opset=18),
    "OnnxBlockWiseRtnQuantization": _graph_pass("OnnxBlockWiseRtnQuantization", FOUR, block_size=32),
    "OnnxKQuantQuantization": _graph_pass("OnnxKQuantQuantization", FOUR, block_size=32),
    "OnnxHqqQuantization": _graph_pass("OnnxHqqQuantization", FOUR, block_size=32),
    "OnnxBnb4Quantization": _graph_pass("OnnxBnb4Quantization", FOUR),
    "SplitModel": _split,
}
_DECODER: Mapping[str, Case] = {
    "OnnxConversion, past": _steps(False),
    "OnnxConversion, past, traced": _steps(True),
    "OrtTransformersOptimization, past": _stepped_pass("OrtTransformersOptimization", EXACT),
    "OrtTransformersOptimization, past, traced": _stepped_pass("OrtTransformersOptimization", EXACT, traced=True),
    "OnnxDynamicQuantization, past": _stepped_pass("OnnxDynamicQuantization", EIGHT),
    "OnnxBlockWiseRtnQuantization, past": _stepped_pass("OnnxBlockWiseRtnQuantization", FOUR, block_size=32),
    "ModelBuilder": _built(EXACT, precision="fp32"),
    "ModelBuilder, int4": _built(FOUR, precision="int4"),
    "Rtn": _weights("Rtn", FOUR, build=True, group_size=32),
    "Gptq": _weights("Gptq", FOUR, build=True, group_size=32, data_config="data", nsamples=8, seqlen=32),
    "AutoAWQQuantizer": _weights(
        "AutoAWQQuantizer", FOUR, build=True, group_size=32, data_config="data", nsamples=8, seqlen=32
    ),
    "AutoRound": _weights(
        "AutoRound", FOUR, build=True, group_size=32, data_config="data", nsamples=8, seqlen=32, iters=1
    ),
    "QuaRot": _weights("QuaRot", EXACT, changed=False),
    "SliceGPT": _weights("SliceGPT", 2.0, calibration_data_config="data", calibration_nsamples=8),
    "SelectiveMixedPrecision": _mixed,
}
_TRAINED: Mapping[str, Case] = {"QuantizationAwareTraining": _trained}
_TUNED: Mapping[str, Case] = {
    "LoRA": _tuned("LoRA"),
    "DoRA": _tuned("DoRA"),
    "QLoRA": _tuned("QLoRA"),
    "ExtractAdapters": _extracted,
}


def cases(kind: str) -> Mapping[str, Case]:
    """Return what is tried on models of a kind."""
    if kind == "decoder":
        return {**_GRAPH, **_DECODER, **_TUNED}
    return {**_GRAPH, **_TRAINED}


def tried(name: str, passes: set[str], done: set[str], out: Path) -> None:
    """Run an architecture's cases in this process, adding a line for each."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(1)
    architecture = ARCHITECTURES[name]
    with tempfile.TemporaryDirectory() as scratch:
        trial: Trial | None = None
        for label, case in cases(architecture.kind).items():
            if label in done or (passes and label not in passes and label.split(",")[0] not in passes):
                continue
            started = time.monotonic()
            row: dict[str, Any] = {"architecture": name, "pass": label}
            # A case that ends the process is found here when the run goes on.
            (out / f"{name}.at").write_text(label)
            try:
                with (
                    (out / "log.txt").open("a") as log,
                    contextlib.redirect_stdout(log),
                    contextlib.redirect_stderr(log),
                ):
                    trial = trial or Trial(architecture, Path(scratch))
                    row |= {"outcome": "works", "error": case(trial)}
            except Wrong as error:
                row |= {"outcome": "wrong", "message": str(error)}
            except DrupeError as error:
                row |= {"outcome": "refused", "message": str(error)[:600], "kind": type(error).__name__}
            except Exception as error:
                text = "".join(traceback.format_exception(error))
                row |= {"outcome": "traceback", "message": f"{type(error).__name__}: {str(error)[:300]}", "text": text}
            row["seconds"] = round(time.monotonic() - started, 2)
            with (out / "rows.jsonl").open("a") as handle:
                handle.write(json.dumps(row) + "\n")
        (out / f"{name}.at").unlink(missing_ok=True)


def read(out: Path) -> list[dict[str, Any]]:
    path = out / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--passes", nargs="*", default=[])
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--again", action="store_true", help="run cases that have a line already")
    parser.add_argument("--here", action="store_true", help="in this process")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if arguments.report:
        rows = {(row["architecture"], row["pass"]): row for row in read(out)}
        print(markdown(rows, list(ARCHITECTURES), {name: entry.kind for name, entry in ARCHITECTURES.items()}))
        return
    for name in arguments.only or ARCHITECTURES:
        done = {row["pass"] for row in read(out) if row["architecture"] == name}
        if arguments.here:
            tried(name, set(arguments.passes), set() if arguments.again else done, out)
            continue
        command = [sys.executable, __file__, "--out", str(out), "--only", name, "--here"]
        command += ["--passes", *arguments.passes] if arguments.passes else []
        status = subprocess.run([*command, *(["--again"] if arguments.again else [])]).returncode
        at = out / f"{name}.at"
        if status and at.is_file():
            row = {"architecture": name, "pass": at.read_text(), "outcome": "traceback", "message": f"exit {status}"}
            with (out / "rows.jsonl").open("a") as handle:
                handle.write(json.dumps(row) + "\n")
        counted: dict[str, int] = {}
        for row in read(out):
            if row["architecture"] == name:
                counted[row["outcome"]] = counted.get(row["outcome"], 0) + 1
        print(name, counted, flush=True)


if __name__ == "__main__":
    main()
