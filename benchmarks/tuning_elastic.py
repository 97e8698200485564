"""One elastic adapter beside one adapter for each rank: held-out loss and accuracy by rank, over several seeds.

    python benchmarks/tuning_elastic.py --model FOLDER_OR_GGUF --data phrases.jsonl [--seeds 5] [--json FILE]

Data: lines of {"phrase", "tone"}; 300 unique phrases are held out, the rest train. Prints, for each rank, the mean gap
of the elastic adapter's held-out loss to that of an adapter trained for this rank alone (same seed), with its 95 %
interval (t, paired by seed), both accuracies, and the time of the elastic run beside that of one other run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from drupe.core.context import JobContext, Resources
from drupe.core.data import Sample
from drupe.core.model import Model
from drupe.plugins.tuning import adapters, methods
from drupe.plugins.tuning.batches import layouts
from drupe.plugins.tuning.config import ElasticLoRAConfig, LoRAConfig
from drupe.plugins.tuning.network import evaluating
from drupe.plugins.tuning.plugin import drupe_passes
from drupe.plugins.tuning.rows import Row, rows_of
from drupe.plugins.tuning.session import Session

RANKS = [4, 8, 16, 32]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read(path: Path, tokenizer: Any) -> tuple[list[Sample], list[Sample]]:
    """Return the samples to train on and those held out, split by unique phrase."""
    unique: dict[str, Sample] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        key = hashlib.sha256(item["phrase"].encode()).hexdigest()
        prompt = tokenizer(f"Phrase: {item['phrase']}\nTone:").input_ids
        answer = [*tokenizer(f" {item['tone']}").input_ids, tokenizer.eos_token_id]
        ids = np.array(prompt + answer)
        labels = np.array([-100] * len(prompt) + answer)
        unique.setdefault(key, Sample(key[:12], {"input_ids": ids, "labels": labels}, item["tone"], key))
    ordered = [unique[key] for key in sorted(unique)]
    return ordered[300:], ordered[:300]


class Run:
    """One training run; `measure` gives held-out loss and accuracy, of a prefix of the ranks where it is elastic."""

    def __init__(self, folder: Path, samples: Sequence[Sample], config: LoRAConfig, seed: int, scratch: Path) -> None:
        scratch.mkdir(parents=True)
        context = JobContext(scratch, scratch / "checkpoints", resources=Resources(cpus=torch.get_num_threads()))
        spec = next(spec for spec in drupe_passes() if spec.name == "LoRA")
        tuning = methods.LoRA(spec)
        model = Model("hf", {}, {"task": "text-generation"}, path=folder)
        base = tuning.load(model, config, DEVICE, tuning.dtype(config, DEVICE))
        rows, _ = rows_of(samples, None, "data")
        self.session = Session(adapters.attach(base, config, seed), rows, [], config, context, device=DEVICE, seed=seed)
        begun = time.perf_counter()
        outcome = self.session.train()
        self.seconds = time.perf_counter() - begun
        self.steps = outcome.steps

    def measure(self, rows: Sequence[Row], rank: int = 0) -> tuple[float, float]:
        """Return (mean loss of the answer tokens, share of rows whose answer's first token is the likeliest)."""
        network = self.session.network
        loss, answers, right = 0.0, 0, 0
        head = network.model.get_base_model().get_output_embeddings()
        seen: list[Any] = []
        handle = (
            network.model.get_base_model()
            .get_decoder()
            .register_forward_hook(lambda _module, _inputs, output: seen.append(output.last_hidden_state))
        )
        with torch.no_grad(), evaluating(network.model):
            ranked = [replace(row, rank=rank) for row in rows]
            for layout in layouts(ranked, 2048, packing=network.packed, pad_id=0):
                loss += float(network.loss(layout))
                answers += layout.targets.size
                # Every row has as many answer tokens as its label has, and the end: the first of them is the label's.
                first = np.array([(layout.predict >= start).argmax() for start, _ in layout.rows])
                hidden = seen.pop().reshape(-1, head.weight.shape[1])[torch.from_numpy(layout.predict[first])]
                right += int((head(hidden).argmax(-1).cpu() == torch.from_numpy(layout.targets[first])).sum())
        handle.remove()
        return loss / answers, right / len(rows)


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--kinds", nargs="*", default=["elastic", "longer"])
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.ERROR)
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        folder = args.model
        if folder.suffix == ".gguf":
            from drupe.plugins.huggingface.gguf import dequantize_gguf

            folder = Path(scratch) / "model"
            dequantize_gguf(args.model, folder)
        train, held = read(args.data, AutoTokenizer.from_pretrained(folder))
        rows, _ = rows_of(held, None, "held out")
        arguments = {
            "per_device_train_batch_size": 16,
            "num_train_epochs": args.epochs,
            "learning_rate": args.rate,
            "warmup_steps": 0.1,
            "save_strategy": "no",
        }
        losses: dict[str, list[dict[int, float]]] = {"elastic": [], "longer": [], "apart": []}
        hits: dict[str, list[dict[int, float]]] = {"elastic": [], "longer": [], "apart": []}
        times: dict[str, list[float]] = {"elastic": [], "longer": [], "apart": []}
        for seed in range(args.seeds):
            apart: dict[int, tuple[float, float]] = {}
            for rank in RANKS:
                config = LoRAConfig(train_data_config="data", r=rank, alpha=rank, training_args=arguments)
                run = Run(folder, train, config, seed, Path(scratch) / f"{seed}-{rank}")
                apart[rank] = run.measure(rows)
                times["apart"].append(run.seconds)
            losses["apart"].append({rank: apart[rank][0] for rank in RANKS})
            hits["apart"].append({rank: apart[rank][1] for rank in RANKS})
            for name, share in (("elastic", 1.0), ("longer", 1.3)):
                if name not in args.kinds:
                    continue
                elastic = ElasticLoRAConfig(
                    train_data_config="data",
                    r=RANKS[-1],
                    alpha=RANKS[-1],
                    ranks=RANKS,
                    training_args={**arguments, "num_train_epochs": share * args.epochs},
                )
                run = Run(folder, train, elastic, seed, Path(scratch) / f"{seed}-{name}")
                measured = {rank: run.measure(rows, rank) for rank in RANKS}
                losses[name].append({rank: measured[rank][0] for rank in RANKS})
                hits[name].append({rank: measured[rank][1] for rank in RANKS})
                times[name].append(run.seconds)
            shown = {n: {k: round(v, 4) for k, v in each[-1].items()} for n, each in losses.items() if each}
            print(f"seed {seed}: {json.dumps(shown)}", flush=True)
    tell(losses, hits, times)
    if args.json is not None:
        args.json.write_text(json.dumps({"losses": losses, "accuracy": hits, "seconds": times}, indent=1))


def tell(losses: dict[str, Any], hits: dict[str, Any], times: dict[str, list[float]]) -> None:
    """Print gaps with their intervals, accuracies and times."""
    from scipy.stats import t

    for name in ("elastic", "longer"):
        if not losses[name]:
            continue
        for rank in RANKS:
            gaps = np.array([a[rank] - b[rank] for a, b in zip(losses[name], losses["apart"], strict=True)])
            half = t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
            alone = np.mean([each[rank] for each in losses["apart"]])
            right = [np.mean([each[rank] for each in hits[kind]]) for kind in (name, "apart")]
            print(
                f"{name} rank {rank}: gap {gaps.mean():+.4f} ± {half:.4f} (alone {alone:.4f}); "
                f"accuracy {right[0]:.4f}, alone {right[1]:.4f}"
            )
        print(f"{name}: {np.median(times[name]) / np.median(times['apart']):.2f} × the time of one run", flush=True)


if __name__ == "__main__":
    main()
