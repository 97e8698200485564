"""Turns a decoder's states onto their principal directions and cuts the last of these off, block by block.

Each step sees what the sliced blocks before it give. Ashkboos et al. 2024, arXiv 2401.15024, sections 3.2–3.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.plugins.quantization.blocks import Blocks
from drupe.plugins.quantization.hadamard import rotation
from drupe.plugins.quantization.slicing.structure import Structure
from drupe.plugins.quantization.states import Norm, read_norm, read_states, take_norm, write_states

__all__ = ["Slicer", "fuse_norms", "principal"]


def fuse_norms(pass_name: str, network: Any, structure: Structure) -> dict[str, Any]:
    """Make a network of gainless RMS norms that says what it said; return config.json's "slicing".

    Gains and biases go into the layers behind the norms; where norms take the mean away, the layers that write states
    do. Head and embedding become two tables where they were one. Raises ConfigError for norms of two kinds.
    """
    import torch

    from drupe.plugins.quantization.slicing.sliced_decoder import restructure

    size = structure.hidden_size
    blocks = network.get_submodule(structure.blocks)
    head = network.get_submodule(structure.head)
    last = _known(pass_name, network, structure.norm, size)
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    network.config.tie_word_embeddings = False
    take_norm(head, last)
    kinds = {last.centred}
    for number, block in enumerate(blocks):
        for part in (structure.attention, structure.feed_forward):
            norm = _known(pass_name, block, part.norm, size, f"{structure.blocks}.{number}.")
            kinds.add(norm.centred)
            for name in part.reads:
                take_norm(block.get_submodule(name), norm)
    if len(kinds) > 1:
        raise ConfigError(f"{pass_name}: some norms of the model take the mean away and others do not")
    if last.centred:
        centre = torch.eye(size, dtype=torch.float64, device=head.weight.device) - 1 / size
        for name in structure.embeddings:
            read_states(network.get_submodule(name), centre)
        for block in blocks:
            for part in (structure.attention, structure.feed_forward):
                write_states(block.get_submodule(part.writes), centre)
    first = blocks[0]
    shape = {
        "hidden_size": size,
        "blocks": structure.blocks,
        "norm": structure.norm,
        "attention": structure.attention_name,
        "feed_forward": list(structure.feed_forward_names),
        "parallel": structure.parallel,
        "eps": {
            "attention": _known(pass_name, first, structure.attention.norm, size).eps,
            "feed_forward": _known(pass_name, first, structure.feed_forward.norm, size).eps,
            "last": last.eps,
        },
    }
    restructure(network, shape)
    return shape


def _known(pass_name: str, parent: Any, name: str, size: int, where: str = "") -> Norm:
    norm = read_norm(parent.get_submodule(name), size)
    if norm is None:
        raise ConfigError(f"{pass_name}: {where}{name} is no LayerNorm or RMS norm, so its states can't be turned")
    return norm


def principal(moment: Any, width: int, orientation: str, generator: Any) -> tuple[Any, float]:
    """Return orthonormal columns (size, width) that keep most of the states, and the share of power that they lose.

    moment: the states' second moments (size, size), float64. orientation: "pca": columns in order of power; "random":
    turned among themselves, so that no column of the weights stands out.
    """
    import torch

    power, vectors = torch.linalg.eigh(moment)
    kept = vectors.flip(1)[:, :width]
    if orientation == "random":
        kept = kept @ rotation(width, "random", generator).to(kept)
    lost = power[: len(power) - width].clamp(min=0).sum() / power.clamp(min=0).sum()
    return kept, float(lost)


class Slicer:
    """Slices a network of gainless norms. width: what is kept of the states; batches: tokens (b, n) to calibrate with.

    lost: the share of the states' power that each cut took.
    """

    def __init__(
        self,
        network: Any,
        structure: Structure,
        batches: Sequence[Any],
        width: int,
        *,
        orientation: str,
        slice_head: bool,
        generator: Any,
        context: PassContext,
    ) -> None:
        self.network = network
        self.structure = structure
        self.width = width
        self.orientation = orientation
        self.slice_head = slice_head
        self.generator = generator
        self.context = context
        self.lost: list[float] = []
        self._flow = Blocks(network, batches, context)

    def slice(self) -> None:
        """Cut every block's states, those of the embeddings and, where it is asked for, the head's."""
        import torch

        with torch.no_grad():
            with _passing(self._flow.blocks):
                states, arguments = self._flow.first()
            turn = self._directions(states)
            for name in self.structure.embeddings:
                read_states(self.network.get_submodule(name), turn)
            blocks = self._flow.blocks
            for number, block in enumerate(blocks):
                self.context.progress(number, len(blocks), f"slicing block {number + 1} of {len(blocks)}")
                named = [one for _, one in arguments[number]]
                last = number == len(blocks) - 1
                step = self._parallel if self.structure.parallel else self._sequential
                states, turn = step(block, states, named, turn, last)
            if self.slice_head:
                read_states(self.network.get_submodule(self.structure.head), turn)

    def _sequential(
        self, block: Any, states: list[Any], named: list[Any], turn: Any, last: bool
    ) -> tuple[list[Any], Any]:
        attention, forward = self.structure.attention, self.structure.feed_forward
        self._read(block, attention.reads, turn)
        block.attention_shortcut = _shortcut(turn.T, block)
        states = [block.after_attention(s @ turn.to(s), one) for s, one in zip(states, named, strict=True)]
        middle = self._directions(states)
        write_states(block.get_submodule(attention.writes), middle)
        block.attention_shortcut = _shortcut(turn.T @ middle, block)
        self._read(block, forward.reads, middle)
        block.feed_forward_shortcut = _shortcut(middle.T, block)
        states = [block.after_feed_forward(s @ middle.to(s)) for s in states]
        behind = self._behind(states, last)
        write_states(block.get_submodule(forward.writes), behind)
        block.feed_forward_shortcut = _shortcut(middle.T @ behind, block)
        return states, behind

    def _parallel(
        self, block: Any, states: list[Any], named: list[Any], turn: Any, last: bool
    ) -> tuple[list[Any], Any]:
        for part in (self.structure.attention, self.structure.feed_forward):
            self._read(block, part.reads, turn)
        block.attention_shortcut = _shortcut(turn.T, block)
        states = [block(s @ turn.to(s), **one) for s, one in zip(states, named, strict=True)]
        behind = self._behind(states, last)
        for part in (self.structure.attention, self.structure.feed_forward):
            write_states(block.get_submodule(part.writes), behind)
        block.attention_shortcut = _shortcut(turn.T @ behind, block)
        return states, behind

    def _read(self, block: Any, names: Sequence[str], turn: Any) -> None:
        for name in names:
            read_states(block.get_submodule(name), turn)

    def _behind(self, states: Sequence[Any], last: bool) -> Any:
        """Return the directions behind a block; the head's states stay whole unless it is sliced as well."""
        import torch

        if last and not self.slice_head:
            return torch.eye(self.structure.hidden_size, dtype=torch.float64, device=states[0].device)
        return self._directions(states)

    def _directions(self, states: Sequence[Any]) -> Any:
        import torch

        size = self.structure.hidden_size
        moment = torch.zeros(size, size, dtype=torch.float64, device=states[0].device)
        for state in states:
            self.context.raise_if_cancelled()
            rows = state.reshape(-1, size).float()
            moment += (rows.T @ rows).double()
        turn, lost = principal(moment, self.width, self.orientation, self.generator)
        self.lost.append(lost)
        return turn


@contextmanager
def _passing(blocks: Any) -> Iterator[None]:
    """Let blocks hand their states on as they are: what else they are called with does not depend on them."""
    for block in blocks:
        block.forward = lambda hidden_states, **_: hidden_states
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _shortcut(matrix: Any, block: Any) -> Any:
    import torch

    weight = next(block.parameters())
    return torch.nn.Parameter(matrix.to(weight), requires_grad=False)
