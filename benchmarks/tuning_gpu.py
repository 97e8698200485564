"""Fine-tuning on one GPU: Drupe's loop beside transformers.Trainer with peft, in one process on one card.

    python benchmarks/tuning_gpu.py [--only NAME ...] [--steps 50] [--tiny] [--profile] [--json FILE]

Phi-3-mini's shape with random weights (3.8 B, bfloat16), rows of 2048 tokens, four a step, LoRA r64 on o_proj and
qkv_proj; and SmolLM2-135M's shape on short rows. One line a variant: tokens a second, peak memory, last losses, and the
forecast beside what was measured. --tiny runs the same on small shapes, on a CPU too, to try the file out.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tuning_runs import CUDA, long_rows, make_model, ours, padded_to, short_rows, trainer


def cramped(run: Callable[[], dict[str, Any]], share: float) -> dict[str, Any]:
    """Run with only a share of the card, which the plan does not know of."""
    if CUDA:
        torch.cuda.set_per_process_memory_fraction(share)
    try:
        return run()
    finally:
        if CUDA:
            torch.cuda.set_per_process_memory_fraction(1.0)


def main() -> None:
    """Run the variants and print a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "drupe-benchmark")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("drupe.job").setLevel(logging.INFO)
    logging.getLogger("drupe.job").addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger("drupe.job").propagate = False
    length, vocabulary = (64, 1000) if args.tiny else (2048, 32000)
    folder = args.models / ("tiny" if args.tiny else "full")
    phi, small = folder / "phi3", folder / "smollm2"
    long = long_rows(4 * args.steps, length, vocabulary)
    short = short_rows(16 * args.steps, 1000 if args.tiny else 49152)
    lora = {"r": 8 if args.tiny else 64, "lora_alpha": 64, "target_modules": ["o_proj", "qkv_proj"]}
    wide = {"r": 8 if args.tiny else 16, "lora_alpha": 16, "target_modules": "all-linear"}
    results: dict[str, dict[str, Any]] = {}
    big: dict[str, Any] = {"batch": 1, "accumulation": 4, "lora": lora}
    many: dict[str, Any] = {"batch": 16, "accumulation": 1, "lora": wide}
    # Fifty steps are too few to compile for; thousands, as users train, are not.
    fast = {"torch_compile": True}
    few = max(6, args.steps // 4)

    def limit(name: str) -> float:
        """The memory that a variant took, for another to stay within."""
        return float(results[name]["peak"]) or 1000.0 if name in results else {"trainer-lora": 16.5}.get(name, 14.3)

    variants: dict[str, Callable[[], dict[str, Any]]] = {
        "trainer-lora": lambda: trainer(phi, long, args.steps, **big),
        "lora-same-memory": lambda: ours(
            phi, long, args.steps, **big, memory=limit("trainer-lora"), arguments=fast, profile=args.profile
        ),
        "lora-card": lambda: ours(phi, long, args.steps, **big, arguments=fast, profile=args.profile),
        "lora-smallest": lambda: ours(phi, long, few, **big, memory="smallest", arguments=fast),
        "lora-out-of-memory": lambda: cramped(lambda: ours(phi, long, few, **big, memory=70.0, arguments=fast), 0.25),
        "trainer-qlora": lambda: trainer(phi, long, few, **big, four_bits=True),
        "trainer-qlora-recompute": lambda: trainer(phi, long, few, **big, four_bits=True, recompute=True),
        "qlora-same-memory": lambda: ours(
            phi,
            long,
            few,
            **big,
            method="QLoRA",
            double_quant=True,
            memory=limit("trainer-qlora"),
            arguments=fast,
            profile=args.profile,
        ),
        "qlora-smallest": lambda: ours(
            phi,
            long,
            few,
            **big,
            method="QLoRA",
            double_quant=True,
            memory="smallest",
            arguments=fast,
        ),
        "short-trainer-256": lambda: trainer(small, short, few, **many, pad_to=256),
        "short-trainer-longest": lambda: trainer(small, short, args.steps, **many),
        "short-packed": lambda: ours(small, short, args.steps, **many, profile=args.profile),
        "short-packed-compiled": lambda: ours(small, short, args.steps, **many, arguments=fast),
        "short-padded-256": lambda: ours(small, padded_to(short, 256), few, **many, packing=False),
        "short-padded": lambda: ours(small, short, args.steps, **many, packing=False),
    }
    for name, run in variants.items():
        if args.only is not None and not any(name.startswith(wanted) for wanted in args.only):
            continue
        make_model(phi, "phi3", args.tiny) if "short" not in name else make_model(small, "smollm2", args.tiny)
        begun = time.perf_counter()
        try:
            result = run()
        except Exception as fault:
            logging.exception("%s failed", name)
            result = {"failed": f"{type(fault).__name__}: {fault}"}
        result["whole"] = round(time.perf_counter() - begun, 1)
        results[name] = result
        shown = {k: v for k, v in result.items() if k != "losses"}
        shown["loss"] = [*result.get("losses", [])[:2], "…", *result.get("losses", [])[-3:]]
        print(f"{name}: {json.dumps(shown, ensure_ascii=False)}", flush=True)
    for ours_name in ("lora-same-memory", "lora-card"):
        pair = results.get("trainer-lora", {}), results.get(ours_name, {})
        if all("losses" in each for each in pair):
            gaps = [abs(a - b) for a, b in zip(pair[0]["losses"], pair[1]["losses"], strict=False)]
            ratio = pair[1]["tokens_per_second"] / pair[0]["tokens_per_second"]
            print(f"{ours_name}: {ratio:.2f} × Trainer; losses differ by {np.mean(gaps):.4f}, at most {max(gaps):.4f}")
    if args.json is not None:
        card = torch.cuda.get_device_name() if CUDA else "cpu"
        args.json.write_text(json.dumps({"card": card, "torch": torch.__version__, "results": results}, indent=1))


if __name__ == "__main__":
    main()
