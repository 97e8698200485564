"""Where a decoder reads and writes its states, found by following them through one call; names decide nothing.

What can be sliced: states start as a sum of embeddings, each block adds to them what its attention and its feed-forward
make of their norm (one after the other, or both from the same states), and the head reads their norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from drupe.core.errors import ConfigError, PassError
from drupe.plugins.quantization.layers import blocks_of
from drupe.plugins.quantization.states import read_norm

__all__ = ["Part", "Structure", "read_structure"]


@dataclass(frozen=True)
class Part:
    """Attention or feed-forward of a block. norm: what it reads behind; reads, writes: linear layers, by their names in
    the block."""

    norm: str
    reads: tuple[str, ...]
    writes: str


@dataclass(frozen=True)
class Structure:
    """A decoder, by the names of its modules.

    embeddings, norm, head: names in the network; attention_name, feed_forward_names: children of a block, the latter in
    the order in which they are called. parallel: both parts are given the states before the block.
    """

    hidden_size: int
    blocks: str
    embeddings: tuple[str, ...]
    norm: str
    head: str
    attention_name: str
    feed_forward_names: tuple[str, ...]
    attention: Part
    feed_forward: Part
    parallel: bool


@dataclass(frozen=True)
class _Call:
    """A module's call: where its input and its output lie in memory, and which call of all it was."""

    order: int
    given: int
    gave: int
    width: int
    positional: int
    is_tuple: bool


class _Unfit(Exception):
    """Says what of a model can't be sliced."""


def read_structure(pass_name: str, network: Any, ids: Any) -> Structure:
    """Return a decoder's structure. ids: (1, n) tokens to call it with. Raises ConfigError for another structure."""
    try:
        return _read(network, ids)
    except _Unfit as error:
        raise ConfigError(
            f"{pass_name}: {type(network).__name__}: {error}; expected a decoder whose blocks add to their states what "
            "linear layers make of the states' norm, as those of Llama, Qwen, Mistral, OPT and Phi do"
        ) from error


def _read(network: Any, ids: Any) -> Structure:
    import torch

    try:
        prefix, blocks = blocks_of(network)
    except PassError as error:
        raise _Unfit("it has no list of equal blocks") from error
    head = network.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        raise _Unfit("it has no linear head")
    names = {module: name for name, module in network.named_modules()}
    calls = _follow(network, ids)
    first, last = f"{prefix}.0", f"{prefix}.{len(blocks) - 1}"
    entry, exit_ = calls.get(first), calls.get(last)
    if entry is None or exit_ is None:
        raise _Unfit(f"{first if entry is None else last} is not called with states")
    if entry.is_tuple or entry.positional > 1:
        raise _Unfit(f"{first} hands more than its states on")
    size = entry.width
    outside = {name: module for name, module in network.named_modules() if not f"{name}.".startswith(f"{prefix}.")}
    norm = next(
        (
            name
            for name, module in outside.items()
            if name in calls and calls[name].given == exit_.gave and read_norm(module, size) is not None
        ),
        None,
    )
    if norm is None or calls[names[head]].given != calls[norm].gave:
        raise _Unfit("its head does not read the norm of the last block's states")
    embeddings = tuple(
        name
        for name, module in outside.items()
        if isinstance(module, torch.nn.Embedding) and name in calls and module.embedding_dim == size
    )
    known = {*embeddings, norm, names[head]}
    _all_known(network, size, known, lambda name: not name.startswith(f"{prefix}."))
    return _block(prefix, blocks, calls, size, embeddings, norm, names[head])


def _block(
    prefix: str,
    blocks: Any,
    calls: Mapping[str, _Call],
    size: int,
    embeddings: tuple[str, ...],
    last_norm: str,
    head: str,
) -> Structure:
    import torch

    first = f"{prefix}.0"
    block = blocks[0]
    own = {name.removeprefix(f"{first}."): call for name, call in calls.items() if name.startswith(f"{first}.")}
    children = sorted((own[name].order, name) for name, _ in block.named_children() if name in own)
    called = [name for _, name in children if not isinstance(block.get_submodule(name), torch.nn.Dropout)]
    norms = {name: own[name] for name in called if _is_norm(block.get_submodule(name), size)}
    behind = {call.gave: name for name, call in norms.items()}
    attention = [name for name in called if own[name].is_tuple]
    if len(attention) != 1:
        raise _Unfit(f"{first} has {len(attention)} parts that look like attention")
    forward = tuple(name for name in called if name not in norms and name != attention[0])
    if not forward:
        raise _Unfit(f"{first} has no feed-forward")
    linears = [name for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)]
    silent = [name for name in linears if name not in own]
    if silent:
        raise _Unfit(f"{first}.{silent[0]} is not part of every call")
    parts = []
    for members, ends in ((attention, attention[0]), (forward, forward[-1])):
        inside = [name for name in linears if any(f"{name}.".startswith(f"{member}.") for member in members)]
        reads = tuple(name for name in inside if own[name].given in behind)
        sources = {behind[own[name].given] for name in reads}
        writes = [name for name in inside if name not in reads and own[name].gave == own[ends].gave]
        if len(sources) != 1 or len(writes) != 1:
            raise _Unfit(f"{first}.{members[0]} does not read one norm and write with one linear layer")
        parts.append(Part(sources.pop(), reads, writes[0]))
    if norms[parts[0].norm].given != calls[first].given or set(norms) != {part.norm for part in parts}:
        raise _Unfit(f"{first} has norms elsewhere than before its attention and before its feed-forward")
    parallel = norms[parts[1].norm].given == calls[first].given
    fine = {*norms, *(name for part in parts for name in (*part.reads, part.writes))}
    modules = dict(block.named_modules())
    for number, other in enumerate(blocks):
        if dict(other.named_modules()).keys() != modules.keys():
            raise _Unfit(f"{prefix}.{number} has other parts than {first}")
        _all_known(other, size, fine, lambda name: True, f"{prefix}.{number}.")
    return Structure(size, prefix, embeddings, last_norm, head, attention[0], forward, parts[0], parts[1], parallel)


def _is_norm(module: Any, size: int) -> bool:
    return not any(True for _ in module.children()) and read_norm(module, size) is not None


def _all_known(network: Any, size: int, known: set[str], among: Callable[[str], bool], where: str = "") -> None:
    """Raise _Unfit for a parameter as wide as the states whose place is not known."""
    for name, parameter in network.named_parameters():
        if among(name) and size in parameter.shape and name.rpartition(".")[0] not in known:
            raise _Unfit(f"what {where}{name} does to the states is not known")


def _follow(network: Any, ids: Any) -> dict[str, _Call]:
    """Call the network and return each module's first call with states (batch, …, width), by name."""
    import torch

    found: dict[str, _Call] = {}
    kept: list[Any] = []  # What is let go could be followed by another tensor at the same place.

    def watch(name: str) -> Any:
        def hook(_: Any, positional: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            given = positional[0] if positional else named.get("hidden_states")
            gave = output[0] if isinstance(output, tuple) else output
            if name in found or not (isinstance(given, torch.Tensor) and isinstance(gave, torch.Tensor)):
                return
            kept.extend((given, gave))
            found[name] = _Call(
                len(found),
                given.untyped_storage().data_ptr(),
                gave.untyped_storage().data_ptr(),
                gave.shape[-1],
                len(positional),
                isinstance(output, tuple),
            )

        return hook

    hooks = [
        module.register_forward_hook(watch(name), with_kwargs=True) for name, module in network.named_modules() if name
    ]
    try:
        with torch.no_grad():
            network(input_ids=ids, use_cache=False)
    finally:
        for one in hooks:
            one.remove()
    return found
