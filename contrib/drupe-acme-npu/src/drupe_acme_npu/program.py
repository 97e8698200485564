"""A compiled program: instructions in order, and weights in the device's integer types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Instruction", "Program", "Tensor"]


@dataclass(frozen=True)
class Tensor:
    """Name, shape and numpy type of an input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Instruction:
    """One operation on named values."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """weights: name → integers; scales: name → what one step is worth."""

    weight_bits: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    instructions: tuple[Instruction, ...]
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write program.json and weights.npz; the same program gives the same bytes."""
        data = {
            "schema": 1,
            "weight_bits": self.weight_bits,
            "inputs": [asdict(tensor) for tensor in self.inputs],
            "outputs": [asdict(tensor) for tensor in self.outputs],
            "instructions": [{**asdict(i), "attributes": dict(i.attributes)} for i in self.instructions],
            "scales": dict(self.scales),
        }
        (folder / "program.json").write_text(json.dumps(data, indent=1, sort_keys=True), encoding="utf-8")
        np.savez(folder / "weights.npz", allow_pickle=False, **dict(self.weights))

    @classmethod
    def load(cls, folder: Path) -> Program:
        """Read what `save` wrote. Raises ValueError for another schema, OSError for an absent file."""
        data = json.loads((folder / "program.json").read_text(encoding="utf-8"))
        if data.get("schema") != 1:
            raise ValueError(f"program.json has schema {data.get('schema')!r}; this device reads schema 1")
        with np.load(folder / "weights.npz") as archive:
            weights = {name: archive[name] for name in archive.files}
        return cls(
            weight_bits=data["weight_bits"],
            inputs=tuple(Tensor(t["name"], tuple(t["shape"]), t["dtype"]) for t in data["inputs"]),
            outputs=tuple(Tensor(t["name"], tuple(t["shape"]), t["dtype"]) for t in data["outputs"]),
            instructions=tuple(
                Instruction(i["op"], tuple(i["inputs"]), i["output"], i["attributes"]) for i in data["instructions"]
            ),
            weights=weights,
            scales=data["scales"],
        )
