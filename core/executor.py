"""Runs a job on a host through the store, once: looks it up, locks it, runs it with retries, publishes what it made.

A pass that fails raises PassError and leaves nothing behind but its log; a host that fails is tried again, with
back-off.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from drupe.core.disk import store_errors
from drupe.core.errors import HostError, Interrupted, PassError
from drupe.core.hosts import Host, JobOptions
from drupe.core.job import Job, write_json
from drupe.core.model import Model
from drupe.core.registry import Registry
from drupe.core.specs import ModelKindSpec
from drupe.core.store import Store

__all__ = ["Executor", "StepResult"]

_log = logging.getLogger("drupe.executor")

_ATTEMPTS = 3
_FIRST_DELAY = 1.0


@dataclass(frozen=True)
class StepResult:
    """A step that is done. seconds: what it cost when it ran; cached: it came from the store."""

    key: str
    name: str
    type: str
    seconds: float
    cached: bool
    host: str
    model: Model | None
    report: Mapping[str, Any] = field(default_factory=dict)
    peak_memory: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


class Executor:
    """Runs jobs. Safe to use from several threads.

    host: a system's name → the host. events: called with what happens, from any thread. log_dir: where the logs of jobs
    are kept.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        host: Callable[[str], Host],
        *,
        events: Callable[[Mapping[str, Any]], None],
        cancelled: Callable[[], bool],
        log_dir: Path | None,
    ) -> None:
        self.store = store
        self.registry = registry
        self.cancelled = cancelled
        self._host = host
        self._events = events
        self._log_dir = log_dir
        self._failed: dict[str, str] = {}

    def step(self, job: Job, host: str, options: JobOptions) -> StepResult:
        """Run a job that makes a model, or find its result. Raises PassError, HostError, StoreError, Interrupted."""
        if job.key in self._failed:
            raise PassError(self._failed[job.key])
        record = self.store.get(job.key)
        cached = record is not None
        if record is None:
            if self.store.locked(job.key):
                # Another trial, process or machine: without a word this would look like standing still.
                self._events({"event": "step awaited", "name": job.name, "key": job.key})
            with self.store.lock(job.key, self.cancelled):
                record = self.store.get(job.key)
                cached = record is not None
                if record is None:
                    record = self._run_and_store(job, host, options)
        step = self.result(record, cached=cached)
        self.tell("finished", step)
        return step

    def _run_and_store(self, job: Job, host: str, options: JobOptions) -> Mapping[str, Any]:
        with self._job_folder(job) as folder:
            result = self.run(job, host, options, folder)
            model = Model.from_json(result["model"])
            self.store.publish(model, folder / "outputs")
            record = self.record(job, result, name=job.name, seconds=result["seconds"], host=host)
            record["model"] = result["model"]
            self.store.put(job.key, record)
        return record

    def record(self, job: Job, result: Mapping[str, Any], *, name: str, seconds: float, host: str) -> dict[str, Any]:
        """Return the step record of a job that ran."""
        return {
            "schema": 1,
            "key": job.key,
            "kind": job.kind,
            "name": name,
            "type": job.subject,
            "config": dict(job.config),
            "inputs": {role: model.digest for role, model in job.inputs.items()},
            "seconds": seconds,
            "host": host,
            "peak_memory": result.get("peak_memory"),
            "versions": result.get("versions", {}),
            "report": result.get("report", {}),
            "created": time.time(),
        }

    def result(self, record: Mapping[str, Any], *, cached: bool) -> StepResult:
        """Return what a step record says."""
        model = Model.from_json(record["model"]) if record.get("model") else None
        return StepResult(
            key=record["key"],
            name=record["name"],
            type=record["type"],
            seconds=record["seconds"],
            cached=cached,
            host=record["host"],
            model=model,
            report=record.get("report", {}),
            peak_memory=record.get("peak_memory"),
            versions=record.get("versions", {}),
        )

    @contextmanager
    def _job_folder(self, job: Job) -> Iterator[Path]:
        folder = self.store.new_job_dir(f"{job.name}-{job.key[:12]}")
        try:
            yield folder
        finally:
            self._keep_log(job, folder)
            self.store.remove_job_dir(folder)

    def _keep_log(self, job: Job, folder: Path) -> None:
        source = folder / "log.txt"
        if self._log_dir is not None and source.is_file() and source.stat().st_size:
            self._log_dir.mkdir(parents=True, exist_ok=True)
            name = "".join(c if c.isalnum() or c in "-_" else "_" for c in job.name)[:60]
            with (self._log_dir / f"{name}-{job.key[:8]}.txt").open("ab") as log:
                log.write(source.read_bytes())

    def run(self, job: Job, host: str, options: JobOptions, folder: Path | None = None) -> Mapping[str, Any]:
        """Run a job with retries and return its result.json, the job's status being "done"."""
        if folder is None:
            with self._job_folder(job) as own:
                return self.run(job, host, options, own)
        step = {"key": job.key, "kind": job.kind, "name": job.name, "type": job.subject, "host": host}
        self._events({"event": "step started", **step})
        self.registry.notify("drupe_step_started", step=step)
        try:
            result = self._tried(job, host, options, folder, step)
        except BaseException as error:
            # Whatever ends a step that started, observers hear of its end, once.
            self.registry.notify("drupe_step_finished", step=step, record=None, error=str(error) or repr(error))
            if not isinstance(error, Interrupted):
                self._events({"event": "step failed", "error": str(error), **step})
            raise
        self.registry.notify("drupe_step_finished", step=step, record=result, error=None)
        return result

    def _tried(
        self, job: Job, host: str, options: JobOptions, folder: Path, step: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        delay = _FIRST_DELAY
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                result = self._attempt(job, host, options, folder)
                break
            except HostError as error:
                error.host = error.host or host
                self._events({"event": "host failed", "attempt": attempt, "error": str(error), **step})
                _log.warning("%s failed on %s (attempt %d of %d): %s", job.name, host, attempt, _ATTEMPTS, error)
                if attempt == _ATTEMPTS or not error.retry:
                    raise
                self._sleep(delay)
                delay *= 2
        if result["status"] == "interrupted":
            raise Interrupted(f"{job.name} was interrupted; the same command goes on from there")
        if result["status"] != "done":
            failure = result["error"]
            message = f"{_who(job)} failed on {host}: {failure['message']}"
            _log.error("%s\n%s", message, failure.get("traceback", ""))
            self._failed[job.key] = message
            raise PassError(message)
        return result

    def _attempt(self, job: Job, host: str, options: JobOptions, folder: Path) -> Mapping[str, Any]:
        with store_errors(f"{job.name} can't be staged"):
            for stale in ("result.json", "outputs"):
                self.store.clear(folder / stale)
            for role, model in job.inputs.items():
                self.store.clear(folder / "inputs" / role)
                self.store.stage(model, folder / "inputs" / role, hard_links=self._hard_links(model.kind))
            (folder / "outputs").mkdir(parents=True, exist_ok=True)
            checkpoint = folder / "checkpoint"
            if not checkpoint.exists():
                checkpoint.symlink_to(self.store.checkpoint_dir(job.key), target_is_directory=True)
            write_json(folder / "job.json", job.to_json(), durable=False)
        step = {"key": job.key, "kind": job.kind, "name": job.name, "type": job.subject, "host": host}
        result = self._host(host).run(
            folder, options, lambda event: self._events({**event, "step": step}), self.cancelled
        )
        for role, model in job.inputs.items():
            changed = self.store.verify_inputs(model, folder / "inputs" / role)
            if changed:
                raise PassError(
                    f"{_who(job)} changed its input model: {', '.join(changed)}; "
                    "a pass writes below context.output_dir only"
                )
        return result

    def _hard_links(self, kind: str) -> bool:
        """Whether the libraries of a model kind read hard links; a kind that no plugin declares is taken to."""
        entry = self.registry.find("drupe_model_kinds", kind)
        return entry is None or cast(ModelKindSpec, entry.spec).hard_links

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.cancelled():
                raise Interrupted("stopped by the user")
            time.sleep(0.1)

    def tell(self, what: str, step: StepResult) -> None:
        """Tell the listener that a step was "finished"."""
        self._events(
            {
                "event": f"step {what}",
                "key": step.key,
                "name": step.name,
                "type": step.type,
                "seconds": step.seconds,
                "cached": step.cached,
                "host": step.host,
            }
        )


def _who(job: Job) -> str:
    """The step, its pass, and the distributions that provide what it uses, where they are not Drupe's own."""
    foreign = [f"{name} {version}" for name, version in job.requires.items() if name != "drupe"]
    what = " of ".join([job.subject or "measure", *([", ".join(foreign)] if foreign else [])])
    return f"{job.name} ({what})"
