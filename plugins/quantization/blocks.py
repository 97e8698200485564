"""Runs a decoder block by block, giving each layer's inputs as second moments before the block is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from drupe.core.context import PassContext
from drupe.core.errors import PassError
from drupe.plugins.quantization.layers import blocks_of

__all__ = ["Blocks", "Part"]

Solve = Callable[[str, Any, Any], None]
"""Called with a layer's name, the layer and its inputs' second moments (columns, columns); it may change the layer."""
SolveBlock = Callable[["Part"], None]
"""Called with a block and what its layers are given; it may change the block."""


@dataclass(frozen=True)
class Part:
    """A decoder's block, or its head. prefix: its name; layers: the wanted ones by name; moments: their inputs' second
    moments; run: gives what the block adds to the first sequence's states."""

    prefix: str
    block: Any
    layers: Mapping[str, Any]
    moments: Mapping[str, Any]
    run: Callable[[], Any]


class _Enough(Exception):
    """All blocks' arguments are known."""


class Blocks:
    """A network and the sequences that run through it."""

    def __init__(self, network: Any, tokens: Sequence[Any], context: PassContext) -> None:
        self.network = network
        self.tokens = tokens
        self.context = context
        self.prefix, self.blocks = blocks_of(network)

    def each_layer(self, wanted: Set[str], solve: Solve) -> None:
        """Call `solve` for each wanted layer in order; layers that it changes feed the blocks behind them."""

        def each(part: Part) -> None:
            for name, module in part.layers.items():
                solve(name, module, part.moments[name])

        self.each_block(wanted, each)

    def each_block(self, wanted: Set[str], solve: SolveBlock) -> None:
        """Call `solve` for each block in order, and for the head where it is wanted."""
        import torch

        with torch.inference_mode():
            states, arguments = self.first()
            for number, block in enumerate(self.blocks):
                self.context.progress(number, len(self.blocks), f"block {number + 1} of {len(self.blocks)}")
                prefix = f"{self.prefix}.{number}"
                layers = {
                    f"{prefix}.{name}": module for name, module in block.named_modules() if f"{prefix}.{name}" in wanted
                }
                run = partial(self._through, number, states, arguments)
                moments = self._moments(layers, run) if layers else {}
                solve(
                    Part(prefix, block, layers, moments, partial(self._added, number, states[0], arguments[number][0]))
                )
                del moments
                states = self._through(number, states, arguments)
            if "lm_head" in wanted:
                head = {"lm_head": self.network.get_submodule("lm_head")}
                solve(Part("lm_head", head["lm_head"], head, self._moments(head, self._whole), self._whole))

    def first(self) -> tuple[list[Any], list[list[tuple[Any, Any]]]]:
        """Return the first block's inputs, and each block's further arguments, for each sequence.

        A block may have arguments of its own, such as a mask for a sliding window.
        """
        states: list[Any] = []
        arguments: list[list[tuple[Any, Any]]] = [[] for _ in self.blocks]

        def watch(number: int) -> Any:
            def hook(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
                if number == 0:
                    states.append(positional[0] if positional else named["hidden_states"])
                rest = {key: value for key, value in named.items() if key != "hidden_states"}
                arguments[number].append((positional[1:], rest))
                if number == len(self.blocks) - 1:
                    # What follows is not asked for, and the logits of long texts are large.
                    raise _Enough

            return hook

        hooks = [
            block.register_forward_pre_hook(watch(number), with_kwargs=True) for number, block in enumerate(self.blocks)
        ]
        try:
            for ids in self.tokens:
                self.context.raise_if_cancelled()
                with suppress(_Enough):
                    self.network(input_ids=ids, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return states, arguments

    def _through(self, number: int, states: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        outputs = []
        for state, (positional, named) in zip(states, arguments[number], strict=True):
            self.context.raise_if_cancelled()
            outputs.append(self._one(number, state, (positional, named)))
        return outputs

    def _added(self, number: int, state: Any, arguments: tuple[Any, Any]) -> Any:
        return self._one(number, state, arguments) - state

    def _one(self, number: int, state: Any, arguments: tuple[Any, Any]) -> Any:
        positional, named = arguments
        out = self.blocks[number](state, *positional, **named)
        return out[0] if isinstance(out, tuple) else out

    def _whole(self) -> None:
        for ids in self.tokens:
            self.context.raise_if_cancelled()
            self.network(input_ids=ids, use_cache=False)

    def _moments(self, layers: dict[str, Any], run: Callable[[], Any]) -> dict[str, Any]:
        """Return the second moments of each layer's inputs while `run` runs."""
        found: dict[str, Any] = {}

        def watch(name: str) -> Any:
            def hook(_: Any, inputs: tuple[Any, ...]) -> None:
                rows = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
                moment = rows.T @ rows
                found[name] = found[name] + moment if name in found else moment

            return hook

        hooks = [module.register_forward_pre_hook(watch(name)) for name, module in layers.items()]
        try:
            run()
        finally:
            for hook in hooks:
                hook.remove()
        silent = [name for name in layers if name not in found]
        if silent:
            raise PassError(
                f"nothing of the calibration text reaches {silent[0]}, so its inputs are not known; give more text, or "
                "leave that layer out"
            )
        return found
