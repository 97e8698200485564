"""Orthogonal matrices: random ones, and Hadamard's, which spread a large entry over all others evenly.

Orders with a Hadamard matrix here: a power of two times 1, q + 1 (q prime, q mod 4 = 3) or 2 (q + 1) (q prime,
q mod 4 = 1), as Paley built them (1933, doi 10.1002/sapm1933121311).
"""

from __future__ import annotations

from typing import Any

__all__ = ["hadamard", "rotation"]


def rotation(size: int, mode: str, generator: Any) -> Any:
    """Return an orthogonal matrix (size, size) in float64. mode: "hadamard" (its rows with random signs) or "random".

    Raises ValueError where no Hadamard matrix of that size is known here.
    """
    import torch

    if mode == "random":
        found, upper = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
        # The signs make it uniform over all rotations.
        return found * torch.sign(upper.diagonal())
    signs = torch.randint(0, 2, (size, 1), generator=generator, dtype=torch.float64) * 2 - 1
    return signs * hadamard(size) / size**0.5


def hadamard(size: int) -> Any:
    """Return a matrix of 1 and -1 whose rows are orthogonal. Raises ValueError where none is known here."""
    import torch

    doubled = 0
    while True:
        core = _core(size >> doubled)
        if core is not None:
            break
        if size <= 0 or (size >> doubled) % 2:
            raise ValueError(f"no Hadamard matrix of size {size} is known here")
        doubled += 1
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    for _ in range(doubled):
        core = torch.kron(pair, core)
    return core


def _core(size: int) -> Any:
    import torch

    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if _is_prime(size - 1) and (size - 1) % 4 == 3:
        return _bordered(size - 1, -1.0) + torch.eye(size, dtype=torch.float64)
    half = size // 2
    if size % 2 == 0 and _is_prime(half - 1) and (half - 1) % 4 == 1:
        inner = _bordered(half - 1, 1.0)
        even = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        odd = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(inner, even) + torch.kron(torch.eye(half, dtype=torch.float64), odd)
    return None


def _bordered(prime: int, sign: float) -> Any:
    """Return Jacobsthal's matrix with a border of ones: symmetric where sign is 1, skew where it is -1."""
    import torch

    squares = {number * number % prime for number in range(1, prime)}
    kind = torch.tensor([0.0, *(1.0 if n in squares else -1.0 for n in range(1, prime))], dtype=torch.float64)
    places = torch.arange(prime)
    matrix = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    matrix[1:, 1:] = kind[(places[:, None] - places[None, :]) % prime]
    matrix[0, 1:] = 1.0
    matrix[1:, 0] = sign
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
