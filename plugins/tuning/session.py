"""One training session: chooses how the model is run, forecasts, trains, and reports what happened."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.plugins.tuning.batches import Layout, layouts
from drupe.plugins.tuning.config import ElasticLoRAConfig, TuningConfig
from drupe.plugins.tuning.costs import Costs, measure
from drupe.plugins.tuning.curves import svg
from drupe.plugins.tuning.elastic import Ranks
from drupe.plugins.tuning.fused import fuse
from drupe.plugins.tuning.graphs import GraphAccumulator
from drupe.plugins.tuning.layers import Layers
from drupe.plugins.tuning.loop import Outcome, Trainer
from drupe.plugins.tuning.network import Network
from drupe.plugins.tuning.parallel import Alone, shard
from drupe.plugins.tuning.plan import Plan, choose, plans
from drupe.plugins.tuning.rows import Row
from drupe.plugins.tuning.static import size_for

__all__ = ["Session"]

_COMPILE_PAYS = 5e16
"""Operations of a run from which on compiling its layers, about a minute, is won back on a GPU."""


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
        team: Alone | None = None,
    ) -> None:
        """team: the processes that train together; with shares of the base, the model may still lie on the CPU."""
        args = config.training_args
        self.team = team or Alone()
        context = self.team.agreed(context)
        self.config, self.context, self.device = config, context, device
        self.begun = time.monotonic()
        self.gpu = device.type == "cuda"
        peft_model.train()
        if args.use_liger_kernel:
            _liger(peft_model, args.liger_kernel_config)
        ranks = None
        if isinstance(config, ElasticLoRAConfig):
            ranks = Ranks(config.ranks, seed, peft_model.get_base_model().dtype)
        fused = fuse(peft_model, ranks=ranks)
        if ranks is not None and fused != sum(hasattr(module, "lora_A") for module in peft_model.modules()):
            raise ConfigError(
                "ElasticLoRA: only linear layers can have ordered ranks; leave others out of target_modules"
            )
        if args.neftune_noise_alpha:
            _add_noise(peft_model, args.neftune_noise_alpha)
        if self.team.sharded:
            shard(peft_model, device)
        self.layers = Layers(peft_model, random=_draws_random_numbers(peft_model))
        self.longest = max(row.length for row in rows)
        self.network = Network.of(
            peft_model, device, [*rows, *eval_rows], self._packing(rows), args.label_smoothing_factor, ranks
        )
        self.trainer = Trainer(
            self.network,
            rows,
            eval_rows,
            args,
            context,
            seed=seed,
            budget=self.longest * args.per_device_train_batch_size,
            patience=config.early_stopping_patience,
            threshold=config.early_stopping_threshold,
            memory=self.memory,
            team=self.team,
        )
        self.chain: list[Plan] = []
        self.notes = [*self.network.notes, *self.trainer.notices]
        if args.fsdp and not self.team.sharded:
            self.notes.append("training_args.fsdp has no effect: one process trains")
        self.graphs: GraphAccumulator | None = None
        self.forecast: dict[str, Any] = {}
        self._prepare()
        for note in self.notes:
            context.log.info("%s", note)

    def train(self) -> Outcome:
        """Train; the report gets the facts, the curves and their picture."""
        outcome = self.trainer.run()
        tokens = int(sum(entry["tokens"] for entry in outcome.curves.steps))
        report = self.context.report
        report.setdefault("tuning", {}).update(
            {
                "steps": outcome.steps,
                "planned_steps": outcome.total,
                "trained_parameters": sum(p.numel() for p in self.network.model.parameters() if p.requires_grad),
                "held_parameters": sum(_here(p).numel() for p in self.network.model.parameters()),
                "device": str(self.device),
                "processes": self.team.size,
                "packed": self.network.packed,
                "notes": [*self.notes, *(self.graphs.notes if self.graphs else ())],
                "tokens": tokens,
                "forecast": self.forecast,
                "measured": {
                    "seconds": round(time.monotonic() - self.begun, 3),
                    "training_seconds": round(outcome.seconds, 3),
                    "peak_memory": max((int(entry["memory"]) for entry in outcome.curves.steps), default=0),
                },
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

    def memory(self) -> int:
        """Return the peak memory so far in bytes: of the GPU, or of this process."""
        if self.gpu:
            import torch

            return int(torch.cuda.max_memory_allocated(self.device))
        import psutil

        return int(psutil.Process().memory_info().rss)

    def _packing(self, rows: Sequence[Row]) -> bool | str:
        """Pack unless rows are so alike that padding costs nothing: a GPU's attention is fastest on equal rows."""
        full = sum(row.length for row in rows) >= 0.97 * len(rows) * self.longest
        return False if self.config.packing == "auto" and self.gpu and full else self.config.packing

    def _sample(self) -> list[list[Layout]]:
        """Return the layouts of the first steps, as a picture of all."""
        return [
            layouts(
                self.team.share([self.trainer.rows[index] for index in chosen]) or self.trainer.rows[:1],
                self.trainer.budget,
                packing=self.network.packed,
                pad_id=self.network.pad_id,
            )
            for chosen in islice(self.trainer.order.steps(), min(20, self.trainer.total_steps))
        ]

    def _tokens(self, layout: Layout) -> int:
        """Return the tokens that a layout costs, what fills it up included."""
        if not self.gpu:
            return layout.input_ids.size
        size = size_for(layout, self.trainer.budget, self.longest)
        return size.batch * size.width

    def _prepare(self) -> None:
        """Compile where it pays, forecast, choose a plan and take it."""
        args, trainer = self.config.training_args, self.trainer
        sample = self._sample()
        steps = [sum(self._tokens(layout) for layout in step) for step in sample]
        parameters = sum(p.numel() for p in self.network.model.parameters())
        work = 4.0 * parameters * trainer.total_steps * sum(steps) / len(steps)
        if args.torch_compile or (args.torch_compile is None and self.gpu and work > _COMPILE_PAYS):
            # Packed rows come in several sizes: the second one makes the compiler serve all that follow.
            self.layers.compile(args.torch_compile_mode, dynamic=None if self.network.packed else False)
        recompute = args.gradient_checkpointing
        if not self.layers.layers:
            if recompute:
                self.network.model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
            self.notes.append("no forecast: the model's layers are not of a kind that is known")
            return
        costs = measure(
            self.network,
            self.layers,
            max((layout for step in sample for layout in step), key=self._tokens),
            trainer.budget,
            self.longest,
            self._optimizer_bytes(),
            sharded=self.team.sharded,
        )
        largest = max(self._tokens(layout) for step in sample for layout in step)
        found = plans(costs, largest, max(steps), grow=self.gpu, recompute=recompute)
        # Measured times differ a little between processes; the plan must not.
        self.chain = self.team.same(self._chain(found))
        if self.team.sharded:
            self.notes.append("with fsdp a process that runs out of memory ends the job: there is no smaller plan")
            if self.gpu:
                self.notes.append("the forecast of time with fsdp is an upper bound, measured on one small pass")
        self._take(self.chain.pop(0))
        self._tell_forecast(costs, steps)

    def _chain(self, found: list[Plan]) -> list[Plan]:
        wanted = self.config.memory
        if wanted == "smallest":
            return [min(found, key=lambda plan: (plan.memory, plan.seconds))]
        limit = self._free() if isinstance(wanted, str) else int(wanted * 2**30)
        return choose(found, limit)

    def _free(self) -> int:
        """Return the bytes that this job may come to use on its device."""
        if self.gpu:
            import torch

            free, _ = torch.cuda.mem_get_info(self.device)
            return int(0.92 * (free + torch.cuda.memory_reserved(self.device)))
        import psutil

        free = psutil.virtual_memory().available + psutil.Process().memory_info().rss
        return int(0.9 * min(free, self.context.resources.memory or free))

    def _take(self, plan: Plan) -> None:
        self.plan = plan
        self.layers.recompute(plan.recompute)
        self.trainer.budget = max(plan.budget, self.longest)
        if self.gpu and not self.team.sharded:
            self.graphs = GraphAccumulator(self.network, self.trainer.budget, self.longest)
            self.trainer.accumulate = self.graphs
        self.trainer.when_out_of_memory = self._smaller

    def _smaller(self) -> bool:
        """Take the next smaller plan; False when there is none."""
        if self.graphs is not None:
            self.graphs.drop()
        if not self.chain:
            return False
        self._take(self.chain.pop(0))
        note = f"memory ran out; the step goes on with {self.plan.budget} tokens a pass and "
        note += f"{self.plan.recompute} of {len(self.layers.layers)} layers recomputing"
        self.notes.append(note)
        self.context.log.warning("%s", note)
        return True

    def _optimizer_bytes(self) -> int:
        """Return the bytes of optimizer state that are not there yet."""
        trained = sum(p.numel() for p in self.network.model.parameters() if p.requires_grad)
        name = self.config.training_args.optim
        each = (
            2 if "8bit" in name else 4 if name in ("adagrad", "rmsprop") else 0 if name in ("sgd", "adafactor") else 8
        )
        return int(trained * each)

    def _tell_forecast(self, costs: Costs, steps: Sequence[int]) -> None:
        mean = sum(steps) / len(steps)
        step = self.plan.seconds * mean / max(steps)
        setup = time.monotonic() - self.begun
        self.forecast = {
            "peak_memory": self.plan.memory,
            "training_seconds": round(step * self.trainer.total_steps, 3),
            "plan": self.plan.to_json(),
            "setup_seconds": round(setup, 3),
        }
        self.context.log.info(
            "forecast: %.2f GiB, %.0f s for %d steps (%d tokens a pass, %d of %d layers recompute)",
            *(self.plan.memory / 2**30, step * self.trainer.total_steps, self.trainer.total_steps),
            *(self.plan.budget, self.plan.recompute, costs.layers),
        )


def _here(parameter: Any) -> Any:
    """Return what of a parameter lies in this process."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def _draws_random_numbers(model: Any) -> bool:
    import torch

    return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())


def _liger(peft_model: Any, wanted: dict[str, bool] | None) -> None:
    """Put liger-kernel's fused layers in where it knows the architecture. Raises ConfigError where it does not."""
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance
    except ImportError:
        raise ConfigError("training_args.use_liger_kernel needs liger-kernel; pip install liger-kernel") from None
    base = peft_model.get_base_model()
    if base.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ConfigError(
            f"training_args.use_liger_kernel: liger-kernel has no layers for {base.config.model_type}; leave it out"
        )
    # The loss is formed at the answers only, by our own head.
    ours = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    _apply_liger_kernel_to_instance(model=base, **{**(wanted or {}), **ours})


def _add_noise(peft_model: Any, alpha: float) -> None:
    """Add NEFTune's uniform noise to the embeddings while training."""
    import torch

    def hook(module: Any, _inputs: Any, output: Any) -> Any:
        if not module.training:
            return output
        bound = alpha / (output.shape[-2] * output.shape[-1]) ** 0.5
        return output + torch.empty_like(output).uniform_(-bound, bound)

    peft_model.get_base_model().get_input_embeddings().register_forward_hook(hook)
