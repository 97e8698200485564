"""Loads a decoder that SliceGPT made from its folder, with PyTorch, transformers and safetensors alone.

A copy of this file lies beside the model:

    import sliced_decoder
    model = sliced_decoder.load("FOLDER")

The result is the class of transformers that config.json names, its blocks replaced by ones that hand narrower states
on; it runs and generates like any other. The tokenizer is read by AutoTokenizer. Nothing of the folder is executed.
config.json's "slicing" tells where the parts of a block lie; the widths follow from the weights.

Ashkboos et al. 2024, arXiv 2401.15024.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["WEIGHTS", "SlicedBlock", "StateNorm", "fill", "load", "restructure"]

WEIGHTS = "sliced.safetensors"
"""Not a name that transformers looks for: its own loader would leave out what it doesn't know."""


class StateNorm(torch.nn.Module):  # type: ignore[misc]
    """An RMS norm without gain. size: entries of a whole state; those that were cut off count as zeros."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size = size
        self.eps = eps

    def forward(self, states: Any) -> Any:
        """Return states (…, n) of mean square 1, where nothing was cut off."""
        wide = states.float()
        power = wide.square().sum(-1, keepdim=True) / self.size
        return (wide * torch.rsqrt(power + self.eps)).to(states.dtype)


class SlicedBlock(torch.nn.Module):  # type: ignore[misc]
    """A decoder's block whose states change their coordinates on the way past its parts.

    block: the block whose attention and feed-forward are taken over, under their names. shape: config.json's "slicing".
    The shortcuts (width before, width after) turn the states; None leaves them as they are.
    """

    def __init__(self, block: Any, shape: Mapping[str, Any]) -> None:
        super().__init__()
        self.parallel = bool(shape["parallel"])
        self.parts = (str(shape["attention"]), *map(str, shape["feed_forward"]))
        for name in self.parts:
            self.add_module(name, getattr(block, name))
        self.attention_norm = StateNorm(shape["hidden_size"], shape["eps"]["attention"])
        self.feed_forward_norm = StateNorm(shape["hidden_size"], shape["eps"]["feed_forward"])
        self.register_parameter("attention_shortcut", None)
        self.register_parameter("feed_forward_shortcut", None)
        taken = inspect.signature(getattr(self, self.parts[0]).forward).parameters
        everything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values())
        self.taken = None if everything else frozenset(taken)
        if hasattr(block, "attention_type"):
            self.attention_type = block.attention_type

    def forward(self, hidden_states: Any, **arguments: Any) -> Any:
        """Return the states behind the block. hidden_states: (batch, sequence, width before)."""
        if self.parallel:
            added = self._attended(hidden_states, arguments) + self._fed(hidden_states)
            return _turned(hidden_states, self.attention_shortcut) + added
        return self.after_feed_forward(self.after_attention(hidden_states, arguments))

    def after_attention(self, states: Any, arguments: Mapping[str, Any]) -> Any:
        """Return the states between attention and feed-forward."""
        return _turned(states, self.attention_shortcut) + self._attended(states, arguments)

    def after_feed_forward(self, states: Any) -> Any:
        """Return the states behind the block, given those behind its attention."""
        return _turned(states, self.feed_forward_shortcut) + self._fed(states)

    def _attended(self, states: Any, arguments: Mapping[str, Any]) -> Any:
        known = {name: value for name, value in arguments.items() if self.taken is None or name in self.taken}
        return getattr(self, self.parts[0])(self.attention_norm(states), **known)[0]

    def _fed(self, states: Any) -> Any:
        states = self.feed_forward_norm(states)
        for name in self.parts[1:]:
            states = getattr(self, name)(states)
        return states


def _turned(states: Any, shortcut: Any) -> Any:
    return states if shortcut is None else states @ shortcut


def restructure(network: Any, shape: Mapping[str, Any]) -> None:
    """Replace a network's blocks and its last norm. shape: config.json's "slicing"."""
    blocks = network.get_submodule(shape["blocks"])
    for number, block in enumerate(blocks):
        blocks[number] = SlicedBlock(block, shape)
    parent, _, name = str(shape["norm"]).rpartition(".")
    setattr(network.get_submodule(parent), name, StateNorm(shape["hidden_size"], shape["eps"]["last"]))


def fill(network: Any, state: Mapping[str, Any]) -> None:
    """Give a restructured network its tensors, whatever their widths. Raises ValueError where they are of another."""
    for name, tensor in state.items():
        place, _, last = name.rpartition(".")
        try:
            module = network.get_submodule(place)
        except AttributeError as error:
            raise ValueError(f"{WEIGHTS} holds {name}, which {type(network).__name__} has no place for") from error
        if last in module._buffers:
            module.register_buffer(last, tensor)
        else:
            module.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
    absent = [name for name, _ in network.named_parameters() if name not in state]
    if absent:
        raise ValueError(f"{WEIGHTS} lacks {absent[0]} of {type(network).__name__}")
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, torch.nn.Embedding):
            module.num_embeddings, module.embedding_dim = module.weight.shape


def load(
    folder: str | Path,
    *,
    dtype: Any = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Return the model in a folder, in evaluation mode on the CPU.

    dtype: a torch dtype; None: as stored. Raises ValueError or OSError where the folder holds no sliced decoder.
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.initialization import no_init_weights

    folder = Path(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    shape = getattr(config, "slicing", None)
    if not isinstance(shape, dict) or not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} holds no sliced decoder: expected {WEIGHTS}, and slicing in config.json")
    state = load_file(folder / WEIGHTS)
    kind = dtype or next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    state = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    chosen = {"attn_implementation": attn_implementation} if attn_implementation else {}
    # The whole network's weights are never touched before they are replaced, and so take no memory.
    with no_init_weights():
        network = AutoModelForCausalLM.from_config(config, dtype=kind, trust_remote_code=trust_remote_code, **chosen)
    restructure(network, shape)
    fill(network, state)
    if (folder / "generation_config.json").is_file():
        network.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    # Not network.to(kind): tables of positions stay as exact as they were made.
    return network.eval()
