"""The Hessian of a layer's squared output error (the second moments of its inputs), made ready to solve with."""

from __future__ import annotations

from typing import Any

from drupe.core.errors import PassError

__all__ = ["inverse_root", "solvable"]


def solvable(hessian: Any) -> tuple[Any, Any]:
    """Return a float32 copy of a Hessian (columns, columns) that can be solved with, and which columns are dead.

    The input of a dead column (a boolean each) is always zero: it says nothing, and no weight of it matters.
    """
    curvature = hessian.float().clone()
    dead = curvature.diagonal() == 0
    curvature.diagonal()[dead] = 1.0
    return curvature, dead


def inverse_root(pass_name: str, name: str, curvature: Any, damp: float) -> Any:
    """Return the upper Cholesky factor of the inverse, with as much damping as it takes.

    damp: share of the mean that is added to the diagonal. Raises PassError where no damping helps.
    """
    import torch

    mean = curvature.diagonal().mean()
    for _ in range(8):
        damped = curvature.clone()
        damped.diagonal().add_(damp * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if not failed and bool(torch.isfinite(upper).all()):
                return upper
        damp *= 3
    raise PassError(f"{pass_name}: the inputs of {name} can't be solved for; calibrate with more or other text")
