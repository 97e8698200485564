"""Fine-tuning on one GPU: Drupe's loop beside transformers.Trainer with peft, in one process on one card.

    python benchmarks/tuning_gpu.py [--only NAME ...] [--steps 50] [--tiny] [--profile] [--json FILE]

Phi-3-mini's shape with random weights (3.8 B, bfloat16), rows of 2048 tokens, four a step, LoRA r64 on o_proj and
qkv_proj; and SmolLM2-135M's shape on short rows. One line a variant: tokens a second, peak memory, last losses, and the
forecast beside what was measured. --tiny runs the same on small shapes, on a CPU too, to try the file out.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from drupe.core.context import JobContext, Resources
from drupe.core.data import Sample
from drupe.core.model import Model
from drupe.plugins.tuning import adapters, methods
from drupe.plugins.tuning.plugin import drupe_passes
from drupe.plugins.tuning.session import Session

GIB = 2**30
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


class Source:
    """Serves one list of samples."""

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples

    def samples(self, *_: Any) -> list[Sample]:
        """Return the samples."""
        return self._samples


def make_model(folder: Path, kind: str, tiny: bool) -> None:
    """Write a model of the shape with random weights, unless it is there."""
    if (folder / "config.json").is_file():
        return
    if kind == "phi3":
        from transformers import Phi3Config as Config
        from transformers import Phi3ForCausalLM as Kind

        shape: dict[str, Any] = {"sliding_window": None, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        if tiny:
            shape |= {"vocab_size": 1000, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
            shape |= {"num_attention_heads": 4, "num_key_value_heads": 4}
    else:
        from transformers import LlamaConfig as Config
        from transformers import LlamaForCausalLM as Kind

        shape = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
        shape |= {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "pad_token_id": 0}
        if tiny:
            shape |= {"vocab_size": 1000, "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 2}
            shape |= {"num_attention_heads": 3}
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        model = Kind(Config(**shape))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)


def long_rows(count: int, length: int, vocabulary: int) -> list[Sample]:
    """Rows of one length, loss everywhere; tokens follow a skewed distribution, so that there is something to learn."""
    rng = np.random.default_rng(0)
    chances = 1 / np.arange(1, vocabulary - 10)
    tokens = rng.choice(np.arange(5, vocabulary - 6), size=(count, length), p=chances / chances.sum())
    return [Sample(str(i), {"input_ids": row, "labels": row}, content_key=str(i)) for i, row in enumerate(tokens)]


def short_rows(count: int, vocabulary: int) -> list[Sample]:
    """Rows as long as labelled phrases: 17 to 46 tokens, loss on the last two."""
    rng = np.random.default_rng(1)
    result = []
    for number in range(count):
        length = int(np.clip(rng.normal(28, 5), 17, 46))
        ids = rng.integers(5, vocabulary, length)
        labels = np.where(np.arange(length) < length - 2, -100, ids)
        result.append(Sample(str(number), {"input_ids": ids, "labels": labels}, content_key=str(number)))
    return result


def padded_to(samples: list[Sample], width: int) -> list[Sample]:
    """The same rows filled up to a width, as data that was prepared for a fixed length comes."""
    result = []
    for sample in samples:
        gap = width - len(sample.inputs["input_ids"])
        ids = np.concatenate([sample.inputs["input_ids"], np.zeros(gap, dtype=np.int64)])
        labels = np.concatenate([sample.inputs["labels"], np.full(gap, -100)])
        result.append(Sample(sample.id, {"input_ids": ids, "labels": labels}, content_key=sample.content_key))
    return result


def clean() -> None:
    """Give all memory back and start the peak anew."""
    gc.collect()
    if CUDA:
        torch._dynamo.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peaks() -> dict[str, float]:
    """Return peak memory in GiB: what tensors took, and what the allocator held."""
    if not CUDA:
        return {"peak": 0.0, "held": 0.0}
    return {
        "peak": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "held": round(torch.cuda.max_memory_reserved() / GIB, 2),
    }


def trainer(
    folder: Path,
    samples: list[Sample],
    steps: int,
    *,
    batch: int,
    accumulation: int,
    lora: dict[str, Any],
    **options: Any,
) -> dict[str, Any]:
    """transformers.Trainer and peft."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainerCallback, TrainingArguments

    pad_to, four_bits, recompute = options.get("pad_to"), options.get("four_bits"), options.get("recompute", False)
    clean()
    extra: dict[str, Any] = {}
    if four_bits:
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=options.get("dtype", torch.bfloat16),
        device_map={"": str(DEVICE)},
        attn_implementation="sdpa",
        **extra,
    )
    if four_bits:
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=recompute, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        width = pad_to or max(len(row["input_ids"]) for row in rows)
        batch_of: dict[str, Any] = {"input_ids": [], "labels": [], "attention_mask": []}
        for row in rows:
            gap = width - len(row["input_ids"])
            batch_of["input_ids"].append([*row["input_ids"], *[0] * gap])
            batch_of["labels"].append([*row["labels"], *[-100] * gap])
            batch_of["attention_mask"].append([1] * len(row["input_ids"]) + [0] * gap)
        return {name: torch.tensor(value) for name, value in batch_of.items()}

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    rows = [{k: v.tolist() for k, v in s.inputs.items()} for s in samples]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=steps,
            learning_rate=options.get("rate", 2e-4),
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            bf16=CUDA,
            gradient_checkpointing=recompute,
            gradient_checkpointing_kwargs={"use_reentrant": False} if recompute else None,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not CUDA,
        )
        run = InOrder(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[Clock()])
        run.train()
    losses = [float(entry["loss"]) for entry in run.state.log_history if "loss" in entry]
    lengths = [len(row["input_ids"]) for row in rows]
    result = facts(times, losses, lengths, batch * accumulation)
    if after := options.get("after"):
        result["after"] = after(model)
    return result


def facts(times: list[float], losses: list[float], lengths: list[int], rows: int) -> dict[str, Any]:
    """Return speed over the second half of the steps, memory and losses."""
    spans = [b - a for a, b in itertools.pairwise(times)][len(times) // 2 - 1 :]
    median = statistics.median(spans)
    return {
        "tokens_per_second": round(rows * statistics.mean(lengths) / median),
        "rows_per_second": round(rows / median, 2),
        "step": round(median, 4),
        **peaks(),
        "losses": [round(loss, 4) for loss in losses],
    }


def ours(
    folder: Path,
    samples: list[Sample],
    steps: int,
    *,
    batch: int,
    accumulation: int,
    lora: dict[str, Any],
    method: str = "LoRA",
    profile: bool = False,
    after: Callable[[Any], Any] | None = None,
    rate: float = 2e-4,
    arguments: dict[str, Any] | None = None,
    **config: Any,
) -> dict[str, Any]:
    """Drupe's loop, as the pass runs it."""
    clean()
    settings = {"r": lora["r"], "alpha": lora["lora_alpha"], "target_modules": lora["target_modules"]}
    spec = next(spec for spec in drupe_passes() if spec.name == method)
    tuning = getattr(methods, method)(spec)
    made = tuning.Config(
        train_data_config="rows",
        **settings,
        **config,
        training_args={
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "max_steps": steps,
            "learning_rate": rate,
            "lr_scheduler_type": "constant",
            "train_sampling_strategy": "sequential",
            "logging_steps": max(1, steps // 2),
            **(arguments or {}),
        },
    )
    times: list[float] = []

    def tick(_event: Any) -> None:
        times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "out").mkdir()
        context = JobContext(
            Path(scratch) / "out",
            Path(scratch) / "checkpoints",
            data_source=Source(samples),
            resources=Resources(cpus=torch.get_num_threads()),
            on_progress=tick,
        )
        model = Model("hf", {}, {"task": "text-generation"}, path=folder)
        base = tuning.load(model, made, DEVICE)
        loaded = peaks()["peak"]
        rows, eval_rows = tuning.data(model, made, context, None, 0)
        peft_model = adapters.attach(base, made, 0)
        session = Session(peft_model, rows, eval_rows, made, context, device=DEVICE, seed=0)
        outcome = session.train()
        lengths = [len(s.inputs["input_ids"]) for s in samples]
        result = facts(times, [e["loss"] for e in outcome.curves.steps], lengths, batch * accumulation)
        # Measuring before training starts the card's count anew; loading counts as well.
        result["peak"] = max(loaded, result["peak"])
        told = context.report["tuning"]
        result["forecast"] = {
            "peak": round(told["forecast"].get("peak_memory", 0) / GIB, 2),
            "step": round(told["forecast"].get("training_seconds", 0) / steps, 4),
            "setup": told["forecast"].get("setup_seconds"),
            "plan": told["forecast"].get("plan"),
        }
        result["notes"] = told["notes"]
        if after is not None:
            result["after"] = after(peft_model)
        if profile and CUDA:
            show_kernels(session)
    return result


def cramped(run: Callable[[], dict[str, Any]], share: float) -> dict[str, Any]:
    """Run with only a share of the card, which the plan does not know of."""
    if CUDA:
        torch.cuda.set_per_process_memory_fraction(share)
    try:
        return run()
    finally:
        if CUDA:
            torch.cuda.set_per_process_memory_fraction(1.0)


def show_kernels(session: Any) -> None:
    """Print where a step's GPU time goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    rows = [session.trainer.rows[i] for i in next(session.trainer.order.steps())]
    torch.cuda.synchronize()
    with profiler(activities=[ProfilerActivity.CUDA]) as record:
        session.trainer._gradients(rows)
        torch.cuda.synchronize()
    print(record.key_averages().table(sort_by="cuda_time_total", row_limit=22, max_name_column_width=70), flush=True)


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
