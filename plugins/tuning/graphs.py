"""Forward and backward pass as one captured CUDA graph: the host launches it whole instead of kernel by kernel.

At a few thousand tokens the host, not the GPU, is what a training step waits for; a graph takes it out of the way.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from drupe.plugins.tuning.batches import Layout
from drupe.plugins.tuning.network import Network
from drupe.plugins.tuning.static import Size, filled, size_for

__all__ = ["GraphAccumulator", "captured", "layout_tensors", "side_stream"]

_WARM = 2
"""Passes before a capture: compilation, choice of kernels and work spaces must lie behind it."""


@dataclass
class _Entry:
    """A captured size: the inputs to overwrite, the graph, and where it leaves the loss."""

    inputs: dict[str, Any]
    graph: Any
    loss: Any


class GraphAccumulator:
    """Adds the gradient of one layout at a time, replaying a graph for its size.

    Gradients must keep their place in memory (zeroed, never dropped). capture=False does the same without graphs.
    """

    def __init__(self, network: Network, budget: int, longest: int, *, capture: bool = True) -> None:
        self.network = network
        self.budget = budget
        self.longest = longest
        self.capture = capture
        self.notes: list[str] = []
        self._entries: dict[Size, _Entry] = {}
        self._pool: Any = None

    def __call__(self, layout: Layout, scale: float) -> Any:
        size = size_for(layout, self.budget, self.longest)
        full = filled(layout, size, self.network.pad_id)
        inputs, extra = layout_tensors(self.network, full, size, scale)
        if not self.capture:
            loss = self._loss(inputs, extra)
            loss.backward()
            return loss.detach()
        entry = self._entries.get(size)
        if entry is None:
            entry = self._captured(full, size)
            if entry is None:
                return self(layout, scale)
            self._entries[size] = entry
        for name, tensor in inputs.items():
            entry.inputs[name].copy_(tensor, non_blocking=True)
        entry.graph.replay()
        return entry.loss.clone()

    def drop(self) -> None:
        """Forget all graphs and give their memory back."""
        import torch

        self._entries.clear()
        self._pool = None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def _loss(self, inputs: dict[str, Any], extra: dict[str, Any]) -> Any:
        loss = self.network.loss_of(
            inputs["input_ids"], inputs["position_ids"], inputs["predict"], inputs["targets"], extra
        )
        return loss * inputs["scale"]

    def _captured(self, layout: Layout, size: Size) -> _Entry | None:
        """Capture the size; None (and no more graphs) where the model does what can't be captured."""
        import torch

        # A scale of nothing: the passes that warm up add nothing to the gradients that are there already.
        inputs, extra = layout_tensors(self.network, layout, size, 0.0)
        with side_stream():
            for _ in range(_WARM):
                self._loss(inputs, extra).backward()
        torch.cuda.empty_cache()
        kept: list[Any] = []

        def step() -> None:
            loss = self._loss(inputs, extra)
            loss.backward()
            kept.append(loss.detach())

        graph, why = captured(step, self._pool)
        if graph is None:
            self.capture = False
            self._entries.clear()
            self.notes.append(f"the step can't be captured as a graph: {why}")
            return None
        self._pool = graph.pool()
        return _Entry(inputs, graph, kept[0])


@contextmanager
def side_stream() -> Iterator[None]:
    """Run on another stream, as warming up before a capture must."""
    import torch

    stream = _stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


@cache
def _stream() -> Any:
    """The one stream on which passes are warmed up and captured.

    A gradient is added up on the stream on which its parameter was first seen: were that the default one, a capture
    would have to wait for it, which is not allowed.
    """
    import torch

    return torch.cuda.Stream()


def captured(work: Callable[[], None], pool: Any = None) -> tuple[Any, str]:
    """Capture what `work` launches; return (graph, ""), or (None, why it can't be captured).

    Raises torch.OutOfMemoryError. A failed capture leaves the random generator as if it still captured; it is put back.
    """
    import torch

    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    before = generator.clone_state()
    graph = torch.cuda.CUDAGraph()
    try:
        gc.collect()
        with torch.cuda.graph(graph, pool=pool, stream=_stream(), capture_error_mode="thread_local"):
            work()
    except RuntimeError as fault:
        torch.cuda.synchronize()
        generator.graphsafe_set_state(before)
        first: BaseException = fault
        while first.__context__ is not None:
            # The end of a capture fails as well, and would hide what ended it.
            first = first.__context__
        if isinstance(first, torch.OutOfMemoryError):
            raise first from None
        return None, str(first).splitlines()[0]
    return graph, ""


def layout_tensors(network: Network, layout: Layout, size: Size, scale: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a filled layout's tensors on the network's device, and what its forward is given beside them."""
    import torch

    cuda = network.device.type == "cuda"

    def tensor(array: Any, dtype: Any = None) -> Any:
        host = torch.as_tensor(array, dtype=dtype)
        return host.pin_memory().to(network.device, non_blocking=True) if cuda else host

    tensors = {
        "input_ids": tensor(layout.input_ids),
        "position_ids": tensor(layout.position_ids),
        "predict": tensor(layout.predict),
        "targets": tensor(layout.targets),
        "scale": tensor(scale, torch.float32),
    }
    extra: dict[str, Any] = {}
    if network.ranks is not None:
        extra["ranks"] = tensors["ranks"] = tensor(layout.token_ranks())
    if not network.packed:
        return tensors, extra
    if not cuda:
        return tensors, {**extra, "packed_lengths": tuple(length for _, length in layout.rows)}
    limits = tensors["limits"] = tensor([0, *(start + length for start, length in layout.rows)], torch.int32)
    extra |= {"cu_seq_lens_q": limits, "cu_seq_lens_k": limits}
    return tensors, {**extra, "max_length_q": size.longest, "max_length_k": size.longest}
