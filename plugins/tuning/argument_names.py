"""What becomes of the names of TrainingArguments that have no field of their own here: upgraded, told or refused."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

__all__ = ["NEUTRAL", "TOLD", "known_names", "refusal", "upgrade"]

RENAMED: dict[str, str] = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
    "activation_checkpointing": "gradient_checkpointing",
    "warmup_ratio": "warmup_steps",
}

_HUB = "Drupe publishes nothing; copy the output folder where you want it"
_WORKERS = "the rows lie in memory, no loader processes are started"
_ALIKE = "every process holds the whole adapter, and gradients are summed once a step"

TOLD: dict[str, str] = {
    "output_dir": "the workflow's output_dir and the step's checkpoint folder are used",
    "overwrite_output_dir": "a step's folder is always its own",
    "logging_dir": "curves go into the manifest and the output folder",
    "log_level": "the workflow's log_severity_level is used",
    "log_level_replica": "the workflow's log_severity_level is used",
    "log_on_each_node": _ALIKE,
    "disable_tqdm": "progress is shown by the command line",
    "run_name": "runs are named by their step",
    "project": "no tracker is used",
    "save_safetensors": "adapters are always safetensors",
    "save_only_model": "checkpoints hold what resuming needs",
    "save_on_each_node": _ALIKE,
    "logging_nan_inf_filter": "training stops at a loss that is not finite",
    "include_num_input_tokens_seen": "the curves always hold tokens per second",
    "include_tokens_per_second": "the curves always hold tokens per second",
    "skip_memory_metrics": "peak memory is always recorded",
    "prediction_loss_only": "evaluation takes the loss only",
    "eval_do_concat_batches": "evaluation takes the loss only",
    "eval_accumulation_steps": "evaluation takes the loss only",
    "eval_use_gather_object": _ALIKE,
    "dataloader_num_workers": _WORKERS,
    "dataloader_pin_memory": _WORKERS,
    "dataloader_persistent_workers": _WORKERS,
    "dataloader_prefetch_factor": _WORKERS,
    "dataloader_multiprocessing_context": _WORKERS,
    "dataloader_in_order": _WORKERS,
    "remove_unused_columns": "samples hold nothing unused",
    "length_column_name": "lengths are counted",
    "group_by_length": "train_sampling_strategy says it",
    "gradient_checkpointing_kwargs": "recomputation is always the non-reentrant one",
    "activation_checkpointing_kwargs": "recomputation is always the non-reentrant one",
    "torch_compile_backend": "layers are compiled with inductor",
    "auto_find_batch_size": "where memory runs out, a plan of less memory is taken by itself",
    "use_cache": "training keeps no key-value cache",
    "do_train": "a tuning pass trains",
    "do_eval": "eval_strategy says it",
    "do_predict": "metrics are measured by evaluators",
    "resume_from_checkpoint": "a step resumes from its own checkpoint by itself",
    "restore_callback_states_from_checkpoint": "a checkpoint holds the whole state",
    "ignore_data_skip": "a resumed run goes on where it stopped",
    "enable_jit_checkpoint": "a stopped run always leaves a checkpoint",
    "local_rank": "the launcher sets it",
    "fsdp_config": "every decoder layer is a unit, and only the frozen base is sharded",
    "average_tokens_across_devices": "the loss is always the mean over the tokens of a step",
    "ddp_find_unused_parameters": _ALIKE,
    "ddp_bucket_cap_mb": _ALIKE,
    "ddp_broadcast_buffers": _ALIKE,
    "ddp_static_graph": _ALIKE,
    "ddp_backend": _ALIKE,
    "ddp_timeout": _ALIKE,
    "ray_scope": "Drupe's search is used",
    "fp16_backend": "mixed precision is bfloat16",
    "half_precision_backend": "mixed precision is bfloat16",
    "bf16_full_eval": "evaluation computes as training does",
    "push_to_hub_model_id": _HUB,
    "push_to_hub_organization": _HUB,
    "push_to_hub_token": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "trackio_space_id": "no tracker is used",
    "trackio_bucket_id": "no tracker is used",
    "trackio_static_space_id": "no tracker is used",
}
"""Names that are right to give but change nothing here, with the reason that the user is told."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "push_to_hub": (False,),
    "report_to": ("none", [], ["none"]),
    "debug": ("", []),
    "deepspeed": ({}, ""),
    "fp16": (False,),
    "fp16_full_eval": (False,),
    "include_for_metrics": ([],),
    "batch_eval_metrics": (False,),
    "auto_find_batch_size": (False,),
    "greater_is_better": (False,),
    "metric_for_best_model": ("loss", "eval_loss"),
    "adafactor": (False,),
    "use_ipex": (False,),
}
"""Values that ask for nothing beyond what is done anyway."""

_REFUSED: dict[str, str] = {
    "push_to_hub": _HUB,
    "report_to": "Drupe reports to no tracker; curves are in the output folder",
    "debug": "there is no such debugger here",
    "deepspeed": "several GPUs work by data parallel, and with fsdp: full_shard hold a share of the base each",
    "parallelism_config": "several GPUs work by data parallel, and with fsdp: full_shard hold a share of the base each",
    "accelerator_config": "training runs in a loop of its own, not in accelerate",
    "fp16": "float16 training needs loss scaling and diverges on many models; use bf16 or float32",
    "fp16_full_eval": "evaluation computes as training does",
    "include_for_metrics": "metrics are measured by evaluators",
    "batch_eval_metrics": "metrics are measured by evaluators",
    "label_names": "labels come from the data container",
    "optim_target_modules": "the adapter's parameters are what is optimized",
    "metric_for_best_model": "the best checkpoint is the one of the lowest evaluation loss",
    "greater_is_better": "the best checkpoint is the one of the lowest evaluation loss",
}


@cache
def known_names() -> frozenset[str]:
    """Names of transformers' TrainingArguments, read from the installed source, and those of older releases."""
    from drupe.core.introspect import class_fields

    try:
        names = frozenset(class_fields("transformers.training_args", "TrainingArguments"))
    except (ModuleNotFoundError, FileNotFoundError):
        # Where transformers is not installed (validation on a small machine), what we know by ourselves must do.
        names = frozenset()
    return names | TOLD.keys() | NEUTRAL.keys() | _REFUSED.keys() | RENAMED.keys()


def refusal(name: str) -> str:
    """Return why a name that transformers knows is refused."""
    return _REFUSED.get(name, "Drupe's training loop has no such feature")


def upgrade(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments under today's names and a notice for each that was renamed.

    A name given in both spellings keeps the newer one; the older is told as dropped.
    """
    result = {name: value for name, value in values.items() if name not in RENAMED and name != "group_by_length"}
    notices = []
    for old, new in RENAMED.items():
        if old not in values or values[old] is None:
            continue
        if new in result:
            notices.append(f"training_args.{old} is dropped, since {new} is given as well")
            continue
        result[new] = values[old]
        notices.append(f"training_args.{old} is now {new}")
    if values.get("group_by_length"):
        result.setdefault("train_sampling_strategy", "group_by_length")
        notices.append("training_args.group_by_length is now train_sampling_strategy: group_by_length")
    if result.get("adafactor"):
        result.setdefault("optim", "adafactor")
        del result["adafactor"]
        notices.append("training_args.adafactor is now optim: adafactor")
    if "metric_for_best_model" in result and result["metric_for_best_model"] == "eval_loss":
        del result["metric_for_best_model"]
    return result, notices
