"""The one command that a host runs: `python -m drupe.core.worker JOB`, or `--serve` for a warm worker.

`run_job` is the one implementation behind in-process, warm worker and remote hosts. What user code prints goes to the
job's log. Under a launcher every rank runs the job; the first one writes outputs and result, the others write below
JOB/ranks/.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from drupe.core.context import JobContext
from drupe.core.disk import is_full
from drupe.core.errors import DrupeError, HostError, Interrupted, PluginError, StoreError
from drupe.core.host_faults import CANCEL, HEARTBEAT, HEARTBEAT_SECONDS, log_tail, write_fault
from drupe.core.job import SCHEMA, Job, check_json, write_json
from drupe.core.job_limits import limit_threads, memory_limit, peak_memory, reset_peak_memory
from drupe.core.machine import MachineShare

__all__ = ["HOST_FAULT", "LAUNCHED", "main", "rank", "run_job", "world_size"]

Events = Callable[[Mapping[str, Any]], None]

LAUNCHED = "DRUPE_LAUNCHED"
"""Set by hosts that put a launcher before the worker: RANK then means a rank of this job."""
HOST_FAULT = 70
"""The exit code of a worker whose machine failed the job; JOB/host_error.json says how."""
_PROGRESS_SECONDS = 0.1
_LOOK_SECONDS = 0.2
_EXIT = {"done": 0, "failed": 1, "interrupted": 130}


def rank() -> int:
    """Return this process's rank in a launched job, 0 where there is no launcher."""
    return int(os.environ.get("RANK", "0")) if os.environ.get(LAUNCHED) else 0


def world_size() -> int:
    """Return how many processes a launched job has, 1 where there is no launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if os.environ.get(LAUNCHED) else 1


def run_job(
    folder: Path,
    events: Events = lambda event: None,
    cancelled: Callable[[], bool] = lambda: False,
    *,
    exclusive: bool = False,
    locked: bool = False,
    own_process: bool = False,
    alone: Callable[[], AbstractContextManager[None]] | None = None,
) -> dict[str, Any]:
    """Do what `folder/job.json` says and return the result, which is also written to `folder/result.json`.

    exclusive: a timed job, alone on this machine while it measures. locked: the host holds the machine's lock already.
    own_process: this process may be ended when the job uses more memory than it may. alone: how a timed job gets the
    machine alone where the host holds the lock; None: it has it already. A failure of the work is a result with status
    "failed". Raises HostError or StoreError for what is this machine's fault: a full disk, no memory, a distribution
    that the job needs and that is absent.
    """
    folder = Path(folder)
    job = Job.from_json(json.loads((folder / "job.json").read_text(encoding="utf-8")))
    limit_threads(job.resources.thread_count)
    own = folder if rank() == 0 else folder / "ranks" / str(rank())
    own.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"schema": SCHEMA, "status": "done", "error": None, "model": None, "measurements": None}
    started = time.perf_counter()
    with _logging_to(own / "log.txt") as log:
        context = _context(job, own, folder / "checkpoint", log, events, cancelled)
        try:
            _check_requirements(job)
            with (
                MachineShare(cancelled) as share,
                memory_limit(job.resources.memory if own_process else None, _leaver(job, folder)),
            ):
                if not locked and not rank():
                    share.take()
                    alone = share.alone
                if exclusive and alone is not None:
                    context.alone = alone
                started = time.perf_counter()
                reset_peak_memory()
                from drupe.core.work import WORK

                done = dict(WORK[job.kind](job, folder, context))
                check_json("report", context.report)
                check_json("attribute", dict((done.get("model") or {}).get("attributes", {})))
                result |= done
        except Interrupted as error:
            result |= {"status": "interrupted", "error": _error(error)}
        except Exception as error:
            fault = _hosts_fault(job, folder, error)
            if fault is not None:
                raise fault from error
            log.exception("%s failed", job.name)
            result |= {"status": "failed", "error": _error(error)}
        with suppress(PluginError):
            # Of work that failed by itself, its own error is what counts.
            check_json("report", context.report)
        result |= {
            "report": context.report,
            "seconds": time.perf_counter() - started,
            "peak_memory": peak_memory(),
            "versions": _versions_of_loaded(),
        }
        write_json(own / "result.json", result, durable=False)
    return result


def _hosts_fault(job: Job, folder: Path, error: Exception) -> HostError | StoreError | None:
    """Return what the host raises for an error that is not the work's own; None for one that is."""
    if isinstance(error, (HostError, StoreError)):
        return error
    if isinstance(error, MemoryError):
        return HostError(f"{job.name}: out of memory on this machine", log_tail(folder))
    if is_full(error):
        what = (error.strerror if isinstance(error, OSError) else None) or "No space left on device"
        return StoreError(f"{job.name}: {what}; make room below {folder} and run the same command again")
    return None


def _leaver(job: Job, folder: Path) -> Callable[[int], None]:
    def leave(used: int) -> None:
        limit = job.resources.memory or 0
        message = f"{job.name} used {used / 1e6:.0f} MB of memory and may use {limit / 1e6:.0f} MB; raise `memory`"
        write_fault(folder, HostError(message, retry=False))
        # Native code can't be interrupted from a thread.
        os._exit(HOST_FAULT)

    return leave


def _error(error: BaseException) -> dict[str, str]:
    message = str(error) if isinstance(error, DrupeError) else f"{type(error).__name__}: {error}"
    return {
        "type": type(error).__name__,
        "message": message,
        "traceback": "".join(traceback.format_exception(error)),
    }


def _context(
    job: Job, own: Path, checkpoint: Path, log: logging.Logger, events: Events, cancelled: Callable[[], bool]
) -> JobContext:
    outputs = own / "outputs"
    outputs.mkdir(exist_ok=True)
    checkpoint.mkdir(exist_ok=True)
    last = [0.0]

    def on_progress(progress: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - last[0] >= _PROGRESS_SECONDS or progress["done"] >= progress["total"]:
            last[0] = now
            events({"event": "progress", **progress})

    return JobContext(
        output_dir=outputs,
        checkpoint_dir=checkpoint,
        accelerator=job.accelerator,
        resources=job.resources,
        seed=job.seed,
        allow=frozenset(job.allow),
        log=log,
        workflow_dir=Path(job.workflow_dir) if job.workflow_dir else None,
        on_progress=on_progress,
        is_cancelled=cancelled,
        rank=rank(),
        world_size=world_size(),
    )


def _check_requirements(job: Job) -> None:
    for name, version in job.requires.items():
        try:
            here = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            message = f"{job.name} needs {name} {version}, which is not installed where it runs; install it there"
            raise HostError(message, retry=False) from None
        if here != version:
            message = f"{job.name} needs {name} {version}; installed where it runs is {here}; install the same version"
            raise HostError(message, retry=False)


@contextmanager
def _logging_to(path: Path) -> Iterator[logging.Logger]:
    logger = logging.getLogger("drupe.job")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        handler.close()


_REPORTED = (
    "torch", "transformers", "peft", "onnx", "onnxruntime", "onnxruntime-genai", "bitsandbytes", "numpy", "datasets",
    "tokenizers", "safetensors", "onnxscript",
)  # fmt: skip


def _versions_of_loaded() -> dict[str, str]:
    """Return the versions of the frameworks that this process has imported."""
    from drupe.core.requirements import installed_builds

    found: dict[str, str] = {}
    for name in _REPORTED:
        if name.replace("-", "_") in sys.modules:
            found |= installed_builds(name)
    return found


def _leash() -> None:
    """End this process, and what it started, when stdin ends: whoever waits for the job is gone then."""
    held = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def watch() -> None:
        while os.read(held, 4096):
            pass
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(HOST_FAULT)

    threading.Thread(target=watch, name="leash", daemon=True).start()


def _watch_heartbeat(folder: Path) -> None:
    """End this process, and what it started, when nobody touches JOB/heartbeat any more, or the folder is gone."""

    def watch() -> None:
        last, seen = None, time.monotonic()
        while time.monotonic() - seen < HEARTBEAT_SECONDS * 10:
            time.sleep(HEARTBEAT_SECONDS / 5)
            try:
                beat = (folder / HEARTBEAT).stat().st_mtime_ns
            except FileNotFoundError:
                break
            except OSError:
                continue  # A shared file system that does not answer for a moment.
            # Not against this machine's clock, which may not be the other's.
            if beat != last:
                last, seen = beat, time.monotonic()
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(HOST_FAULT)

    threading.Thread(target=watch, name="heartbeat", daemon=True).start()


def _run_one(folder: Path, *, exclusive: bool, locked: bool) -> int:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    signal.signal(signal.SIGINT, lambda number, frame: stop.set())
    look = [0.0]

    def cancelled() -> bool:
        now = time.monotonic()
        if not stop.is_set() and now - look[0] > _LOOK_SECONDS:
            look[0] = now
            if (folder / CANCEL).exists():
                stop.set()
        return stop.is_set()

    try:
        with (folder / f"events{rank() or ''}.jsonl").open("a", encoding="utf-8") as events:

            def write(event: Mapping[str, Any]) -> None:
                events.write(json.dumps(event) + "\n")
                events.flush()

            result = run_job(folder, write, cancelled, exclusive=exclusive, locked=locked, own_process=True)
            return _EXIT[result["status"]]
    except (HostError, StoreError) as error:
        write_fault(folder, error)
        print(error, file=sys.stderr)  # noqa: T201
        return HOST_FAULT


def main(arguments: list[str] | None = None) -> int:
    """Run one job folder, or serve. Exit codes: 0 done, 1 failed, 130 interrupted, 70 the machine's fault."""
    arguments = sys.argv[1:] if arguments is None else arguments
    flags = {argument for argument in arguments if argument.startswith("--")}
    folders = [argument for argument in arguments if not argument.startswith("--")]
    if flags == {"--serve"} and not folders:
        from drupe.core.warm_worker import serve

        return serve()
    if len(folders) == 1 and flags <= {"--exclusive", "--locked", "--leash", "--heartbeat"}:
        if "--heartbeat" in flags:
            _watch_heartbeat(Path(folders[0]))
        if "--leash" in flags:
            _leash()
        return _run_one(Path(folders[0]), exclusive="--exclusive" in flags, locked="--locked" in flags)
    usage = "usage: python -m drupe.core.worker JOB [--exclusive] [--locked] [--leash] [--heartbeat] | --serve"
    print(usage, file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main())
