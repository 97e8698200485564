"""The training loop: steps, evaluation, checkpoints, and what is told while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from drupe.core.context import JobContext
from drupe.core.errors import Interrupted, PassError
from drupe.plugins.tuning.arguments import TrainingArgs
from drupe.plugins.tuning.batches import Layout, Order, layouts
from drupe.plugins.tuning.checkpoints import CHECKPOINT_SECONDS, Checkpoints
from drupe.plugins.tuning.curves import Curves
from drupe.plugins.tuning.network import Network, evaluating
from drupe.plugins.tuning.optimizers import make_optimizer, make_scheduler, optimized
from drupe.plugins.tuning.parallel import Alone
from drupe.plugins.tuning.rows import Row

__all__ = ["Accumulator", "Outcome", "Trainer"]


class Accumulator(Protocol):
    """Runs one layout forward and backward: adds `scale` × its gradient, returns `scale` × its summed loss."""

    def __call__(self, layout: Layout, scale: float) -> Any: ...


@dataclass
class Outcome:
    """What training came to. state: the adapter to hand out (the best one where that was asked for)."""

    steps: int
    total: int
    curves: Curves
    state: dict[str, Any]
    best_step: int | None = None
    stopped_early: bool = False
    resumed_from: int | None = None
    seconds: float = 0.0
    notices: list[str] = field(default_factory=list)


class Trainer:
    """Trains the adapter of one network on rows, as the training arguments say.

    The protocol: `run` restores the newest checkpoint where there is one, takes steps until `total_steps`, evaluates
    and saves in between, and returns the outcome. Cancelling saves a checkpoint and raises Interrupted.
    """

    def __init__(
        self,
        network: Network,
        rows: Sequence[Row],
        eval_rows: Sequence[Row],
        args: TrainingArgs,
        context: JobContext,
        *,
        seed: int,
        budget: int,
        patience: int | None = None,
        threshold: float = 0.0,
        memory: Callable[[], int] | None = None,
        team: Alone | None = None,
    ) -> None:
        self.team = team or Alone()
        self.network = network
        self.rows = rows
        self.eval_rows = eval_rows
        self.args = args
        self.context = context
        self.budget = budget
        self.patience = patience
        self.threshold = threshold
        self.accumulate: Accumulator = self.plain
        self.when_out_of_memory: Callable[[], bool] = lambda: False
        self.memory = memory or (lambda: 0)
        data_seed = seed if args.data_seed is None else args.data_seed
        self.order = Order(
            tuple(row.length for row in rows),
            args.per_device_train_batch_size * self.team.size,
            args.gradient_accumulation_steps,
            data_seed,
            args.train_sampling_strategy,
            args.dataloader_drop_last,
        )
        self.checkpoints = Checkpoints(context.checkpoint_dir / "training", keep=args.save_total_limit or 1)
        self.total_steps = (
            args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * self.order.steps_per_epoch)
        )
        self.optimizer, self.notices = make_optimizer(network.model, args, network.device)
        self.team.copy(optimized(self.optimizer))
        self.scheduler = make_scheduler(self.optimizer, args, self.total_steps)
        self.curves = Curves()
        self._named = {n: p for n, p in network.model.named_parameters() if p.requires_grad}
        self._best: tuple[float, int] | None = None
        self._waited = 0
        self._saved_at = time.monotonic()
        self._pending: list[tuple[dict[str, Any], Any, Any]] = []

    def plain(self, layout: Layout, scale: float) -> Any:
        """Forward and backward as they stand."""
        loss = self.network.loss(layout) * scale
        loss.backward()
        return loss.detach()

    def run(self) -> Outcome:
        """Train. Raises PassError when the loss is not finite, Interrupted when cancelled."""
        started = time.monotonic()
        done = self._restore()
        resumed = done or None
        self.network.model.train()
        if done == 0 and self.args.eval_on_start and self.eval_rows:
            self._evaluate(0)
        stopped = False
        steps = self.order.steps(done)
        while done < self.total_steps:
            done += 1
            self._step(done, next(steps))
            if self._due(done, self.args.eval_strategy or ("epoch" if self.eval_rows else "no"), self._eval_every()):
                stopped = self._evaluate(done)
            self._log(done)
            if self._wants_checkpoint(done):
                self._save(done)
            self._tell(done)
            if stopped:
                break
        self._settle()
        state = self.adapter_state()
        best = self._best[1] if self._best and self.args.load_best_model_at_end else None
        if best is not None and best != done:
            saved = self.checkpoints.best()
            if saved is not None:
                state = saved["adapter"]
        seconds = time.monotonic() - started
        return Outcome(done, self.total_steps, self.curves, state, best, stopped, resumed, seconds, self.notices)

    def adapter_state(self) -> dict[str, Any]:
        """Return a copy of what is trained, by parameter name, on the CPU."""
        return {name: p.detach().cpu().clone() for name, p in self._named.items()}

    def _step(self, number: int, chosen: Sequence[int]) -> None:
        import torch

        begun = time.monotonic()
        rows = [self.rows[index] for index in chosen]
        if self.network.ranks is not None:
            rows = self.network.ranks.assign(rows, number)
        parameters = optimized(self.optimizer)
        answers = sum(int(row.targets.size) for row in rows)
        mine = self.team.share(rows)
        while True:
            fault: torch.OutOfMemoryError | None = None
            try:
                total = self._gradients(mine, answers)
            except torch.OutOfMemoryError as error:
                if self.team.sharded:
                    # The others wait in the middle of the pass for this one's share.
                    raise
                fault = error
            if not any(self.team.any(fault is not None)):
                break
            torch._foreach_zero_([p.grad for p in parameters])
            if not self.when_out_of_memory():
                raise fault or PassError("memory ran out in another process of this job")
        self.team.sum([*(p.grad for p in parameters), total])
        limit = self.args.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True)
        rate = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        # Gradients keep their place in memory: a captured graph adds into it.
        torch._foreach_zero_([p.grad for p in parameters])
        facts = {"step": number, "learning_rate": rate, "tokens": sum(row.length for row in rows), "begun": begun}
        self._pending.append((facts, total, norm))
        # A GPU works on while the host reads the step before: reading the newest would make it wait.
        self._settle(keep=1 if self.network.device.type == "cuda" else 0)
        every = self.args.torch_empty_cache_steps
        if every and number % every == 0 and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _gradients(self, rows: Sequence[Row], answers: int) -> Any:
        """Add up the gradients of this process's rows of a step that has `answers` answer tokens; return their loss."""
        import torch

        total = torch.zeros((), device=self.network.device)
        for layout, counts in self._in_step(self._layouts(rows)):
            total = total + self.accumulate(layout, counts / answers)
        return total

    def _layouts(self, rows: Sequence[Row]) -> list[Layout]:
        return layouts(rows, self.budget, packing=self.network.packed, pad_id=self.network.pad_id)

    def _in_step(self, mine: list[Layout]) -> list[tuple[Layout, float]]:
        """Return layouts and what each counts; where layers are fetched together, all processes take as many passes."""
        missing = self.team.most(len(mine)) - len(mine) if self.team.sharded else 0
        filler = (mine or self._layouts(self.rows[:1]))[0] if missing else None
        return [*((layout, 1.0) for layout in mine), *((filler, 0.0) for _ in range(missing) if filler is not None)]

    def _settle(self, keep: int = 0) -> None:
        """Read the losses of all steps but the newest `keep`, and check them."""
        while len(self._pending) > keep:
            facts, total, norm = self._pending.pop(0)
            loss, size = float(total), float(norm)
            if not math.isfinite(loss) or not math.isfinite(size):
                raise PassError(self._not_finite(facts["step"], loss, size))
            # The host runs ahead of a GPU: from one step's begin to the next is what a step takes.
            end = self._pending[0][0]["begun"] if self._pending else time.monotonic()
            seconds = end - facts.pop("begun")
            speed = facts["tokens"] / max(seconds, 1e-9)
            self.curves.steps.append(
                {**facts, "loss": loss, "grad_norm": size, "tokens_per_second": speed, "memory": self.memory()}
            )

    def _not_finite(self, number: int, loss: float, norm: float) -> str:
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        kept = self.checkpoints.steps()
        place = f"the checkpoint of step {kept[-1]} is kept" if kept else "there was no checkpoint yet"
        return (
            f"{what} at step {number} of {self.total_steps}; {place}. Lower training_args.learning_rate "
            f"(now {self.args.learning_rate:g}), add warmup_steps, or check the rows of this step"
        )

    def _evaluate(self, number: int) -> bool:
        """Measure the evaluation rows; return whether to stop early. Keeps the best adapter."""
        import torch

        self._settle()
        begun = time.monotonic()
        answers = sum(int(row.targets.size) for row in self.eval_rows)
        ordered = sorted(self.team.share(self.eval_rows), key=lambda row: -row.length)
        budget = self.args.per_device_eval_batch_size * max(row.length for row in self.eval_rows)
        mine = layouts(ordered, budget, packing=self.network.packed, pad_id=self.network.pad_id)
        summed = torch.zeros((), dtype=torch.float64, device=self.network.device)
        with torch.no_grad(), evaluating(self.network.model):
            for layout, counts in self._in_step(mine):
                summed += counts * self.network.loss(layout)
                self.context.raise_if_cancelled()
        self.team.sum([summed])
        loss = float(summed) / answers
        self.curves.evaluations.append({"step": number, "loss": loss, "seconds": time.monotonic() - begun})
        self.context.log.info("step %d: evaluation loss %.4f", number, loss)
        if self._best is None or loss < self._best[0] - self.threshold:
            self._best, self._waited = (loss, number), 0
            if self.args.load_best_model_at_end or self.args.save_strategy == "best":
                self._save(number, best=True)
        else:
            self._waited += 1
        return self.patience is not None and self._waited >= self.patience

    def _eval_every(self) -> int:
        return self._count(self.args.eval_steps or self.args.logging_steps)

    def _count(self, value: float) -> int:
        return max(1, math.ceil(value * self.total_steps) if value < 1 else int(value))

    def _due(self, step: int, strategy: str, every: int) -> bool:
        epoch_ends = step % self.order.steps_per_epoch == 0 or step == self.total_steps
        if strategy == "epoch":
            return epoch_ends and step / self.order.steps_per_epoch >= self.args.eval_delay
        return strategy == "steps" and (step % every == 0 or step == self.total_steps) and step >= self.args.eval_delay

    def _log(self, step: int) -> None:
        strategy, every = self.args.logging_strategy, self._count(self.args.logging_steps)
        epoch_ends = step % self.order.steps_per_epoch == 0
        if (
            (strategy == "steps" and step % every == 0)
            or (strategy == "epoch" and epoch_ends)
            or (step == 1 and self.args.logging_first_step)
            or step == self.total_steps
        ):
            self._settle()
            last = self.curves.steps[-1]
            self.context.log.info(
                "step %d of %d: loss %.4f, learning rate %.3g, %.0f tokens/s",
                *(step, self.total_steps, last["loss"], last["learning_rate"], last["tokens_per_second"]),
            )

    def _tell(self, done: int) -> None:
        if not self.curves.steps:
            return
        last = self.curves.steps[-1]
        try:
            self.context.progress(
                done,
                self.total_steps,
                "training",
                loss=last["loss"],
                learning_rate=last["learning_rate"],
                tokens_per_second=last["tokens_per_second"],
            )
        except Interrupted:
            if self.args.save_strategy != "no":
                self._save(done)
            raise

    def _wants_checkpoint(self, done: int) -> bool:
        strategy = self.args.save_strategy
        if strategy is None:
            return done < self.total_steps and time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS
        if strategy == "epoch":
            return done % self.order.steps_per_epoch == 0
        return strategy == "steps" and done % self._count(self.args.save_steps) == 0

    def _save(self, done: int, best: bool = False) -> None:
        import torch

        self._settle()
        if self.team.rank:
            return
        state = {
            "adapter": self.adapter_state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "random_gpu": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "curves": self.curves.to_json(),
            "best": self._best,
            "waited": self._waited,
        }
        self.checkpoints.save(done, state, best)
        self._saved_at = time.monotonic()

    def _restore(self) -> int:
        """Take up the newest checkpoint; return how many steps are done."""
        import torch

        found = self.checkpoints.latest()
        if found is None:
            return 0
        done, state = found
        if state["adapter"].keys() != self._named.keys() or done > self.total_steps:
            self.notices.append(f"the checkpoint of step {done} is of another adapter; training starts anew")
            return 0
        self.load(state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"])
        if state["random_gpu"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_gpu"])
        self.curves = Curves.from_json(state["curves"])
        self._best = tuple(state["best"]) if state["best"] is not None else None
        self._waited = state["waited"]
        self.context.log.info("going on from the checkpoint of step %d of %d", done, self.total_steps)
        return done

    def load(self, state: dict[str, Any]) -> None:
        """Set what is trained to a state that `adapter_state` gave."""
        import torch

        with torch.no_grad():
            for name, tensor in state.items():
                self._named[name].copy_(tensor)
