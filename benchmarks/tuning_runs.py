"""What the tuning benchmarks share: models of known shapes, rows, one run of Trainer with peft, one of Drupe's loop."""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import sys
import tempfile
import time
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
from drupe.plugins.tuning.parallel import join
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
            rank=int(os.environ.get("RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
        )
        team, device = join(context, cpu=not CUDA, sharded=made.training_args.fsdp)
        model = Model("hf", {}, {"task": "text-generation"}, path=folder)
        base = tuning.load(model, made, torch.device("cpu") if team.sharded else device, tuning.dtype(made, device))
        loaded = peaks()["peak"]
        rows, eval_rows = tuning.data(model, made, context, None, 0)
        peft_model = adapters.attach(base, made, 0)
        session = Session(peft_model, rows, eval_rows, made, context, device=device, seed=0, team=team)
        outcome = session.train()
        lengths = [len(s.inputs["input_ids"]) for s in samples]
        result = facts(times, [e["loss"] for e in outcome.curves.steps], lengths, batch * accumulation * team.size)
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
