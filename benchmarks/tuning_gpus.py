"""Fine-tuning on several GPUs of one machine beside one of them: data parallel, and with shares of the base (fsdp).

    python benchmarks/tuning_gpus.py [--processes 2] [--steps 30] [--tiny]

Phi-3-mini's shape with random weights, rows of 2048 tokens, LoRA r64. Each variant is a run of torchrun of its own. One
line a variant: tokens a second of all GPUs together, peak memory of the first, losses.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tuning_runs import long_rows, make_model, ours

_ROWS = 8
"""Rows of a step, however many GPUs share them."""


def one(name: str, folder: Path, steps: int, *, tiny: bool) -> None:
    """Run one variant in this process, which torchrun has started; the first prints."""
    processes = int(os.environ["WORLD_SIZE"])
    length, vocabulary = (64, 1000) if tiny else (2048, 32000)
    lora = {"r": 8 if tiny else 64, "lora_alpha": 64, "target_modules": ["o_proj", "qkv_proj"]}
    arguments: dict[str, Any] = {"torch_compile": not tiny, "fsdp": name.startswith("sharded")}
    if name == "sharded-keeping":
        arguments["gradient_checkpointing"] = False
    result = ours(
        folder,
        long_rows(_ROWS * steps, length, vocabulary),
        steps,
        batch=1,
        accumulation=_ROWS // processes,
        lora=lora,
        arguments=arguments,
        **({"memory": "smallest"} if name == "smallest" else {}),
    )
    if os.environ["RANK"] == "0":
        losses = result.pop("losses")
        shown = {k: result[k] for k in ("tokens_per_second", "step", "peak", "held", "notes", "forecast")}
        print(json.dumps({"name": name, "processes": processes, **shown, "losses": losses}), flush=True)


def main() -> None:
    """Run the variants and print a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "drupe-benchmark")
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    folder = args.models / ("tiny" if args.tiny else "full") / "phi3"
    if args.one:
        one(args.one, folder, args.steps, tiny=args.tiny)
        return
    make_model(folder, "phi3", args.tiny)
    rows: dict[str, dict[str, Any]] = {}
    variants = [("one", 1), ("parallel", args.processes), ("sharded", args.processes)]
    variants += [("sharded-keeping", args.processes), ("smallest", 1)]
    for name, processes in variants:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += [__file__, "--one", name, "--steps", str(args.steps), "--models", str(args.models)]
        done = subprocess.run([*command, *(["--tiny"] if args.tiny else [])], capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith('{"name"')]
        if not lines:
            print(f"{name} on {processes}: failed\n{done.stderr[-1500:]}", flush=True)
            continue
        rows[name] = json.loads(lines[0])
        losses = rows[name]["losses"]
        shown = {k: v for k, v in rows[name].items() if k != "losses"} | {"loss": [*losses[:2], "…", *losses[-2:]]}
        print(json.dumps(shown, ensure_ascii=False), flush=True)
    for name in rows.keys() - {"one"} if "one" in rows else ():
        ratio = rows[name]["tokens_per_second"] / rows["one"]["tokens_per_second"]
        gaps = [abs(a - b) for a, b in zip(rows[name]["losses"], rows["one"]["losses"], strict=True)]
        print(f"{name}: {ratio:.2f} × one GPU; losses differ by at most {max(gaps):.4f}")


if __name__ == "__main__":
    main()
