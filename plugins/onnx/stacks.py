"""Finds the stacks of blocks that a network, or a graph, is built of, by the names of its modules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["blocks_of", "node_path"]

_NUMBERED = re.compile(r"^(.*?)_?(\d+)$")
_SMALL = 0.05
"""The share of all stacks' sizes below which one is part of what surrounds it: a classifier's few layers."""
_ALONE = 0.9
"""The share of a stack's size from which a member is what the stack is: Sequential(backbone, head) is no stack."""


@dataclass
class _Module:
    """A module: its place, the size of all that it holds, and its modules by name, in the order of their first use."""

    path: tuple[str, ...]
    size: int = 0
    inside: dict[str, _Module] = field(default_factory=dict)


def blocks_of(sizes: Mapping[str, int], count: int) -> list[str]:
    """Return the modules that repeat, in order: those of the outermost stacks that give at least `count`, or else the
    most that there are.

    sizes: module name → what it weighs itself (parameters, or nodes), in the order in which modules run. A stack is
    modules of one name and different numbers (layers.0, layers.1, …; layer_0, layer_1, …; block1, block2, …) in one
    module, which hold modules of their own; where there is none, modules such as those of a plain Sequential.
    """
    root = _tree(sizes)
    for composite in (True, False):
        level = _large(list(_stacks(root, composite)))
        while level and sum(map(len, level)) < count:
            deeper = [list(_stacks(member, composite)) or [[member]] for members in level for member in members]
            inner = [members for found in deeper for members in found]
            if sum(map(len, inner)) <= sum(map(len, level)):
                break
            level = inner
        if level:
            return [".".join(member.path) for members in level for member in members]
    return []


def node_path(name: str) -> tuple[str, ...]:
    """Return the modules that a node is in, and itself: /model/layers.0/mlp/MatMul → model, layers, 0, mlp, MatMul."""
    return tuple(part for part in name.replace("/", ".").split(".") if part)


def _tree(sizes: Mapping[str, int]) -> _Module:
    root = _Module(())
    for name, size in sizes.items():
        at = root
        at.size += size
        for part in filter(None, name.split(".")):
            at = at.inside.setdefault(part, _Module((*at.path, part)))
            at.size += size
    return root


def _stacks(module: _Module, composite: bool) -> Iterator[list[_Module]]:
    """Yield the outermost stacks inside a module, in order."""
    groups: dict[str, list[_Module]] = {}
    for name, child in module.inside.items():
        stem = match[1] if (match := _NUMBERED.match(name)) else f"{name}."
        groups.setdefault(stem, []).append(child)
    for stem, members in groups.items():
        if _is_stack(stem, members, composite):
            yield members
        else:
            for member in members:
                yield from _stacks(member, composite)


def _is_stack(stem: str, members: Sequence[_Module], composite: bool) -> bool:
    if stem.endswith(".") or (stem and len(members) < 2):
        return False
    if composite and not all(member.inside for member in members):
        return False
    whole = sum(member.size for member in members)
    return len(members) == 1 or max(member.size for member in members) <= _ALONE * whole


def _large(stacks: list[list[_Module]]) -> list[list[_Module]]:
    whole = sum(member.size for members in stacks for member in members)
    return [members for members in stacks if sum(member.size for member in members) >= _SMALL * whole]
