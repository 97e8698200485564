"""Contexts such as the worker gives to passes, data containers and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import ConfigError
from drupe.core.model import Model

__all__ = ["GivenData", "make_context"]


class GivenData:
    """Data configs by name, for passes under test; every part is the whole."""

    def __init__(self, samples: Mapping[str, Sequence[Sample] | Callable[[Model | None], Sequence[Sample]]]) -> None:
        self._samples = samples

    def samples(self, name: str, part: str | None, model: Model | None, context: JobContext) -> Sequence[Sample]:
        """Return the samples of a data config; a function is called with the model that prepares them."""
        if name not in self._samples:
            raise ConfigError(f"data config {name!r} is not given; given: {', '.join(self._samples) or 'none'}")
        given = self._samples[name]
        return given(model) if callable(given) else given


def make_context(
    folder: Path,
    *,
    data: Mapping[str, Sequence[Sample] | Callable[[Model | None], Sequence[Sample]]] | None = None,
    **fields: Any,
) -> JobContext:
    """Return a context whose output and checkpoint folders are made below `folder`.

    data: samples by data config. fields: any field of JobContext (accelerator, resources, seed, allow, …).
    """
    output, checkpoint = folder / "outputs", folder / "checkpoint"
    output.mkdir(parents=True)
    checkpoint.mkdir(parents=True)
    return JobContext(output, checkpoint, data_source=GivenData(data or {}), **fields)
