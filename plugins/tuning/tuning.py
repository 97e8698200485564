"""What all tuning passes share: load, attach, train, write the adapter beside the base's files."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, ClassVar

from drupe.core.accelerators import Accelerator
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.tuning.config import TuningConfig

__all__ = ["AdapterPass"]

ADAPTER = "adapter"


class AdapterPass(Pass):
    """Trains an adapter for a causal language model; the result is the input's files and `adapter/`.

    Subclasses say how the base is loaded and what happens to a fresh adapter. Rules: the base's files are never
    changed; the adapter fits the unchanged base, in float; equal seed, threads and data give equal files.
    """

    Config: ClassVar[type[TuningConfig]] = TuningConfig
    version: ClassVar[int] = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse what can't be trained: another task, a model that has an adapter or is quantized already."""
        task = info.attributes.get("task")
        if task not in (None, "text-generation", "text-generation-with-past", "causal-lm"):
            raise ConfigError(f"{self.spec.name} trains text-generation models; the model's task is {task}")
        name = None if config is None else config.adapter_name
        others = dict(info.attributes.get("adapters") or {})
        if info.attributes.get("adapter") and (name is None or not others):
            raise ConfigError(
                f"{self.spec.name}: the model has an adapter already; put MergeAdapterWeights before it, or give both "
                "passes an adapter_name to keep them side by side"
            )
        if name in others:
            raise ConfigError(
                f"{self.spec.name}: the model has an adapter {name!r} already, of {', '.join(others)}; give another "
                "adapter_name"
            )
        if quantization := info.attributes.get("quantization"):
            raise ConfigError(
                f"{self.spec.name} trains on float weights and the model is quantized ({quantization}); "
                "tune first and quantize afterwards"
            )
        planned = super().plan(info, config, accelerator).with_(**_attributes(name, others))
        if info.kind == "sliced" and config is not None and config.training_args.use_liger_kernel:
            raise ConfigError(
                f"{self.spec.name}: training_args.use_liger_kernel: liger-kernel has no layers for sliced models; "
                "leave it out"
            )
        return planned

    def check(self, config: TuningConfig, accelerator: Accelerator) -> None:
        """Refuse options that need a GPU where there is none."""
        from drupe.plugins.tuning.optimizers import GPU_ONLY

        args = config.training_args
        wanted = [f"training_args.optim {args.optim}"] if args.optim in GPU_ONLY else []
        wanted += ["training_args.use_liger_kernel"] if args.use_liger_kernel else []
        wanted += ["ephemeral_gpu_offload"] if getattr(config, "ephemeral_gpu_offload", False) else []
        if args.fsdp and getattr(config, "quant_type", None) is not None:
            raise ConfigError(
                f"{self.spec.name}: training_args.fsdp can't hold shares of a four-bit base; leave it out (then each "
                "process holds the whole base, a quarter of its size), or use LoRA"
            )
        if wanted and (args.use_cpu or not _has_gpu()):
            why = "training_args.use_cpu is true" if args.use_cpu else "no GPU is visible to torch"
            raise ConfigError(
                f"{self.spec.name}: {' and '.join(wanted)} needs a CUDA GPU and {why}; "
                "leave it out (adamw_torch_fused works everywhere), or choose a host with a GPU"
            )

    def load(self, model: Model, config: TuningConfig, device: Any, dtype: str) -> Any:
        """Load the base, frozen, in the compute type `dtype`."""
        from drupe.plugins.huggingface.loading import load_model

        return load_model(model, dtype=dtype, device=str(device), with_adapter=False)

    def dtype(self, config: TuningConfig, device: Any) -> str:
        """Return the name of the compute type: on a CPU float32, since early steps of bfloat16 learn markedly less."""
        if config.training_args.bf16:
            return "bfloat16"
        wanted = str(getattr(config, "compute_dtype", "auto"))
        wanted = config.torch_dtype if wanted == "auto" else wanted
        if wanted != "auto":
            return wanted
        return "bfloat16" if device.type == "cuda" else "float32"

    def initialise(self, peft_model: Any, config: TuningConfig, seed: int) -> None:
        """Change a fresh adapter's initial values."""
        from drupe.plugins.tuning.adapters import loftq_iterations

        if iterations := loftq_iterations(config):
            from drupe.plugins.tuning.loftq import initialise

            initialise(peft_model, iterations, seed)

    def run(self, model: Model, config: TuningConfig, context: PassContext) -> Model:
        """Train and return the input's files with `adapter/` beside them."""
        import torch

        from drupe.plugins.tuning import adapters
        from drupe.plugins.tuning.parallel import join
        from drupe.plugins.tuning.session import Session

        for name in ("transformers", "peft"):
            logging.getLogger(name).setLevel(logging.ERROR)
        torch.set_num_threads(context.resources.thread_count)
        args = config.training_args
        seed = context.seed if args.seed is None else args.seed
        team, device = join(context, cpu=args.use_cpu, sharded=args.fsdp)
        if device.type == "cuda" and args.tf32 is not False:
            torch.backends.cuda.matmul.allow_tf32 = bool(args.tf32 or config.allow_tf32)
        torch.use_deterministic_algorithms(args.full_determinism)
        base = self.load(model, config, torch.device("cpu") if team.sharded else device, self.dtype(config, device))
        rows, eval_rows = self.data(model, config, context, _context_length(model), seed)
        peft_model = adapters.attach(base, config, seed)
        self.initialise(peft_model, config, seed)
        initial = adapters_state(peft_model) if adapters.mutates_base(config) else None
        session = Session(peft_model, rows, eval_rows, config, context, device=device, seed=seed, team=team)
        outcome = session.train()
        session.load(outcome.state)
        self.finish(peft_model, config)
        attributes = _attributes(config.adapter_name, dict(model.attributes.get("adapters") or {}))
        place = str(attributes["adapter"])
        adapters.save(peft_model, context.output_dir / place, config, initial)
        return model.derive(add_dir=context.output_dir / place, prefix=place, attributes=attributes)

    def finish(self, peft_model: Any, config: TuningConfig) -> None:
        """Change a trained adapter before it is written."""

    def data(
        self, model: Model, config: TuningConfig, context: PassContext, longest: int | None, seed: int
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return the rows to train on and to evaluate on; what was cut and dropped is told and reported."""
        from drupe.plugins.tuning.rows import hold_out, rows_of

        limit = min((n for n in (config.max_length, longest) if n is not None), default=None)
        name = config.train_data_config
        rows, count = rows_of(context.data(name, model=model, part="train"), limit, name)
        counts = {"train": count.to_json()}
        eval_rows: Sequence[Any] = ()
        if config.eval_data_config is not None:
            other = config.eval_data_config
            part = "selection" if other == name else None
            eval_rows, eval_count = rows_of(context.data(other, model=model, part=part), limit, other)
            counts["evaluation"] = eval_count.to_json()
        elif config.eval_dataset_size is not None:
            rows, eval_rows = hold_out(rows, config.eval_dataset_size, seed, name)
            counts["evaluation"] = {"rows": len(eval_rows), "held_out_of": count.rows}
        if count.cut_rows:
            context.log.warning(
                "%s: %d of %d rows were longer than %s tokens; %d tokens were cut off their ends",
                *(name, count.cut_rows, count.rows + count.dropped_rows, limit, count.cut_tokens),
            )
        if count.dropped_rows:
            context.log.warning("%s: %d rows have no token to learn and were left out", name, count.dropped_rows)
        context.report.setdefault("tuning", {})["rows"] = counts
        return rows, eval_rows


def _attributes(name: str | None, others: dict[str, str]) -> dict[str, Any]:
    """Return where the new adapter lies and, where they have names, all of them: {name: folder}."""
    if name is None:
        return {"adapter": ADAPTER}
    place = f"{ADAPTER}s/{name}"
    return {"adapter": place, "adapters": {**others, name: place}}


def adapters_state(peft_model: Any) -> dict[str, Any]:
    """Return a copy of the adapter as peft writes it."""
    import peft

    state = peft.get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _context_length(model: Model) -> int | None:
    """Return how many positions the model has, where its config says so."""
    path = model.folder / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    value = config.get("max_position_embeddings") or config.get("n_positions")
    return int(value) if isinstance(value, int) and value > 0 else None
