"""Fine-tuning on labelled phrases: Drupe's loop beside transformers.Trainer with peft, on a CPU or a GPU.

    python benchmarks/tuning_tone.py --model FOLDER_OR_GGUF --data phrases.jsonl [--steps 30] [--threads 2]

LoRA r16 on all linear layers, 16 rows a step, loss on the answer only, the same rows in the same order from the same
initial values; 300 unique phrases are held out. Rows are packed, padded to the longest of the batch, or to 256. Prints
rows a second (median of the second half) and held-out accuracy with its 95 % interval (Wilson).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from tuning_elastic import read
from tuning_runs import CUDA, DEVICE, ours, padded_to, trainer

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
            ids = torch.from_numpy(sample.inputs["input_ids"][:prompt])[None].to(DEVICE)
            right += (
                int(model.get_base_model()(input_ids=ids, use_cache=False).logits[0, -1].argmax()) == labels[prompt]
            )
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

    folder = args.model
    if folder.suffix == ".gguf":
        from drupe.plugins.huggingface.gguf import dequantize_gguf

        folder = Path(tempfile.mkdtemp()) / "model"
        dequantize_gguf(args.model, folder)
    train, held = read(args.data, AutoTokenizer.from_pretrained(folder))
    train = train * (-(-16 * args.steps // len(train)))
    rows = train[: 16 * args.steps]
    few = max(6, args.steps // 5)
    common: dict[str, Any] = {
        "batch": 16,
        "accumulation": 1,
        "lora": {"r": 16, "lora_alpha": 16, "target_modules": "all-linear"},
        "rate": args.rate,
        "after": lambda model: accuracy(model, held),
    }
    plain = {"torch_dtype": "bfloat16" if CUDA else "float32"}
    dtype = torch.bfloat16 if CUDA else torch.float32
    variants = {
        "drupe": lambda: ours(folder, rows, args.steps, **common, **plain, packing=True),
        "drupe-padded": lambda: ours(folder, rows, args.steps, **common, **plain, packing=False),
        "drupe-256": lambda: ours(folder, padded_to(rows, 256), few, **common, **plain, packing=False),
        "trainer": lambda: trainer(folder, rows, args.steps, **common, dtype=dtype),
        "trainer-256": lambda: trainer(folder, rows, few, **common, dtype=dtype, pad_to=256),
        "drupe-bfloat16": lambda: ours(folder, rows, args.steps, **common, torch_dtype="bfloat16"),
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
    for name in results.keys() - {"drupe"} if "drupe" in results else ():
        ratio = results["drupe"]["rows_per_second"] / results[name]["rows_per_second"]
        print(f"drupe: {ratio:.2f} × the rows a second of {name}")


if __name__ == "__main__":
    main()
