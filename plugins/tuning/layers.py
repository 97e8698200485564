"""The model's layers: found by what they are, compiled as one, and told which of them recompute their activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

__all__ = ["Layers", "decoder_layers"]


def decoder_layers(model: Any) -> list[Any]:
    """Return the repeated layers of a transformers model, in order; [] where it has none that are known as such.

    A sliced decoder's blocks are such layers too.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    from drupe.plugins.quantization.slicing.sliced_decoder import SlicedBlock

    found = [module for module in model.modules() if isinstance(module, (GradientCheckpointingLayer, SlicedBlock))]
    # A layer within a layer (a vision tower's block inside a wrapper) would be treated twice.
    inner = {id(child) for module in found for child in module.modules() if child is not module}
    return [module for module in found if id(module) not in inner]


class Layers:
    """The repeated layers of one model: their `forward` is replaced once; what it does can be changed at any time."""

    def __init__(self, model: Any, random: bool) -> None:
        """random: layers draw random numbers (dropout), which recomputing must repeat."""
        self.layers: Sequence[Any] = decoder_layers(model)
        self.random = random
        self._plain: list[Callable[..., Any]] = [layer.forward for layer in self.layers]
        self._inner = list(self._plain)
        self._recompute = [False] * len(self.layers)
        for number, layer in enumerate(self.layers):
            layer.forward = partial(self._forward, number)

    def compile(self, mode: str | None = None, dynamic: bool | None = False) -> None:
        """Compile the layers' code; layers are alike, so one compilation serves all of one type."""
        import torch

        torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
        compiled: dict[type, Callable[..., Any]] = {}
        for number, layer in enumerate(self.layers):
            kind = type(layer)
            if kind not in compiled:
                function = _unwrapped(kind)
                compiled[kind] = torch.compile(function, mode=mode, dynamic=dynamic)
            self._inner[number] = partial(compiled[kind], layer)

    def plain(self) -> None:
        """Run the layers' code as it stands."""
        self._inner = list(self._plain)

    def recompute(self, count: int) -> None:
        """Let `count` of the layers, spread evenly, keep only their input and compute the rest again going backward."""
        total = len(self.layers)
        self._recompute = [(number + 1) * count // total > number * count // total for number in range(total)]

    def _forward(self, number: int, *args: Any, **kwargs: Any) -> Any:
        import torch
        from torch.utils.checkpoint import checkpoint

        function = self._inner[number]
        if not self._recompute[number] or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        # Asking for the random state would wait for the device and can't be captured; without dropout nobody needs it.
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=self.random, **kwargs)


def _unwrapped(kind: type) -> Callable[..., Any]:
    """Return the class's forward without transformers' own recomputing wrapper."""
    forward: Callable[..., Any] = kind.forward  # type: ignore[attr-defined]
    inner = getattr(forward, "__wrapped__", None)
    is_wrapper = getattr(getattr(forward, "__code__", None), "co_name", "") == "forward_with_checkpointing"
    return inner if is_wrapper and inner is not None else forward
