"""Several processes that train one adapter: each takes a share of every step's rows, and gradients are summed.

With `fsdp` each process holds a share of the frozen base only and fetches a layer when it is needed (fully sharded data
parallel: Zhao et al. 2023, arXiv 2304.11277). The adapter is small and whole everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from drupe.core.context import JobContext
from drupe.plugins.tuning.layers import decoder_layers
from drupe.plugins.tuning.rows import Row

__all__ = ["Alone", "Processes", "deal", "join", "shard"]


class Alone:
    """One process: nothing is shared."""

    rank = 0
    size = 1
    sharded = False

    def share(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows of a step that are this process's."""
        return list(rows)

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set in any process."""
        return list(flags)

    def most(self, number: int) -> int:
        """Return the largest of all processes' numbers."""
        return number

    def sum(self, tensors: Sequence[Any]) -> None:
        """Replace each tensor by its sum over all processes."""

    def same(self, value: Any) -> Any:
        """Return what the first process gave."""
        return value

    def copy(self, tensors: Sequence[Any]) -> None:
        """Replace each tensor by the first process's."""

    def agreed(self, context: JobContext) -> JobContext:
        """Return the context with a cancellation that all processes see at the same step."""
        return context


@dataclass
class Processes(Alone):
    """The processes of a launched job. `any` must be asked by all of them equally often."""

    rank: int
    size: int
    sharded: bool = False

    def __post_init__(self) -> None:
        """Open a second way beside the GPUs': small facts are exchanged without waiting for the devices."""
        import torch.distributed as dist

        self._side = dist.new_group(backend="gloo")
        self._asked: Callable[[], bool] = lambda: False
        self._cancelled = False

    def share(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows of a step that are this process's; see `deal`."""
        return deal(rows, self.rank, self.size)

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set in any process; takes up a cancellation as well."""
        import torch
        import torch.distributed as dist

        told = torch.tensor([*map(int, flags), int(self._asked())])
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self._side)
        *found, cancelled = told.tolist()
        self._cancelled = self._cancelled or bool(cancelled)
        return [bool(value) for value in found]

    def most(self, number: int) -> int:
        """Return the largest of all processes' numbers."""
        import torch
        import torch.distributed as dist

        told = torch.tensor(number)
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self._side)
        return int(told)

    def sum(self, tensors: Sequence[Any]) -> None:
        """Replace each tensor by its sum over all processes."""
        import torch
        import torch.distributed as dist

        if len(tensors) <= 4:
            for tensor in tensors:
                dist.all_reduce(tensor)
            return
        # Optimizers that want every matrix by itself leave hundreds of small gradients.
        joined = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        dist.all_reduce(joined)
        for tensor, part in zip(tensors, joined.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def same(self, value: Any) -> Any:
        """Return what the first process gave."""
        import torch.distributed as dist

        held = [value]
        dist.broadcast_object_list(held, group=self._side)
        return held[0]

    def copy(self, tensors: Sequence[Any]) -> None:
        """Replace each tensor by the first process's."""
        import torch.distributed as dist

        for tensor in tensors:
            dist.broadcast(tensor, 0)

    def agreed(self, context: JobContext) -> JobContext:
        """Return the context with a cancellation that all processes see at the same step."""
        from dataclasses import replace

        self._asked = context.cancelled
        return replace(context, is_cancelled=lambda: self._cancelled)


def deal(rows: Sequence[Row], rank: int, size: int) -> list[Row]:
    """Return one of `size` shares of rows: dealt by length, back and forth, so that all have about as many tokens."""
    order = sorted(range(len(rows)), key=lambda i: -rows[i].length)
    there = [*range(size), *reversed(range(size))]
    return [rows[i] for place, i in enumerate(order) if there[place % len(there)] == rank]


def join(context: JobContext, *, cpu: bool, sharded: bool) -> tuple[Alone, Any]:
    """Return the processes of this job and this one's device.

    cpu: train on the CPU. sharded: each process shall hold a share of the base.
    """
    import torch

    if context.world_size == 1:
        return Alone(), torch.device("cuda" if not cpu and torch.cuda.is_available() else "cpu")
    from accelerate import PartialState

    state = PartialState(cpu=cpu or not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes, sharded), state.device


def shard(peft_model: Any, device: Any) -> None:
    """Leave each process a share of every decoder layer's frozen weights; all else is moved to the device whole.

    The model may lie on the CPU: no more than one whole layer is on the device at a time.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    layers = decoder_layers(peft_model)
    # By number: a reference to a weight would keep all of it on the device.
    frozen = {id(p) for layer in layers for p in layer.parameters() if not p.requires_grad}
    whole = {p for p in peft_model.parameters() if id(p) not in frozen}
    for tensor in [*whole, *peft_model.buffers()]:
        tensor.data = tensor.data.to(device)
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    # The decoder gathers the layers under one head, which fetches the next while one computes.
    fully_shard(peft_model.get_base_model().get_decoder(), mesh=mesh, ignored_params=whole, reshard_after_forward=False)
