"""Checks that an exported graph holds for inputs of other sizes than the example's: tracing writes loops out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from drupe.plugins.onnx.checked_session import checked_session
from drupe.plugins.onnx.exporter_errors import HoldsHereOnly

__all__ = ["check_other_sizes"]

_NEAR = 1e-2
"""The largest difference, as a share of the largest number, that counts as the same."""
_FEW = 4
"""Up to so many samples of the example the check takes one more; of more it takes two."""
_LONG = 256
"""Examples of a greater length are checked with shorter inputs: what attention takes grows with its square."""


def check_other_sizes(
    proto: Any,
    wrapped: Any,
    tensors: Mapping[str, Any],
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
    *,
    dynamo: bool = False,
) -> None:
    """Raise HoldsHereOnly where a graph gives something else than the module at sizes that the example does not have.

    A network that goes through a text step by step (Mamba, RWKV) is traced as so many steps as the example has.
    wrapped: the module, by position; tensors: the example's inputs; axes: which of them are open, and their labels;
    dynamo: which exporter wrote the graph. Does nothing where the graph can't be run here (see checked_session), or
    the module itself takes no other sizes or answers differently each time.
    """
    values = list(tensors.values())
    open_inputs = any(axes.get(name) for name in tensors)
    labels = {label for name in tensors for label in axes.get(name, {}).values()}
    # Lengths of keys and values, and those that are sums, depend on others in ways that no name tells.
    tied = any("past" in name for name in tensors) or not all(label.isidentifier() for label in labels)
    if tied or not open_inputs:
        return
    way = f"try use_dynamo_exporter: {'false' if dynamo else 'true'}, or dynamic: false for a graph of these sizes"
    try:
        session = checked_session(proto, (*values, *wrapped.parameters()))
    except ValueError as error:
        raise HoldsHereOnly(f"the exporter wrote a graph that ONNX Runtime can't load: {error}; {way}") from error
    if session is None:
        return
    # Samples do not depend on each other: few are enough, and outputs over a vocabulary stay small.
    samples = {axes[name][0] for name, value in tensors.items() if value.dim() > 1 and 0 in axes.get(name, {})}
    lengths = [
        value.shape[axis]
        for name, value in tensors.items()
        for axis, label in axes.get(name, {}).items()
        if label not in samples
    ]
    if max(lengths, default=0) > _LONG:
        factors = [0.5]
    else:
        factors = [1.5] if any(value.is_floating_point() for value in values) else [1.5, 5.0]
    for factor in factors:
        sized = {name: _sized(value, axes.get(name, {}), factor, samples) for name, value in tensors.items()}
        _check(session, wrapped, sized, outputs, way)


def _check(session: Any, wrapped: Any, inputs: Mapping[str, Any], outputs: Sequence[str], way: str) -> None:
    import torch

    try:
        with torch.inference_mode():
            expected = wrapped(*(value.clone() for value in inputs.values()))
    except Exception:
        # Pictures, for instance, may have one size only whatever was said of them; texts have a longest.
        return
    sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
    taken = {item.name for item in session.get_inputs()}
    try:
        got = session.run(list(outputs), {name: value.numpy() for name, value in inputs.items() if name in taken})
    except Exception as error:
        raise HoldsHereOnly(
            f"the exported graph holds for the example's sizes only and fails at {sizes}: {str(error)[:200]}; {way}"
        ) from error
    for name, ours, theirs in zip(outputs, got, expected, strict=True):
        wanted = theirs.numpy()
        if ours.shape != wanted.shape or not _near(ours, wanted):
            if not _repeats(wrapped, inputs, expected):
                return
            raise HoldsHereOnly(
                f"the exported graph holds for the example's sizes only: its {name} is wrong at {sizes}; {way}"
            )


def _repeats(wrapped: Any, inputs: Mapping[str, Any], expected: Sequence[Any]) -> bool:
    """Whether a module gives the same once more: one that draws numbers can't be compared."""
    import torch

    with torch.inference_mode():
        again = wrapped(*(value.clone() for value in inputs.values()))
    return all(
        one.shape == other.shape and _near(one.numpy(), other.numpy())
        for one, other in zip(again, expected, strict=True)
    )


def _sized(value: Any, axes: Mapping[int, str], factor: float, samples: Collection[str]) -> Any:
    """Return a tensor `factor` times as long on its open axes, and one more, beginning anew where its end was; of
    zeros, which hide what they are multiplied by, other numbers. samples: labels of axes that get one more, or of which
    two are kept."""
    import torch

    if value.is_floating_point() and not value.any():
        value = torch.rand(value.shape, generator=torch.Generator().manual_seed(0))
    for axis, label in axes.items():
        size = value.shape[axis]
        if size:
            few = size + 1 if size <= _FEW else 2
            other = few if label in samples else int(size * factor) + 1
            value = value.index_select(axis, torch.arange(other) % size)
    return value


def _near(ours: Any, wanted: Any) -> bool:
    """Whether outputs of one shape are alike, looked at sample by sample to stay small."""
    import numpy as np

    largest, far = 1.0, 0.0
    for one, other in zip(ours, wanted, strict=True) if wanted.ndim else [(ours, wanted)]:
        finite = np.isfinite(other)
        if finite.any():
            apart = np.abs(np.where(finite, one, 0).astype(np.float64) - np.where(finite, other, 0))
            far = max(far, float(apart.max())) if not np.isnan(apart).any() else np.inf
            largest = max(largest, float(np.abs(other[finite]).max()))
    return far <= _NEAR * largest
