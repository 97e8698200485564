"""Four-bit weights of one decoder by every scheme: perplexity on held-out prose, a tuned task, size, time, speed.

    python benchmarks/quantization.py --model FOLDER --data phrases.jsonl --out FOLDER [--source rotated] [--report]

Sources: `stored` is the model as it is; `tuned` has a LoRA of the tone task merged into it; `rotated` is that one with
its states rotated (QuaRot): the same logits from weights that lie on no grid of an earlier quantization. Prose: the
book `debian-handbook` (a Debian package; fetched with apt-get unless --deb names the file): every other section
calibrates, the rest is measured, in chunks. Every scheme ends in a model for onnxruntime-genai and is measured there at
accuracy level 4. Differences are to the float model, chunk by chunk; intervals are 95 % (bootstrap, bias-corrected).
Each setting is a line of rows.jsonl in --out: a run that was stopped goes on.

A scheme that stores a scale and an offset for each 32 weights reproduces weights that were stored so (Q4_1) exactly.
For the source `stored` such rows are marked and left out of the ranking. Tuned weights lie near that grid still: a
scheme that finds it again undoes the tuning, prose reads better for it, and the tuned task is lost. Rows whose answers
are worse than the float model's beyond their intervals are not ranked either, whatever the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# Not this folder, first where a script is run: the builder of onnxruntime-genai imports a module `quantization`.
if str(Path(__file__).resolve().parent) in sys.path:
    sys.path.remove(str(Path(__file__).resolve().parent))

from benchmarks.handbook import sections
from benchmarks.tuning_elastic import read
from drupe.core.accelerators import Accelerator
from drupe.core.context import Resources
from drupe.core.data import Sample
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.core.runtimes import GenerateOptions
from drupe.core.statistics.bootstrap import bca_interval
from drupe.core.statistics.proportions import wilson_interval
from drupe.testing import make_context

CPU = Accelerator("cpu", "CPUExecutionProvider")
HEAD = {"algo_config": "k_quant", "block_size": 32}
"""How the embedding and the head get their four bits where the quantizer before the builder leaves them."""


@dataclass(frozen=True)
class Scheme:
    """steps: passes and their configs; {block} stands for the block size. offset: blocks have a scale and an offset."""

    steps: Sequence[tuple[str, dict[str, Any]]]
    blocks: Sequence[int] = (32, 64, 128)
    offset: bool = False
    calibrated: bool = False
    why: dict[int, str] = field(default_factory=dict)


NO_FIT = {128: "groups of 128 do not divide the 576 columns of most layers"}
ODD = {
    64: "zero points need an even number of blocks; 576 columns make 9",
    128: "576 columns make 5 blocks, an odd number",
}


def built(**options: Any) -> tuple[str, dict[str, Any]]:
    """A build with four bits."""
    return ("ModelBuilder", {"precision": "int4", "accuracy_level": 4, **options})


def torch_scheme(name: str, symmetric: bool, **config: Any) -> Scheme:
    """A quantizer of PyTorch weights, then the builder."""
    steps = [(name, {"bits": 4, "group_size": "{block}", "sym": symmetric, **config}), built(**HEAD)]
    return Scheme(steps, (32, 64), not symmetric, name != "Rtn", NO_FIT)


def schemes(iters: int) -> dict[str, Scheme]:
    """The schemes by name, quick ones first."""
    block = {"block_size": "{block}"}
    calibrated = {"data_config": "calibration", "nsamples": 64, "seqlen": 256}
    learned = {**calibrated, "nsamples": 32, "iters": iters}
    hqq = [("ModelBuilder", {"precision": "fp32"}), ("OnnxHqqQuantization", {"bits": 4, **block})]
    return {
        "builder default": Scheme([built(**block)]),
        "builder rtn": Scheme([built(algo_config="rtn", **block)]),
        "builder rtn, offset": Scheme(
            [built(algo_config="rtn", is_symmetric=False, **block)], (32,), offset=True, why=ODD
        ),
        "builder k_quant": Scheme([built(algo_config="k_quant", **block)], (32,), True, why=ODD),
        "builder k_quant_last": Scheme([built(algo_config="k_quant_last", **block)], (32,), True, why=ODD),
        "builder k_quant_mixed": Scheme([built(algo_config="k_quant_mixed", **block)], (32,), True, why=ODD),
        "Rtn": torch_scheme("Rtn", True),
        "Rtn, offset": torch_scheme("Rtn", False),
        "HQQ": Scheme(hqq, offset=True),
        "AWQ": torch_scheme("AutoAWQQuantizer", True, **calibrated),
        "AWQ, offset": torch_scheme("AutoAWQQuantizer", False, **calibrated),
        "GPTQ": torch_scheme("Gptq", True, **calibrated),
        "GPTQ, offset": torch_scheme("Gptq", False, **calibrated),
        "AutoRound": torch_scheme("AutoRound", True, **learned),
        "AutoRound, offset": torch_scheme("AutoRound", False, **learned),
    }


def _decoder(folder: Path) -> Model:
    return Model.from_dir("hf", folder, {"task": "text-generation", "architecture": "LlamaForCausalLM"})


class Bench:
    """One source, its measures, and the rows that are done."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.out: Path = args.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.resources = Resources(cpus=args.threads)
        from tokenizers import Tokenizer

        encoder = Tokenizer.from_file(str(args.model / "tokenizer.json"))
        texts = sections(args.deb, self.out)
        length = args.tokens
        ids = [np.asarray(encoder.encode(text).ids, dtype=np.int64) for text in texts]
        cut = [[row[n : n + length] for n in range(0, len(row) - length, length)] for row in ids]
        held = [chunk for rows in cut[1::2] for chunk in rows]
        self.chunks = [held[n] for n in np.linspace(0, len(held) - 1, min(args.chunks, len(held))).astype(int)]
        calibration = [chunk for rows in cut[::2] for chunk in rows]
        spread = np.linspace(0, len(calibration) - 1, min(96, len(calibration))).astype(int)
        self.calibration = [
            Sample(
                f"c{n}", {"input_ids": calibration[n], "attention_mask": np.ones(length, np.int64)}, content_key=f"c{n}"
            )
            for n in spread
        ]
        from transformers import AutoTokenizer

        self.train, tone = read(args.data, AutoTokenizer.from_pretrained(args.model))
        self.tone = tone[: args.phrases]

    def apply(self, name: str, model: Model, folder: Path, data: dict[str, Any] | None = None, **config: Any) -> Model:
        """Run a pass and stage what it made."""
        subject = get_registry().create("drupe_passes", name)
        context = make_context(folder, accelerator=CPU, resources=self.resources, data=data or {})
        result = subject(model, type(subject).Config.model_validate(config), context)
        for file in result.files:
            target = context.output_dir / file
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.hardlink_to(model.folder / file)
        staged: Model = result.at(context.output_dir)
        return staged

    def source(self) -> Model:
        """Return the model to quantize; the tuned and the rotated one are made once."""
        if self.args.source == "stored":
            return _decoder(self.args.model)
        tuned = self.tuned()
        done = self.out / "rotated"
        if self.args.source == "rotated" and not done.is_dir():
            with tempfile.TemporaryDirectory(dir=self.out) as scratch:
                self.apply("QuaRot", tuned, Path(scratch) / "rotate", seed=7).folder.rename(done)
        return _decoder(done) if self.args.source == "rotated" else tuned

    def tuned(self) -> Model:
        """Return the source with a LoRA of the tone task merged into it."""
        stored = _decoder(self.args.model)
        done = self.out / "tuned"
        if not done.is_dir():
            training = {
                "per_device_train_batch_size": 16,
                "max_steps": self.args.steps,
                "learning_rate": 1e-3,
                "lr_scheduler_type": "constant",
            }
            with tempfile.TemporaryDirectory(dir=self.out) as scratch:
                tuned = self.apply(
                    "LoRA",
                    stored,
                    Path(scratch) / "tune",
                    {"tone": self.train},
                    train_data_config="tone",
                    r=16,
                    alpha=16,
                    target_modules="all-linear",
                    torch_dtype="float32",
                    training_args=training,
                )
                merged = self.apply("MergeAdapterWeights", tuned, Path(scratch) / "merge")
                merged.folder.rename(done)
        return _decoder(done)

    def measure(self, model: Model) -> dict[str, Any]:
        """Return the losses by chunk, which phrases were answered right, and tokens a second."""
        runtime = get_registry().create("drupe_runtimes", "genai")
        with runtime.open(model, CPU, {"threads": self.args.threads}) as session:
            losses = []
            for chunk in self.chunks:
                scored = session.score(chunk, chunk).outputs["logprobs"]
                losses.append([-float(np.nansum(scored)), int(np.isfinite(scored).sum())])
            right = []
            for sample in self.tone:
                labels = np.asarray(sample.inputs["labels"])
                prompt = int((labels == -100).sum())
                ids = np.asarray(sample.inputs["input_ids"])[:prompt]
                given = session.generate(ids, GenerateOptions(max_new_tokens=1)).outputs["token_ids"]
                right.append(int(len(given) > 0 and given[0] == labels[prompt]))
            rates: list[float] = []
            for chunk in self.chunks[:16]:
                # A model may end its text at once, from which no speed can be told: another beginning then.
                options = GenerateOptions(max_new_tokens=48)
                seconds = session.generate(chunk[:32], options).outputs["token_seconds"]
                if len(seconds) > 8:
                    rates.append((len(seconds) - 1) / (seconds[-1] - seconds[0]))
                if len(rates) == 3:
                    break
        speed = float(np.median(rates)) if rates else float("nan")
        return {"losses": losses, "right": right, "tokens_per_second": speed}

    def setting(self, name: str, scheme: Scheme, block: int | None, source: Model) -> dict[str, Any]:
        """Quantize and measure."""
        row: dict[str, Any] = {"source": self.args.source, "scheme": name, "block": block}
        if block is not None and block not in scheme.blocks:
            return {**row, "impossible": scheme.why.get(block, "not offered")}
        with tempfile.TemporaryDirectory(dir=self.out) as scratch:
            model, seconds = source, 0.0
            for number, (step, config) in enumerate(scheme.steps):
                filled = {key: block if value == "{block}" else value for key, value in config.items()}
                begun = time.perf_counter()
                data = {"calibration": self.calibration}
                model = self.apply(step, model, Path(scratch) / str(number), data, **filled)
                seconds += time.perf_counter() - begun
            size = sum((model.folder / file).stat().st_size for file in model.files if ".onnx" in file)
            exact = self.args.source == "stored" and scheme.offset and block == 32
            return {**row, "seconds": seconds, "megabytes": size / 1e6, "exact": exact, **self.measure(model)}


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is a row of."""
    return (row["source"], row["scheme"], row["block"])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows that are done."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def ratio(rows: Sequence[Sequence[float]]) -> float:
    """Return the difference of two perplexities from rows of (loss, loss of the float model, tokens)."""
    tokens = sum(row[2] for row in rows)
    return float(np.exp(sum(row[0] for row in rows) / tokens) - np.exp(sum(row[1] for row in rows) / tokens))


def report(rows: Sequence[dict[str, Any]], show: Callable[[str], None] = print) -> None:
    """Print a table for each source: best first, what can't be compared below."""
    for source in dict.fromkeys(row["source"] for row in rows):
        own = [row for row in rows if row["source"] == source]
        base = next((row for row in own if row["scheme"] == "float" and "losses" in row), None)
        if base is None:
            continue
        lines = []
        kept = wilson_interval(sum(base["right"]), len(base["right"]))
        measured = {key(row) for row in own if "losses" in row}
        for row in own:
            if "impossible" in row or "failed" in row:
                continue
            paired = [(q, f, t) for (q, t), (f, _) in zip(row["losses"], base["losses"], strict=True)]
            low, high = (0.0, 0.0) if row is base else bca_interval(paired, ratio, 0.95)
            right = sum(row["right"])
            tone = wilson_interval(right, len(row["right"]))
            unranked = ""
            if row.get("exact"):
                unranked = " (exact for weights that were stored so: not ranked)"
            elif tone[1] < kept[0]:
                unranked = " (tone below the float model's: not ranked)"
            speed = row["tokens_per_second"]
            lines.append(
                (
                    bool(unranked),
                    ratio(paired),
                    f"| {row['scheme']}{unranked} | {row['block'] or ''} | "
                    f"{ratio(paired):+.3f} [{low:+.3f}, {high:+.3f}] | "
                    f"{right}/{len(row['right'])} [{tone[0]:.2f}, {tone[1]:.2f}] | {row['megabytes']:.1f} | "
                    f"{row['seconds']:.0f} | {f'{speed:.0f}' if np.isfinite(speed) else '–'} |",
                )
            )
        tokens = sum(t for _, t in base["losses"])
        perplexity = np.exp(sum(nll for nll, _ in base["losses"]) / tokens)
        show(f"\n{source}: perplexity {perplexity:.3f} in float32, {len(base['losses'])} chunks, {tokens} tokens")
        show("| scheme | block | perplexity against float [95 %] | tone [95 %] | MB | s | tokens/s |")
        show("|---|---|---|---|---|---|---|")
        for _, _, text in sorted(lines):
            show(text)
        for row in own:
            if reason := row.get("impossible") or (key(row) not in measured and row.get("failed")):
                show(f"| {row['scheme']} | {row['block']} | not possible: {reason} | | | | |")


def main() -> None:
    """Do what is not done, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="lines of {phrase, tone}")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--deb", type=Path, help="the package debian-handbook, where it is here already")
    parser.add_argument("--source", choices=["tuned", "rotated", "stored"], default="tuned")
    parser.add_argument("--schemes", nargs="*", help="only these")
    parser.add_argument("--blocks", nargs="*", type=int, default=[32, 64, 128])
    parser.add_argument("--chunks", type=int, default=80)
    parser.add_argument("--tokens", type=int, default=256, help="length of a chunk")
    parser.add_argument("--phrases", type=int, default=300)
    parser.add_argument("--steps", type=int, default=30, help="of the fine-tuning, 16 phrases each")
    parser.add_argument("--iters", type=int, default=50, help="of AutoRound")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="print what is done and stop")
    args = parser.parse_args()
    path = args.out / "rows.jsonl"
    if args.report:
        report(read_rows(path))
        return
    import torch

    torch.set_num_threads(args.threads)
    bench = Bench(args)
    known = schemes(args.iters)
    wanted = [("float", Scheme([("ModelBuilder", {"precision": "fp32"})]), None)]
    wanted += [
        (name, scheme, block)
        for name, scheme in known.items()
        for block in args.blocks
        if not args.schemes or name in args.schemes
    ]
    done = {key(row) for row in read_rows(path) if "failed" not in row}
    source = bench.source()
    for name, scheme, block in wanted:
        if (args.source, name, block) in done:
            continue
        begun = time.perf_counter()
        try:
            row = bench.setting(name, scheme, block, source)
        except Exception as error:
            # One scheme that fails must not take the others' results along; the row says what happened.
            traceback.print_exc()
            row = {"source": args.source, "scheme": name, "block": block, "failed": f"{type(error).__name__}: {error}"}
        with path.open("a") as handle:
            handle.write(json.dumps(row) + "\n")
        print(
            f"{name} {block}: {time.perf_counter() - begun:.0f} s {row.get('failed', '')}", file=sys.stderr, flush=True
        )
    report(read_rows(path))


if __name__ == "__main__":
    main()
