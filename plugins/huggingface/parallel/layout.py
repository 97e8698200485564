"""How a model's tensors lie on its ranks, and the file beside them that tells it: tensor_parallel.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from drupe.core.errors import ConfigError

__all__ = ["FILE", "PATTERN", "WEIGHTS", "Copies", "Layout", "Split", "rank_file"]

FILE = "tensor_parallel.json"
PATTERN = "model_{:02d}"
"""How the folders of ranks are named."""
WEIGHTS = "model.safetensors"
_SCHEMA = 1


@dataclass(frozen=True)
class Split:
    """Where a tensor is cut. parts: how many tensors are packed along `dim`, each of which is cut by itself.

    Pieces are of one size, but that the last ranks have less where it does not come out even, as DTensor has it.
    """

    dim: int
    parts: int = 1

    def piece(self, tensor: Any, rank: int, ranks: int) -> Any:
        """Return what a rank has of a tensor, laid out in order."""
        import torch

        cut = [_span(part, self.dim, rank, ranks) for part in tensor.chunk(self.parts, self.dim)]
        return torch.cat(cut, self.dim).contiguous() if self.parts > 1 else cut[0].contiguous()

    def joined(self, pieces: Sequence[Any]) -> Any:
        """Return the tensor that the ranks' pieces, in order, were cut from."""
        import torch

        by_part = zip(*(piece.chunk(self.parts, self.dim) for piece in pieces), strict=True)
        return torch.cat([piece for part in by_part for piece in part], self.dim)


def _span(tensor: Any, dim: int, rank: int, ranks: int) -> Any:
    size = tensor.shape[dim]
    each = -(-size // ranks)
    first = min(rank * each, size)
    return tensor.narrow(dim, first, min(each, size - first))


@dataclass(frozen=True)
class Copies:
    """Heads of keys and values that several ranks have a copy of, being fewer than ranks.

    count: how many of each; head_size: rows of a head; names: the tensors that it is about.
    """

    count: int
    head_size: int
    names: tuple[str, ...]

    def spread(self, tensor: Any) -> Any:
        """Return a tensor (heads · head_size, …) with every head as often as there are copies, side by side."""
        heads = tensor.reshape(-1, self.head_size, *tensor.shape[1:])
        return heads.repeat_interleave(self.count, 0).reshape(-1, *tensor.shape[1:])

    def single(self, tensor: Any) -> Any:
        """Return a tensor that was spread with every head once."""
        heads = tensor.reshape(-1, self.count, self.head_size, *tensor.shape[1:])
        return heads[:, 0].reshape(-1, *tensor.shape[1:]).contiguous()


@dataclass(frozen=True)
class Layout:
    """What tensor_parallel.json holds.

    plan: module or tensor, with * for a layer's number → style, as transformers calls it. splits: tensor → where it is
    cut; every rank has all of the others. divided: module → numbers of it that a rank has its share of, such as heads,
    where the architecture does not read them off its tensors.
    """

    world_size: int
    ranks: tuple[str, ...]
    plan: Mapping[str, str]
    splits: Mapping[str, Split]
    copies: Copies | None = None
    divided: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    schema: int = field(default=_SCHEMA)

    def piece(self, name: str, tensor: Any, rank: int) -> Any:
        """Return what a rank has of a tensor of the source."""
        if self.copies is not None and name in self.copies.names:
            tensor = self.copies.spread(tensor)
        split = self.splits.get(name)
        # A rank's file must not hold the memory of the whole tensor.
        return split.piece(tensor, rank, self.world_size).clone() if split else tensor.contiguous()

    def joined(self, name: str, pieces: Sequence[Any]) -> Any:
        """Return the source's tensor from what the ranks have of it."""
        split = self.splits.get(name)
        tensor = split.joined(pieces) if split else pieces[0]
        return self.copies.single(tensor) if self.copies is not None and name in self.copies.names else tensor

    def write(self, folder: Path) -> None:
        """Write the file."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Layout:
        """Read a folder's file. Raises ConfigError where there is none, or it or a rank's weights are damaged."""
        path = folder / FILE
        if not path.is_file():
            there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) if folder.is_dir() else "nothing"
            raise ConfigError(
                f"{folder} holds no model that is split over ranks: expected {FILE}, as PyTorchTensorParallel writes "
                f"it; there is: {there}"
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            copies = data.get("copies")
            found = cls(
                world_size=int(data["world_size"]),
                ranks=tuple(map(str, data["ranks"])),
                plan={str(name): str(style) for name, style in data["plan"].items()},
                splits={str(name): Split(int(one["dim"]), int(one["parts"])) for name, one in data["splits"].items()},
                copies=Copies(int(copies["count"]), int(copies["head_size"]), tuple(copies["names"]))
                if copies
                else None,
                divided={str(name): tuple(map(str, numbers)) for name, numbers in data["divided"].items()},
                schema=int(data["schema"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{path} is damaged: {type(error).__name__}: {error}; split the model again") from error
        if found.schema != _SCHEMA:
            raise ConfigError(f"{path} has schema {found.schema}; this version of Drupe reads {_SCHEMA}")
        if len(found.ranks) != found.world_size:
            raise ConfigError(f"{path} names {len(found.ranks)} ranks for a world_size of {found.world_size}")
        if absent := [name for name in found.ranks if not rank_file(folder, name).is_file()]:
            raise ConfigError(f"{folder} has no {WEIGHTS} in {', '.join(absent)}; all ranks are needed to run it")
        return found


def rank_file(folder: Path, name: str) -> Path:
    """Return the file with a rank's weights."""
    return folder / name / WEIGHTS
