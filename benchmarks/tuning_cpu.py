"""Fine-tuning on a CPU: Drupe's loop beside transformers.Trainer with peft, on labelled phrases.

    python benchmarks/tuning_cpu.py --model FOLDER --data phrases.jsonl [--steps 30] [--threads 2]

LoRA r16 on all linear layers, 16 rows a step, loss on the answer only, the same rows in the same order from the same
initial values; 300 unique phrases are held out. Prints rows a second (median of the second half) and held-out accuracy
with its 95 % interval (Wilson).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from tuning_elastic import read
from tuning_runs import ours, trainer

from drupe.core.data import Sample
from drupe.core.statistics.proportions import wilson_interval


def accuracy(model: Any, held: Sequence[Sample]) -> dict[str, Any]:
    """Return the share of rows whose answer's first token is the likeliest, and its interval."""
    right = 0
    model.eval()
    with torch.no_grad():
        for sample in held:
            labels: Any = sample.inputs["labels"]
            prompt = int((labels == -100).sum())
            ids = torch.from_numpy(sample.inputs["input_ids"][:prompt])[None]
            right += int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax()) == labels[prompt]
    interval = wilson_interval(right, len(held))
    return {"accuracy": round(right / len(held), 4), "interval": [round(bound, 4) for bound in interval]}


def main() -> None:
    """Run the variants and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--only", nargs="*", default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.ERROR)
    from transformers import AutoTokenizer

    train, held = read(args.data, AutoTokenizer.from_pretrained(args.model))
    rows = train[: 16 * args.steps]
    common: dict[str, Any] = {
        "batch": 16,
        "accumulation": 1,
        "lora": {"r": 16, "lora_alpha": 16, "target_modules": "all-linear"},
        "rate": args.rate,
        "after": lambda model: accuracy(model, held),
    }
    variants = {
        "drupe": lambda: ours(args.model, rows, args.steps, **common, torch_dtype="float32"),
        "trainer": lambda: trainer(args.model, rows, args.steps, **common, dtype=torch.float32),
        "drupe-bfloat16": lambda: ours(args.model, rows, args.steps, **common, torch_dtype="bfloat16"),
    }
    results = {}
    for name, run in variants.items():
        if args.only and name not in args.only:
            continue
        results[name] = run()
        shown = {k: results[name][k] for k in ("rows_per_second", "step", "after")}
        shown["loss"] = [*results[name]["losses"][:2], *results[name]["losses"][-2:]]
        shown |= {k: results[name][k] for k in ("forecast", "notes") if k in results[name]}
        print(f"{name}: {json.dumps(shown)}", flush=True)
    if {"drupe", "trainer"} <= results.keys():
        ratio = results["drupe"]["rows_per_second"] / results["trainer"]["rows_per_second"]
        print(f"drupe: {ratio:.2f} × the rows a second of Trainer + peft")


if __name__ == "__main__":
    main()
