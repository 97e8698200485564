"""What one layer, the head and the optimizer cost on this device: measured on the model itself before training.

A model's layers are alike, so the bytes that one of them keeps for the backward pass and the time that it takes, at the
size that will be trained, tell those of all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from drupe.plugins.tuning.batches import Layout
from drupe.plugins.tuning.graphs import captured, layout_tensors, side_stream
from drupe.plugins.tuning.head import chunk_rows
from drupe.plugins.tuning.layers import Layers
from drupe.plugins.tuning.network import Network
from drupe.plugins.tuning.static import Size, filled, size_for

__all__ = ["Costs", "measure"]


@dataclass(frozen=True)
class Costs:
    """Bytes and seconds, at `tokens` tokens a pass.

    static: the model, adapter, gradients and optimizer state. kept: by one layer for its backward pass; entry: by one
    that recomputes. spike: what one layer's backward pass needs beside. head: what the loss needs beside. forward,
    layer: seconds of one layer's forward, and of forward and backward. rest: seconds of all that is no layer.
    """

    layers: int
    tokens: int
    static: int
    kept: int
    entry: int
    spike: int
    head: int
    forward: float
    layer: float
    rest: float

    def memory(self, tokens: int, recompute: int) -> int:
        """Forecast the peak in bytes of passes of `tokens` tokens with `recompute` layers that recompute."""
        share = tokens / self.tokens
        held = (self.layers - recompute) * self.kept + recompute * self.entry
        again = self.kept if recompute else 0
        return int(self.static + share * (held + max(self.head, again + self.spike)))

    def seconds(self, tokens: int, recompute: int) -> float:
        """Forecast the seconds of one pass, forward and backward."""
        share = tokens / self.tokens
        return share * (self.layers * self.layer + recompute * self.forward + self.rest)


class _Reached(Exception):
    """Raised to leave a forward pass at its first layer."""


def measure(
    network: Network,
    layers: Layers,
    layout: Layout,
    budget: int,
    longest: int,
    state_bytes: int,
    *,
    sharded: bool = False,
) -> Costs:
    """Measure on one layout of the size that will be trained.

    state_bytes: gradients and optimizer state that are not allocated yet. sharded: this process holds a share of each
    layer and fetches the rest, which takes time as well; all processes must measure together.
    """
    with side_stream() if network.device.type == "cuda" and not sharded else nullcontext():
        return _measured(network, layers, layout, budget, longest, state_bytes, sharded)


def _measured(
    network: Network, layers: Layers, layout: Layout, budget: int, longest: int, state_bytes: int, sharded: bool
) -> Costs:
    import torch

    size = size_for(layout, budget, longest)
    inputs, extra = layout_tensors(network, filled(layout, size, network.pad_id), size, 1.0)
    arguments, keywords = _first_layer(network, layers, inputs, extra)
    hidden = arguments[0].detach().requires_grad_()
    layer = layers.layers[0]

    def forward() -> Any:
        out = layer(hidden, *arguments[1:], **keywords)
        return out[0] if isinstance(out, tuple) else out

    with torch.no_grad():
        slope = torch.randn_like(forward())
    both = [p for p in layer.parameters() if p.requires_grad]

    def through() -> None:
        torch.autograd.grad(forward(), [hidden, *both], slope, allow_unused=True)

    layers.recompute(0)
    through()
    kept, entry = _kept(forward, layer, arguments, keywords), hidden.numel() * hidden.element_size()
    spike = _peak(network.device, through, kept)
    tokens = hidden.numel() // hidden.shape[-1]
    with torch.no_grad():
        forward_seconds = _timed(network.device, forward, capture=not sharded)
    head, head_seconds = _head_costs(network, hidden, inputs, size)
    layer_seconds = _timed(network.device, through, capture=not sharded)
    if sharded:
        # One layer is whole while it computes, and the next one while it comes.
        state_bytes += 2 * sum(p.numel() * p.element_size() for p in layer.parameters())
    return Costs(
        layers=len(layers.layers),
        tokens=tokens,
        static=_static(network) + state_bytes,
        kept=kept,
        entry=entry,
        spike=spike,
        head=head,
        # Going backward does at least the forward's products: what a host adds to small kernels is no more than that.
        forward=min(forward_seconds, layer_seconds / 2),
        layer=layer_seconds,
        rest=head_seconds,
    )


def _first_layer(network: Network, layers: Layers, inputs: dict[str, Any], extra: dict[str, Any]) -> Any:
    """Return what the first layer is called with."""
    import torch

    caught: list[Any] = []

    def catch(_module: Any, args: Any, kwargs: Any) -> None:
        caught.append((args, dict(kwargs)))
        raise _Reached

    handle = layers.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with torch.no_grad():
            network.loss_of(inputs["input_ids"], inputs["position_ids"], inputs["predict"], inputs["targets"], extra)
    except _Reached:
        pass
    finally:
        handle.remove()
    args, kwargs = caught[0]
    if not args:
        args = (kwargs.pop("hidden_states"),)
    return args, kwargs


def _kept(forward: Callable[[], Any], layer: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> int:
    """Return the bytes that a forward pass keeps for the backward one, each storage once, weights not counted."""
    import torch
    from torch.utils._pytree import tree_leaves

    given = [t for t in tree_leaves((list(arguments[1:]), keywords)) if isinstance(t, torch.Tensor)]
    known = {t.untyped_storage().data_ptr() for t in [*layer.buffers(), *given]}
    for module in layer.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            known.add(state.absmax.untyped_storage().data_ptr())
    found: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        # Where a share of the layer is held, the whole weights exist only now.
        weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
        if storage.data_ptr() not in known | weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()
    del out
    return int(sum(found.values()))


def _peak(device: Any, through: Callable[[], None], kept: int) -> int:
    """Return what a backward pass needs beside what was kept."""
    import torch

    if device.type != "cuda":
        # A CPU's allocator keeps no such account; a layer's backward needs about what its forward kept.
        return kept // 2
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    through()
    torch.cuda.synchronize()
    highest: int = torch.cuda.max_memory_allocated(device)
    return max(0, highest - int(before) - kept)


def _head_costs(network: Network, hidden: Any, inputs: dict[str, Any], size: Size) -> tuple[int, float]:
    """Return (bytes, seconds) of the loss beside the layers."""
    base = network.model.get_base_model()
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if head is None:
        return 0, 0.0
    vocabulary, width = head.weight.shape
    item = hidden.element_size()
    if not network.split_head:
        return (hidden.numel() // hidden.shape[-1]) * vocabulary * (item + 8), 0.0
    from drupe.plugins.tuning.head import head_loss

    # The head's states may be wider than the first layer's: those of a sliced decoder are.
    flat = hidden.new_zeros(hidden.numel() // hidden.shape[-1], width)
    chosen = flat.index_select(0, inputs["predict"]).requires_grad_()

    def through() -> None:
        head_loss(chosen, head.weight, head.bias, inputs["targets"]).backward()
        chosen.grad = None

    rows = min(size.answers, chunk_rows(vocabulary, network.device.type))
    memory: int = rows * vocabulary * (4 + 2 * item) + size.answers * width * 2 * item + flat.numel() * item
    return memory, _timed(network.device, through)


def _static(network: Network) -> int:
    """Return the bytes that the model takes, adapter included."""
    import torch

    if network.device.type == "cuda":
        torch.cuda.synchronize()
        return int(torch.cuda.memory_allocated(network.device))
    import psutil

    return int(psutil.Process().memory_info().rss)


def _timed(device: Any, work: Callable[[], Any], repeats: int = 3, *, capture: bool = True) -> float:
    """Return the median seconds of `work`; on a GPU those of the kernels alone where graphs launch them (capture)."""
    import torch

    if device.type != "cuda":
        spans = []
        for _ in range(repeats):
            begun = time.perf_counter()
            work()
            spans.append(time.perf_counter() - begun)
        return sorted(spans)[len(spans) // 2]
    graph, why = None, "not asked for"
    if capture:
        with side_stream():
            work()
        graph, why = captured(lambda: work() and None)
    if graph is None:
        logging.getLogger("drupe.job").debug("timed without a graph: %s", why)
    replay: Callable[[], Any] = graph.replay if graph is not None else work
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    spans = []
    for _ in range(repeats + 1):
        marks[0].record()
        replay()
        marks[1].record()
        torch.cuda.synchronize()
        spans.append(marks[0].elapsed_time(marks[1]) / 1000)
    return sorted(spans[1:])[repeats // 2]
