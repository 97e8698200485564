"""Learns a decoder's rotations: those with which its rounded weights and states cost least on a text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from drupe.core.context import PassContext
from drupe.core.errors import PassError
from drupe.plugins.quantization.layers import Scheme
from drupe.plugins.quantization.spinning.cayley import CayleySGD
from drupe.plugins.quantization.spinning.config import RotationTrainingArgs, SpinQuantConfig
from drupe.plugins.quantization.spinning.rounding import rounded_inputs, rounded_weights
from drupe.plugins.quantization.spinning.turning import TurnedDecoder

__all__ = ["Learning"]

_JUDGES = 8
"""One of so many sequences is not learned from: it judges what was learned."""


class Learning:
    """A turned decoder and the text that it learns from. schemes: the grid of each layer, {} where weights stay.

    Every eighth sequence is kept apart; fewer than eight all judge as well. What was learned is handed out only where
    the rounded model's loss on them is below that of the rotations that learning began with.
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

    def learn(self) -> None:
        """Learn; the decoder's rotations are the better ones afterwards. Raises PassError where the loss is lost."""
        from transformers import get_scheduler

        args, decoder = self.args, self.decoder
        decoder.recompute = args.gradient_checkpointing
        with self.decoder.held():
            unrounded = self._judged()
        before = self._judged_rounded()
        each = math.ceil(len(self._batches()) / args.gradient_accumulation_steps)
        steps = args.max_steps if args.max_steps > 0 else max(1, math.ceil(args.num_train_epochs * each))
        warmup = args.warmup_steps if args.warmup_steps >= 1 else args.warmup_steps * steps
        optimizer = CayleySGD([rotation.learned for rotation in decoder.rotations], lr=args.learning_rate)
        schedule = get_scheduler(args.lr_scheduler_type, optimizer, int(warmup), steps)
        curve: list[dict[str, float]] = []
        with self._rounded():
            for step, group in zip(range(1, steps + 1), self._steps(), strict=False):
                loss = self._step(group, optimizer)
                schedule.step()
                if not math.isfinite(loss):
                    raise PassError(
                        f"{self.pass_name}: the loss is {loss} at step {step} of {steps}; lower "
                        f"training_args.learning_rate ({args.learning_rate}), or give more bits"
                    )
                self.context.progress(step, steps, f"learning, step {step} of {steps}", loss=loss)
                if step == 1 or step == steps or step % args.logging_steps == 0:
                    curve.append({"step": step, "loss": loss})
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
        }

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
