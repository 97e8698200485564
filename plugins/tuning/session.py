"""One training session: chooses how the model is run, trains, and reports what happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drupe.core.context import JobContext
from drupe.plugins.tuning.config import TuningConfig
from drupe.plugins.tuning.curves import svg
from drupe.plugins.tuning.loop import Outcome, Trainer
from drupe.plugins.tuning.network import Network
from drupe.plugins.tuning.rows import Row

__all__ = ["Session"]


class Session:
    """A peft model, its rows and the config, made ready to train."""

    def __init__(
        self,
        peft_model: Any,
        rows: Sequence[Row],
        eval_rows: Sequence[Row],
        config: TuningConfig,
        context: JobContext,
        *,
        device: Any,
        seed: int,
    ) -> None:
        from drupe.plugins.tuning.fused import fuse

        args = config.training_args
        self.config, self.context, self.device = config, context, device
        peft_model.train()
        self.fused = fuse(peft_model)
        if args.neftune_noise_alpha:
            _add_noise(peft_model, args.neftune_noise_alpha)
        if args.gradient_checkpointing:
            peft_model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        if args.torch_compile:
            _compile(peft_model, args.torch_compile_mode)
        network = Network.of(peft_model, device, [*rows, *eval_rows], config.packing, args.label_smoothing_factor)
        longest = max(row.length for row in rows)
        self.trainer = Trainer(
            network,
            rows,
            eval_rows,
            args,
            context,
            seed=seed,
            budget=longest * args.per_device_train_batch_size,
            patience=config.early_stopping_patience,
            threshold=config.early_stopping_threshold,
            memory=lambda: _memory(device),
        )
        for note in (*network.notes, *self.trainer.notices):
            context.log.info("%s", note)

    def train(self) -> Outcome:
        """Train; the report gets the facts, the curves and their picture."""
        outcome = self.trainer.run()
        model = self.trainer.network.model
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        tokens = sum(entry["tokens"] for entry in outcome.curves.steps)
        report = self.context.report
        report.setdefault("tuning", {}).update(
            {
                "steps": outcome.steps,
                "planned_steps": outcome.total,
                "trained_parameters": trained,
                "device": str(self.device),
                "packed": self.trainer.network.packed,
                "notes": [*self.trainer.network.notes, *outcome.notices],
                "seconds": round(outcome.seconds, 3),
                "tokens": int(tokens),
                "peak_memory": max((int(entry["memory"]) for entry in outcome.curves.steps), default=0),
                "best_step": outcome.best_step,
                "stopped_early": outcome.stopped_early,
                "resumed_from": outcome.resumed_from,
            }
        )
        report["curves"] = outcome.curves.to_json()
        report.setdefault("pictures", {})["curves.svg"] = svg(outcome.curves, f"training, {outcome.steps} steps")
        return outcome

    def load(self, state: dict[str, Any]) -> None:
        """Set the adapter to a state."""
        self.trainer.load(state)


def _memory(device: Any) -> int:
    """Return the peak memory so far in bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    import psutil

    return int(psutil.Process().memory_info().rss)


def _compile(peft_model: Any, mode: str | None) -> None:
    """Compile layer by layer: layers are alike, so the first one's code serves all."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for module in peft_model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(mode=mode, dynamic=True)


def _add_noise(peft_model: Any, alpha: float) -> None:
    """Add NEFTune's uniform noise to the embeddings while training."""
    import torch

    def hook(module: Any, _inputs: Any, output: Any) -> Any:
        if not module.training:
            return output
        bound = alpha / (output.shape[-2] * output.shape[-1]) ** 0.5
        return output + torch.empty_like(output).uniform_(-bound, bound)

    peft_model.get_base_model().get_input_embeddings().register_forward_hook(hook)
