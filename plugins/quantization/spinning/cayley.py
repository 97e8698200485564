"""Cayley SGD: steps that keep an orthogonal matrix orthogonal (Li et al. 2020, arXiv 2002.01113).

The equation that the paper iterates towards is solved here: the matrices are small beside the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["CayleySGD"]


class CayleySGD(torch.optim.Optimizer):  # type: ignore[misc]
    """Descends over orthogonal matrices X (n, n): X becomes (I - a/2 W)^-1 (I + a/2 W) X.

    W is the skew-symmetric part of the momentum seen from X, and a the learning rate or, where that is less, what makes
    the largest absolute column sum of a·W one.
    """

    def __init__(self, matrices: Iterable[Any], lr: float, momentum: float = 0.0) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self) -> None:
        """Take one step."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._turn(matrix, group["lr"], group["momentum"])

    def _turn(self, matrix: Any, lr: float, momentum: float) -> None:
        kept = self.state[matrix]
        direction = -matrix.grad
        if momentum:
            direction = direction + momentum * kept.get("direction", 0.0)
        skew = 0.5 * (direction @ matrix.T - matrix @ direction.T)
        if momentum:
            kept["direction"] = skew @ matrix
        largest = torch.linalg.matrix_norm(skew, 1)
        if largest == 0:
            return
        half = 0.5 * min(lr, 1.0 / float(largest)) * skew
        one = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        matrix.copy_(torch.linalg.solve(one - half, (one + half) @ matrix))
