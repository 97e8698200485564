"""Runs a job on a machine with another file system: sends what is missing there, brings back what was made.

Everything that arrives is hashed: there by the site, here before the job's folder gets it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from drupe.core.errors import HostError
from drupe.core.host_faults import forget_attempt
from drupe.core.hosts import Events
from drupe.core.job import Job, write_json
from drupe.core.job_files import job_files

__all__ = ["Link", "receive", "run_through"]


class Link(Protocol):
    """A way to a `Site`. Every method raises HostError when the way is gone."""

    def missing(self, digests: Sequence[str]) -> tuple[list[str], int]:
        """Return which digests are not there, and how many bytes there is room for."""

    def put(self, digest: str, path: Path) -> None:
        """Send a file."""

    def run(
        self,
        job: Mapping[str, Any],
        files: Mapping[str, str],
        options: Mapping[str, Any],
        events: Events,
        log: IO[bytes],
        look: Callable[[Callable[[], None]], None],
    ) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Run a job whose files are there; return its result, and what it made, name → digest.

        log: gets the job's log as it grows. look: to be called at least every half second, with what cancels the job.
        """

    def get(self, digest: str, path: Path) -> None:
        """Fetch a file that the job made."""

    def finish(self) -> None:
        """Let the job's folder go."""


def run_through(
    link: Link,
    folder: Path,
    options: Mapping[str, Any],
    events: Events,
    look: Callable[[Callable[[], None]], None],
) -> Mapping[str, Any]:
    """Run the staged job in `folder` through a link; return its result. Raises HostError, StoreError, Interrupted."""
    forget_attempt(folder)
    data = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    job = Job.from_json(data)
    files = job_files(job)
    here = dict(_inputs(job, folder)) | {digest: Path(path) for path, digest in files.items()}
    missing, free = link.missing(sorted(here))
    needed = sum(here[digest].stat().st_size for digest in missing)
    if needed > free:
        raise HostError(
            f"{job.name} needs {needed / 1e6:.0f} MB there and {free / 1e6:.0f} MB are free; make room", retry=False
        )
    for digest in missing:
        look(lambda: None)
        events({"event": "state", "state": "sending", "bytes": here[digest].stat().st_size})
        link.put(digest, here[digest])
    with (folder / "log.txt").open("ab", buffering=0) as log:
        result, made = link.run(data, files, options, events, log, look)
    for name, digest in made.items():
        target = folder / "outputs" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        link.get(digest, target)
    link.finish()
    write_json(folder / "result.json", result, durable=False)
    return result


def receive(chunks: Iterator[bytes], digest: str, path: Path) -> None:
    """Write a file that arrives in pieces. Raises HostError when it is not what its digest says."""
    sha256 = hashlib.sha256()
    with path.open("wb") as handle:
        for chunk in chunks:
            sha256.update(chunk)
            handle.write(chunk)
    if sha256.hexdigest() != digest:
        path.unlink(missing_ok=True)
        raise HostError(f"the file {path.name} arrived damaged: its sha256 is not {digest[:12]}…")


def _inputs(job: Job, folder: Path) -> Iterator[tuple[str, Path]]:
    for role, model in job.inputs.items():
        for name, digest in model.files.items():
            yield digest, folder / "inputs" / role / name
