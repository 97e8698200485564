"""A decoder whose states and values are turned while it runs, with gradients for the rotations, until they are merged.

Liu et al. 2024, arXiv 2405.16406: R1 turns the states, an R2 of each block its values within their heads. What the
paper calls R3 and R4 turns queries, keys and the inner states of the feed-forward, which takes an operator of its own
when the model runs: plain models have none, and they are not part of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from drupe.core.errors import ConfigError
from drupe.plugins.quantization.slicing.structure import Structure
from drupe.plugins.quantization.spinning.coordinates import Coordinates, coordinates
from drupe.plugins.quantization.spinning.values import Values, find_values
from drupe.plugins.quantization.states import Norm, read_norm

__all__ = ["TurnedDecoder"]

Round = Callable[[str, Any], Any]
"""Called with a layer's name and its turned weights; returns them rounded."""


class TurnedDecoder:
    """A network whose blocks are replaced by ones that turn their weights each time they run.

    states: R1; values: R2 of each block, empty where the order of values is not known. Gains of norms go into the
    layers behind them, and what the norms add is turned with the states; the embedding and the head become two tables
    where they were one. Raises ConfigError for norms that can't be taken apart, ValueError where the mode has no
    rotation of a size.
    """

    def __init__(self, pass_name: str, network: Any, structure: Structure, mode: str, generator: Any) -> None:
        self.network = network
        self.structure = structure
        device = network.device
        norms = _norms(pass_name, network, structure)
        self.shifts = {name: (norm.bias / norm.gain).to(device) for name, norm in norms.items()}
        blocks = network.get_submodule(structure.blocks)
        found = [find_values(block, structure.attention, network.config) for block in blocks]
        self.places = found if all(found) else []
        self.states = coordinates(
            structure.hidden_size, mode, generator, device, keeps_mean=norms[structure.norm].centred
        )
        sizes = [place.rows.shape[1] for place in self.places if place is not None]
        self.values = [coordinates(size, mode, generator, device) for size in sizes]
        _take_gains(network, structure, norms)
        self.round: Round | None = None
        """How turned weights are rounded; None: they are not."""
        self.recompute = False
        for number, block in enumerate(blocks):
            blocks[number] = _TurnedBlock(block, self, number)
        self._hooks = [
            network.get_submodule(name).register_forward_hook(self._turn_embedding) for name in structure.embeddings
        ]
        self._hooks.append(network.get_submodule(structure.head).register_forward_pre_hook(self._turn_back))
        self._now: tuple[Any, list[Any]] = (None, [])
        self._held: list[dict[str, Any]] = []

    @property
    def rotations(self) -> list[Coordinates]:
        """R1 and all R2."""
        return [self.states, *self.values]

    def logits(self, ids: Any, *, dtype: Any = None) -> Any:
        """Return the logits (batch, n, vocabulary) of tokens (batch, n). dtype: what products are computed in."""
        self._turn()
        device = self.network.device.type
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            return self.network(input_ids=ids, use_cache=False).logits

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the turned and rounded weights while nothing is learned, so that they are made once for all texts.

        Where blocks are to be run again to save memory, they are made for each text instead.
        """
        with torch.no_grad():
            self._turn()
            blocks = self.network.get_submodule(self.structure.blocks)
            if not self.recompute:
                self._held = [self.parameters_of(block.block, number) for number, block in enumerate(blocks)]
            try:
                yield
            finally:
                self._held = []

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def merge(self) -> None:
        """Turn the weights for good, in float64, and give the network its own blocks back."""
        turn = self.states.matrix()
        blocks = self.network.get_submodule(self.structure.blocks)
        for number, block in enumerate(blocks):
            values = self.values[number].matrix() if self.values else None
            for name, tensor in self.turned(block.block, number, turn, values).items():
                block.block.get_parameter(name).data = tensor.float()
            blocks[number] = block.block
        for hook in self._hooks:
            hook.remove()
        for name in (*self.structure.embeddings, self.structure.head):
            module = self.network.get_submodule(name)
            module.weight.data = (module.weight.double() @ turn).float()
        shift = self.shifts[self.structure.norm]
        if bool(shift.any()):
            self.network.get_submodule(self.structure.norm).bias.data = (shift @ turn).float()

    def turned(self, block: Any, number: int, turn: Any, values: Any) -> dict[str, Any]:
        """Return a block's changed parameters by name. turn: R1; values: the block's R2 or None."""
        changed: dict[str, Any] = {}
        structure, place = self.structure, self.places[number] if self.places else None
        for part in (structure.attention, structure.feed_forward):
            for name in part.reads:
                layer = block.get_submodule(name)
                weights, bias = layer.weight.to(turn.dtype), layer.bias
                if place is not None and name == place.layer:
                    weights = _rows_turned(weights, place, values)
                    if bias is not None:
                        bias = _rows_turned(bias.to(turn.dtype)[:, None], place, values)[:, 0]
                        changed[f"{name}.bias"] = bias
                changed[f"{name}.weight"] = weights @ turn
            layer = block.get_submodule(part.writes)
            weights = layer.weight.to(turn.dtype)
            if place is not None and part.writes == place.output:
                weights = (weights.reshape(len(weights), place.heads, -1) @ values).reshape(weights.shape)
            changed[f"{part.writes}.weight"] = turn.T @ weights
            if layer.bias is not None:
                changed[f"{part.writes}.bias"] = layer.bias.to(turn.dtype) @ turn
            shift = self.shifts[f"{structure.blocks}.{number}.{part.norm}"]
            if bool(shift.any()):
                changed[f"{part.norm}.bias"] = shift.to(turn.dtype) @ turn
        return changed

    def parameters_of(self, block: Any, number: int) -> dict[str, Any]:
        """Return a block's changed parameters as it runs now, rounded where they are to be."""
        if self._held:
            return self._held[number]
        turn, values = self._now
        with torch.autocast(self.network.device.type, enabled=False):
            changed = self.turned(block, number, turn, values[number] if values else None)
            if self.round is not None:
                prefix = f"{self.structure.blocks}.{number}."
                for name, tensor in changed.items():
                    if name.endswith(".weight"):
                        changed[name] = self.round(f"{prefix}{name.removesuffix('.weight')}", tensor)
        return changed

    def _turn(self) -> None:
        self._now = (self.states.matrix().float(), [value.matrix().float() for value in self.values])

    def _turn_embedding(self, _: Any, __: Any, states: Any) -> Any:
        return states @ self._now[0].to(states.dtype)

    def _turn_back(self, _: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        # The head is not rounded, so turning its table or turning the states back is the same; states are fewer.
        states = arguments[0] @ self._now[0].T.to(arguments[0].dtype)
        return (states + self.shifts[self.structure.norm].to(states.dtype), *arguments[1:])


class _TurnedBlock(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, block: Any, decoder: TurnedDecoder, number: int) -> None:
        super().__init__()
        self.block = block
        self._decoder = [decoder]
        self._number = number

    def __getattr__(self, name: str) -> Any:
        # Decoders ask their blocks what kind of attention they have.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Run the block with turned weights."""
        decoder = self._decoder[0]

        def run(*arguments: Any, **named: Any) -> Any:
            changed = decoder.parameters_of(self.block, self._number)
            return torch.func.functional_call(self.block, changed, arguments, named)

        if decoder.recompute and torch.is_grad_enabled():
            return checkpoint(run, *arguments, use_reentrant=False, **named)
        return run(*arguments, **named)


def _rows_turned(weights: Any, place: Values, values: Any) -> Any:
    rows = place.rows.to(weights.device)
    turned = torch.einsum("gsc,st->gtc", weights[rows], values)
    return weights.index_copy(0, rows.reshape(-1), turned.reshape(rows.numel(), -1))


def _norms(pass_name: str, network: Any, structure: Structure) -> Mapping[str, Norm]:
    """Return what each norm does, by its name in the network."""
    blocks = network.get_submodule(structure.blocks)
    parts = (structure.attention, structure.feed_forward)
    names = [f"{structure.blocks}.{number}.{part.norm}" for number in range(len(blocks)) for part in parts]
    found: dict[str, Norm] = {}
    for name in dict.fromkeys([*names, structure.norm]):
        norm = read_norm(network.get_submodule(name), structure.hidden_size)
        if norm is None:
            raise ConfigError(f"{pass_name}: {name} is no LayerNorm or RMS norm, so its states can't be rotated")
        if bool(norm.bias.any()) and bool((norm.gain.abs() < 1e-6 * norm.gain.abs().max()).any()):
            raise ConfigError(
                f"{pass_name}: {name} has gains of zero and adds to its states, which can't be turned with them"
            )
        found[name] = norm
    if len({norm.centred for norm in found.values()}) > 1:
        raise ConfigError(f"{pass_name}: some norms of the model take the mean away and others do not")
    return found


@torch.no_grad()  # type: ignore[untyped-decorator]
def _take_gains(network: Any, structure: Structure, norms: Mapping[str, Norm]) -> None:
    """Move the norms' gains into the layers behind them, and what they add out of them."""
    head = network.get_submodule(structure.head)
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    network.config.tie_word_embeddings = False
    head.weight.data = (head.weight.double() * norms[structure.norm].gain).float()
    for number, block in enumerate(network.get_submodule(structure.blocks)):
        for part in (structure.attention, structure.feed_forward):
            gain = norms[f"{structure.blocks}.{number}.{part.norm}"].gain
            for name in part.reads:
                layer = block.get_submodule(name)
                layer.weight.data = (layer.weight.double() * gain).float()
    for name in norms:
        module = network.get_submodule(name)
        bias = getattr(module, "bias", None)
        if bias is not None:
            bias.data.zero_()
        weight = getattr(module, "weight", None)
        # Some norms' gain is their weight, that of others is one more.
        for value in (1.0, 0.0):
            if weight is not None:
                weight.data.fill_(value)
            taken = read_norm(module, structure.hidden_size)
            if taken is not None and torch.allclose(taken.gain, torch.ones_like(taken.gain), atol=1e-3):
                break
