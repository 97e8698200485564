"""Rotations that are learned: a start times an orthogonal matrix that begins as the identity."""

from __future__ import annotations

from typing import Any

import torch

from drupe.plugins.quantization.hadamard import rotation

__all__ = ["Coordinates", "coordinates"]


class Coordinates:
    """A rotation (size, size). learned: the orthogonal matrix that may be changed, in float64.

    frame: None, or what turns the direction of equal entries onto the first axis: then the rotation keeps that
    direction, and with it the mean of what it turns, so that it may stand on either side of a LayerNorm.
    """

    def __init__(self, start: Any, frame: Any = None) -> None:
        self.start = start
        self.frame = frame
        free = len(start) - (frame is not None)
        self.learned = torch.nn.Parameter(torch.eye(free, dtype=start.dtype, device=start.device))

    def matrix(self) -> Any:
        """Return the rotation, in float64; gradients reach `learned`."""
        if self.frame is None:
            return self.start @ self.learned
        return self.start @ self.frame @ _behind_one(self.learned) @ self.frame

    def reset(self) -> None:
        """Take back what was learned."""
        self.learned.data = torch.eye(len(self.learned), dtype=self.start.dtype, device=self.start.device)


def coordinates(size: int, mode: str, generator: Any, device: Any, *, keeps_mean: bool = False) -> Coordinates:
    """Return where learning begins. mode: see hadamard.rotation, whose ValueError it raises."""
    if not keeps_mean:
        return Coordinates(rotation(size, mode, generator).to(device))
    even = torch.full((size,), size**-0.5, dtype=torch.float64)
    axis = torch.zeros_like(even)
    axis[0] = 1.0
    normal = axis - even
    normal = normal / normal.norm()
    frame = torch.eye(size, dtype=torch.float64) - 2 * torch.outer(normal, normal)
    if mode == "random":
        start = frame @ _behind_one(rotation(size - 1, mode, generator)) @ frame
    else:
        # The first column of the matrix with its rows' signs made equal is the direction that the frame turns to.
        flat = rotation(size, mode, generator)
        flat = flat * torch.sign(flat[:, :1])
        signs = torch.randint(0, 2, (size,), generator=generator, dtype=torch.float64) * 2 - 1
        signs[0] = 1.0
        start = (flat * signs) @ frame
    return Coordinates(start.to(device), frame.to(device))


def _behind_one(matrix: Any) -> Any:
    return torch.block_diag(torch.ones(1, 1, dtype=matrix.dtype, device=matrix.device), matrix)
