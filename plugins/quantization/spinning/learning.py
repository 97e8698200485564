"""Learns a decoder's rotations: those with which its rounded weights and states cost least on a text."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from drupe.core.context import PassContext
from drupe.core.errors import Interrupted, PassError
from drupe.plugins.quantization.layers import Scheme
from drupe.plugins.quantization.spinning.cayley import CayleySGD
from drupe.plugins.quantization.spinning.config import RotationTrainingArgs, SpinQuantConfig
from drupe.plugins.quantization.spinning.rounding import rounded_inputs, rounded_weights
from drupe.plugins.quantization.spinning.turning import TurnedDecoder
from drupe.plugins.tuning.checkpoints import CHECKPOINT_SECONDS, Checkpoints

__all__ = ["Learning"]

_JUDGES = 8
"""One of so many sequences is not learned from: it judges what was learned."""


@dataclass(frozen=True)
class _Begun:
    """What was done before: steps, the losses that they began with, in float and rounded, and their curve."""

    step: int
    unrounded: float
    rounded: float
    curve: list[dict[str, float]]


class Learning:
    """A turned decoder and the text that it learns from. schemes: the grid of each layer, {} where weights stay.

    Every eighth sequence is kept apart; fewer than eight all judge as well. What was learned is handed out only where
    the rounded model's loss on them is below that of the rotations that learning began with. Checkpoints hold the
    rotations and where learning stands, so that a stopped run goes on as if nothing had happened.
    """

    def __init__(
        self,
        pass_name: str,
        decoder: TurnedDecoder,
        tokens: Sequence[Any],
        schemes: dict[str, Scheme],
        config: SpinQuantConfig,
        seed: int,
        context: PassContext,
    ) -> None:
        self.pass_name = pass_name
        self.decoder = decoder
        self.config = config
        self.args: RotationTrainingArgs = config.training_args
        self.schemes = schemes
        self.context = context
        self.order = torch.Generator().manual_seed(seed if self.args.seed is None else self.args.seed)
        # Those that judge lie among the others, so that they are of the same kinds of text.
        self.judges = list(tokens[_JUDGES - 1 :: _JUDGES]) or list(tokens)
        apart = len(tokens) >= _JUDGES
        self.texts = [row for n, row in enumerate(tokens) if not apart or n % _JUDGES != _JUDGES - 1]
        self.dtype = torch.bfloat16 if self.args.bf16 else None
        self.checkpoints = Checkpoints(context.checkpoint_dir / "learning")

    def learn(self) -> None:
        """Learn; the decoder's rotations are the better ones afterwards. Raises PassError where the loss is lost."""
        from transformers import get_scheduler

        args, decoder = self.args, self.decoder
        decoder.recompute = args.gradient_checkpointing
        each = math.ceil(len(self._batches()) / args.gradient_accumulation_steps)
        steps = args.max_steps if args.max_steps > 0 else max(1, math.ceil(args.num_train_epochs * each))
        warmup = args.warmup_steps if args.warmup_steps >= 1 else args.warmup_steps * steps
        optimizer = CayleySGD([rotation.learned for rotation in decoder.rotations], lr=args.learning_rate)
        schedule = get_scheduler(args.lr_scheduler_type, optimizer, int(warmup), steps)
        begun = self._restore(optimizer, schedule, steps)
        if begun is None:
            with self.decoder.held():
                unrounded = self._judged()
            begun = _Begun(0, unrounded, self._judged_rounded(), [])
        unrounded, before, curve = begun.unrounded, begun.rounded, begun.curve
        saved_at = time.monotonic()
        # The order of sequences follows from the seed: what was learned from before is passed over.
        groups = itertools.islice(self._steps(), begun.step, None)
        done = begun.step
        try:
            with self._rounded():
                for step, group in zip(range(begun.step + 1, steps + 1), groups, strict=False):
                    loss = self._step(group, optimizer)
                    schedule.step()
                    if not math.isfinite(loss):
                        raise PassError(
                            f"{self.pass_name}: the loss is {loss} at step {step} of {steps}; lower "
                            f"training_args.learning_rate ({args.learning_rate}), or give more bits"
                        )
                    done = step
                    if step == 1 or step == steps or step % args.logging_steps == 0:
                        curve.append({"step": step, "loss": loss})
                    if self._wants_checkpoint(step, each, saved_at):
                        self._save(_Begun(step, unrounded, before, curve), optimizer, schedule)
                        saved_at = time.monotonic()
                    self.context.progress(step, steps, f"learning, step {step} of {steps}", loss=loss)
        except Interrupted:
            if args.save_strategy != "no":
                self._save(_Begun(done, unrounded, before, curve), optimizer, schedule)
            raise
        learned = self._judged_rounded()
        kept = learned < before
        if not kept:
            for rotation in decoder.rotations:
                rotation.reset()
            self.context.log.warning(
                "%s: on the text kept apart the learned rotations cost %.4f nats a token and those that learning began "
                "with %.4f, which are kept; give more text, or another training_args.learning_rate",
                self.pass_name,
                learned,
                before,
            )
        self.context.report["learning"] = {
            "steps": steps,
            "sequences": {"learned_from": len(self.texts), "judged_on": len(self.judges)},
            "loss": {"float": unrounded, "begun_with": before, "learned": learned},
            "kept": "learned" if kept else "begun with",
            "curve": curve,
            "resumed_from": begun.step or None,
        }

    def _wants_checkpoint(self, step: int, epoch: int, saved_at: float) -> bool:
        """epoch: the steps of one."""
        match self.args.save_strategy:
            case None:
                return time.monotonic() - saved_at >= CHECKPOINT_SECONDS
            case "no":
                return False
            case "steps":
                return step % self.args.save_steps == 0
            case _:
                return step % epoch == 0

    def _save(self, begun: _Begun, optimizer: CayleySGD, schedule: Any) -> None:
        state = {
            "rotations": [rotation.learned.detach().cpu().clone() for rotation in self.decoder.rotations],
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            **asdict(begun),
        }
        self.checkpoints.save(begun.step, state)

    def _restore(self, optimizer: CayleySGD, schedule: Any, steps: int) -> _Begun | None:
        """Take up the newest checkpoint; return what was done by then, None where there is none that fits."""
        found = self.checkpoints.latest()
        if found is None:
            return None
        step, state = found
        rotations = [rotation.learned for rotation in self.decoder.rotations]
        if step > steps or [one.shape for one in state["rotations"]] != [one.shape for one in rotations]:
            return None
        with torch.no_grad():
            for rotation, learned in zip(rotations, state["rotations"], strict=True):
                rotation.copy_(learned)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        self.context.log.info("%s: going on from the checkpoint of step %d of %d", self.pass_name, step, steps)
        return _Begun(step, state["unrounded"], state["rounded"], state["curve"])

    def _step(self, group: Sequence[Any], optimizer: CayleySGD) -> float:
        optimizer.zero_grad()
        tokens = sum(_targets(batch) for batch in group)
        total = 0.0
        for batch in group:
            self.context.raise_if_cancelled()
            loss = self._loss(batch) / tokens
            loss.backward()
            total += float(loss.detach())
        if math.isfinite(total):
            optimizer.step()
        return total

    def _loss(self, batch: Any) -> Any:
        """Return the sum of the next tokens' cross-entropies, in nats."""
        logits = self.decoder.logits(batch, dtype=self.dtype)[:, :-1]
        return torch.nn.functional.cross_entropy(
            logits.float().reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1), reduction="sum"
        )

    def _judged_rounded(self) -> float:
        with self._rounded(), self.decoder.held():
            return self._judged()

    def _judged(self) -> float:
        """Return the loss on the sequences that judge, in nats a token."""
        total = 0.0
        batches = _joined(self.judges, self.args.per_device_train_batch_size)
        for batch in batches:
            self.context.raise_if_cancelled()
            total += float(self._loss(batch))
        return total / sum(_targets(batch) for batch in batches)

    @contextmanager
    def _rounded(self) -> Iterator[None]:
        """Round weights and inputs as the config says."""
        config, decoder = self.config, self.decoder
        hooks = []
        if self.schemes:
            decoder.round = lambda name, weights: rounded_weights(weights, self.schemes[name])
        if config.a_bits < 16:

            def give(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
                states = rounded_inputs(
                    arguments[0], config.a_bits, symmetric=config.a_symmetric, per_token=config.a_per_token
                )
                return (states, *arguments[1:])

            blocks = decoder.network.get_submodule(decoder.structure.blocks)
            layers = [module for module in blocks.modules() if isinstance(module, torch.nn.Linear)]
            hooks = [layer.register_forward_pre_hook(give) for layer in layers]
        try:
            yield
        finally:
            decoder.round = None
            for hook in hooks:
                hook.remove()

    def _steps(self) -> Iterator[list[Any]]:
        """Yield the micro-batches of each step, epoch after epoch."""
        many = self.args.gradient_accumulation_steps
        while True:
            batches = self._batches()
            for begin in range(0, len(batches), many):
                yield batches[begin : begin + many]

    def _batches(self) -> list[Any]:
        """Return an epoch's micro-batches (b, n) of sequences of one length, in a random order."""
        order = torch.randperm(len(self.texts), generator=self.order).tolist()
        batches = _joined([self.texts[place] for place in order], self.args.per_device_train_batch_size)
        return [batches[place] for place in torch.randperm(len(batches), generator=self.order).tolist()]


def _joined(rows: Sequence[Any], size: int) -> list[Any]:
    """Return sequences (1, n) as batches (b, n) of one length each, b at most `size`."""
    by_length: dict[int, list[Any]] = {}
    for row in rows:
        by_length.setdefault(row.shape[1], []).append(row)
    return [
        torch.cat(alike[begin : begin + size])
        for _, alike in sorted(by_length.items())
        for begin in range(0, len(alike), size)
    ]


def _targets(batch: Any) -> int:
    """Return how many tokens of a batch (b, n) are predicted."""
    return int(batch.shape[0] * (batch.shape[1] - 1))
