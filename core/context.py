"""What work is given besides its input: where to write, data, device, resources, progress, cancellation, consent.

The worker builds a `JobContext` from a job folder; passes, data containers, metrics, model sources and model kinds all
get one. Tests build one with `drupe.testing`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from drupe.core.data import Sample
    from drupe.core.model import Model
    from drupe.core.runtimes import Session

__all__ = ["DataSource", "JobContext", "PassContext", "Resources"]


@dataclass(frozen=True)
class Resources:
    """What a job may use. gpus may be a fraction; memory is in bytes; threads None means: as many as cpus."""

    cpus: int = 1
    gpus: float = 0
    memory: int | None = None
    threads: int | None = None

    @property
    def thread_count(self) -> int:
        """How many threads numeric libraries may start."""
        return self.threads or self.cpus


class DataSource(Protocol):
    """What `context.data` asks for samples: the worker's view of the workflow's data configs."""

    def samples(self, name: str, part: str | None, model: Model | None, context: JobContext) -> Sequence[Sample]: ...


@dataclass
class JobContext:
    """The surroundings of one job.

    output_dir: an empty folder; what the job makes goes there. checkpoint_dir: belongs to the step key and survives
    retries and kills; a long step resumes from it. seed: for every random choice. allow: consents of the user
    ("remote-code", "user-scripts", "pickle"). report: facts about the work (accounting, forecasts, curves) that travel
    with the result and into the manifest, but never into the model. rank, world_size: which of how many processes of a
    launched job this is; only rank 0's outputs and result are taken.
    """

    output_dir: Path
    checkpoint_dir: Path
    accelerator: Accelerator = field(default_factory=Accelerator)
    resources: Resources = field(default_factory=Resources)
    seed: int = 0
    allow: frozenset[str] = frozenset()
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("drupe.job"))
    report: dict[str, Any] = field(default_factory=dict)
    workflow_dir: Path | None = None
    data_source: DataSource | None = None
    on_progress: Callable[[Mapping[str, Any]], None] | None = None
    is_cancelled: Callable[[], bool] | None = None
    rank: int = 0
    world_size: int = 1
    model_sessions: Callable[[], Session] | None = None
    """In a measuring job: opens a fresh session of the model, for metrics that watch the opening itself."""
    population: Sequence[Sample] = ()
    """In a measuring job: the whole part of the data that the metric's samples, perhaps fewer, were taken from."""
    part: str | None = None
    """In a measuring job: "selection", "certification", or another word for all of the data that measures."""
    baseline_session: Session | None = None
    """In a measuring job with a relative goal: the baseline's session; timed metrics interleave the two."""
    reference_session: Session | None = None
    """For a metric that needs a reference: the source model's session."""
    alone: Callable[[], AbstractContextManager[None]] = nullcontext
    """In a timed job: `with context.alone():` holds the machine; the engine does so around a timed metric's `measure`,
    so that models and data are loaded beside others."""

    def data(self, name: str, *, model: Model | None = None, part: str | None = "train") -> Sequence[Sample]:
        """Return the samples of the data config `name`.

        part: "train", "selection", "certification" or None (everything). A data config without a split gives
        everything for every part. model: whose tokenizer or processor prepares the samples. Raises ConfigError when the
        data config is unknown or gives no samples.
        """
        if self.data_source is None:
            raise ConfigError(f"data config {name!r} was asked for, but this job has no data")
        return self.data_source.samples(name, part, model, self)

    def progress(self, done: float, total: float, message: str = "", **values: float) -> None:
        """Tell how far the work is: `done` of `total`; values: named figures such as loss. Cheap to call often."""
        if self.on_progress is not None:
            self.on_progress({"done": done, "total": total, "message": message, "values": values})
        self.raise_if_cancelled()

    def cancelled(self) -> bool:
        """Whether the user wants the job to stop; long loops ask and save a checkpoint before they leave."""
        return self.is_cancelled is not None and self.is_cancelled()

    def raise_if_cancelled(self) -> None:
        """Raise Interrupted when the user wants the job to stop."""
        if self.cancelled():
            raise Interrupted("cancelled by the user")

    def require_consent(self, what: str, why: str) -> None:
        """Raise ConfigError unless the user allowed `what` ("remote-code", "user-scripts", "pickle")."""
        if what not in self.allow:
            raise ConfigError(f"{why} needs the user's consent; add --allow {what} to the command")

    def secret(self, name: str) -> str | None:
        """Return the value of the environment variable `name`, for SecretRef fields. Never write it anywhere."""
        return os.environ.get(name)

    def batches(self, samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
        """Cut samples into batches of at most `size`, asking for cancellation between them."""
        for start in range(0, len(samples), size):
            self.raise_if_cancelled()
            yield samples[start : start + size]


PassContext = JobContext
"""The context that `Pass.run` gets."""
