"""The states of a decoder in other coordinates: what norms do to them, and how layers read and write them.

A layer that reads states x of width n and is given x @ Q instead (Q of orthogonal columns) says the same with its
weights W (outputs × n) as W @ Q; one that writes them with Qᵀ @ W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Norm", "read_norm", "read_states", "take_norm", "write_states"]

_EPS = ("eps", "variance_epsilon", "epsilon", "norm_eps")


@dataclass(frozen=True)
class Norm:
    """What a norm does: normalized states times gain plus bias. centred: their mean is taken away first (LayerNorm).

    gain, bias: (size,) in float64.
    """

    gain: Any
    bias: Any
    centred: bool
    eps: float


def read_norm(norm: Any, size: int) -> Norm | None:
    """Return what a module does to states of a size, found by giving it some; None where it is no such norm."""
    import torch

    eps = next((value for name in _EPS if isinstance(value := getattr(norm, name, None), float)), None)
    if eps is None:
        return None
    parameter = next(norm.parameters(), torch.zeros(()))

    def given(states: Any) -> Any:
        return norm(states.to(parameter)).double().reshape(-1)

    generator = torch.Generator().manual_seed(0)
    probes = [scale * torch.randn(1, size, generator=generator, dtype=torch.float64) for scale in (1.0, 0.01)]
    signs = torch.ones(1, size, dtype=torch.float64)
    signs[:, ::2] = -1
    with torch.no_grad():
        try:
            bias = given(torch.zeros(1, size))
            # A norm that takes the mean away makes zeros of equal entries.
            centred = bool(torch.allclose(given(torch.ones(1, size)), bias, atol=1e-3))
            gain = (given(signs) - bias) / _normalized(signs, centred, eps).to(bias)
        except (RuntimeError, TypeError, IndexError):
            return None
        found = Norm(gain, bias, centred, eps)
        near = 1e-3 * max(float(gain.abs().max()), float(bias.abs().max()))
        same = all(
            torch.allclose(given(probe), _normalized(probe, centred, eps).to(gain) * gain + bias, rtol=1e-3, atol=near)
            for probe in probes
        )
    return found if same else None


def _normalized(states: Any, centred: bool, eps: float) -> Any:
    import torch

    if centred:
        states = states - states.mean(-1, keepdim=True)
    return (states * torch.rsqrt(states.square().mean(-1, keepdim=True) + eps)).reshape(-1)


def take_norm(layer: Any, norm: Norm) -> None:
    """Give a layer behind a norm the norm's gain and bias: it is then given normalized states only."""
    import torch

    weight = layer.weight.double()
    if bool(norm.bias.any()):
        moved = weight @ norm.bias
        before = 0 if layer.bias is None else layer.bias.double()
        layer.bias = torch.nn.Parameter((moved + before).to(layer.weight), requires_grad=False)
    layer.weight.data = (weight * norm.gain).to(layer.weight)


def read_states(layer: Any, states: Any) -> None:
    """Let a layer read turned states. states: (width before, width after), float64."""
    layer.weight.data = (layer.weight.double() @ states).to(layer.weight)


def write_states(layer: Any, states: Any) -> None:
    """Let a layer write turned states. states: (width before, width after), float64."""
    layer.weight.data = (states.T @ layer.weight.double()).to(layer.weight)
    if layer.bias is not None:
        layer.bias.data = (states.T @ layer.bias.double()).to(layer.bias)
