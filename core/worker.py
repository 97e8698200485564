"""The one command that a host runs: `python -m drupe.core.worker JOB`, or `--serve` for a warm worker.

`run_job` is the one implementation behind in-process, warm worker and remote hosts. A warm worker reads one JSON object
a line from stdin ({"job": folder, "exclusive": bool} or {"cancel": true}) and writes events a line to stdout, the last
one of a job being {"event": "ended"}. What user code prints goes to the job's log, never into the protocol.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from drupe.core.context import JobContext
from drupe.core.errors import DrupeError, HostError, Interrupted, StoreError
from drupe.core.job import SCHEMA, Job, write_json
from drupe.core.machine import machine_lock

__all__ = ["main", "run_job"]

Events = Callable[[Mapping[str, Any]], None]

_PROGRESS_SECONDS = 0.1
_EXIT = {"done": 0, "failed": 1, "interrupted": 130}


def run_job(
    folder: Path,
    events: Events = lambda event: None,
    cancelled: Callable[[], bool] = lambda: False,
    *,
    exclusive: bool = False,
) -> dict[str, Any]:
    """Do what `folder/job.json` says and return the result, which is also written to `folder/result.json`.

    A failure of the work is a result with status "failed". Raises HostError for what is this machine's fault: a full
    disk, no memory, a distribution that the job needs and that is absent.
    """
    job = Job.from_json(json.loads((folder / "job.json").read_text(encoding="utf-8")))
    _limit_threads(job.resources.thread_count)
    started = time.perf_counter()
    with _logging_to(folder / "log.txt") as log:
        context = _context(job, folder, log, events, cancelled)
        result: dict[str, Any] = {
            "schema": SCHEMA,
            "status": "done",
            "error": None,
            "model": None,
            "measurements": None,
        }
        try:
            _check_requirements(job)
            with machine_lock(exclusive, cancelled):
                started = time.perf_counter()
                _reset_peak_memory()
                from drupe.core.work import WORK

                result |= WORK[job.kind](job, folder, context)
        except Interrupted as error:
            result |= {"status": "interrupted", "error": _error(error)}
        except (HostError, StoreError):
            raise
        except MemoryError as error:
            raise HostError(f"{job.name}: out of memory on this machine", _tail(folder)) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreError(
                    f"{job.name}: {error.strerror}; make room below {folder} and run the same command again"
                ) from error
            log.exception("%s failed", job.name)
            result |= {"status": "failed", "error": _error(error)}
        except Exception as error:
            log.exception("%s failed", job.name)
            result |= {"status": "failed", "error": _error(error)}
        result |= {
            "report": context.report,
            "seconds": time.perf_counter() - started,
            "peak_memory": _peak_memory(),
            "versions": _versions_of_loaded(),
        }
        write_json(folder / "result.json", result)
    return result


def _error(error: BaseException) -> dict[str, str]:
    message = str(error) if isinstance(error, DrupeError) else f"{type(error).__name__}: {error}"
    return {
        "type": type(error).__name__,
        "message": message,
        "traceback": "".join(traceback.format_exception(error)),
    }


def _context(job: Job, folder: Path, log: logging.Logger, events: Events, cancelled: Callable[[], bool]) -> JobContext:
    outputs, checkpoint = folder / "outputs", folder / "checkpoint"
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
    )


def _limit_threads(count: int) -> None:
    """Tell numeric libraries, loaded and to be loaded, how many threads to use."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = str(count)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(count)


def _check_requirements(job: Job) -> None:
    for name, version in job.requires.items():
        try:
            here = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise HostError(f"{job.name} needs {name} {version}, which is not installed here; install it") from None
        if here != version:
            raise HostError(f"{job.name} needs {name} {version}; installed here is {here}; install the same version")


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


def _tail(folder: Path, lines: int = 20) -> str:
    try:
        return "\n".join((folder / "log.txt").read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def _reset_peak_memory() -> None:
    # Where the kernel has no such file the peak is the whole process's.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


_REPORTED = (
    "torch", "transformers", "peft", "onnx", "onnxruntime", "onnxruntime-genai", "bitsandbytes", "numpy", "datasets",
    "tokenizers", "safetensors", "onnxscript",
)  # fmt: skip


def _versions_of_loaded() -> dict[str, str]:
    """Return the versions of the frameworks that this process has imported."""
    found = {}
    for name in _REPORTED:
        if name.replace("-", "_") in sys.modules:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


class _Serving:
    """A warm worker: jobs one after the other, cancellation while one runs."""

    def __init__(self, commands: IO[str], protocol: IO[str]) -> None:
        self._protocol = protocol
        self._lock = threading.Lock()
        self._jobs: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
        self._cancel = threading.Event()
        threading.Thread(target=self._listen, args=(commands,), daemon=True).start()

    def _listen(self, commands: IO[str]) -> None:
        for line in commands:
            command = json.loads(line)
            if command.get("cancel"):
                self._cancel.set()
            else:
                self._jobs.put(command)
        # The driver is gone, perhaps by a kill: nobody waits for what runs, and the next driver starts it from its
        # checkpoint. An idle worker ends the same way.
        os._exit(0)

    def _say(self, event: Mapping[str, Any]) -> None:
        with self._lock:
            self._protocol.write(json.dumps(event) + "\n")
            self._protocol.flush()

    def run(self) -> int:
        self._say({"event": "ready", "pid": os.getpid()})
        while (command := self._jobs.get()) is not None:
            folder = Path(command["job"])
            self._cancel.clear()
            log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
            kept = dict(os.environ)
            os.environ.update(command.get("env", {}))
            end: dict[str, Any] = {"event": "ended"}
            try:
                run_job(folder, self._say, self._cancel.is_set, exclusive=command.get("exclusive", False))
            except (HostError, StoreError) as error:
                end |= {"host_error": str(error), "store": isinstance(error, StoreError)}
            except Exception as error:
                traceback.print_exc()
                end |= {"host_error": f"{type(error).__name__}: {error}"}
            # The next job must not see this one's variables.
            os.environ.clear()
            os.environ.update(kept)
            sys.stdout.flush()
            sys.stderr.flush()
            self._say(end)
        return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one job folder, or serve. Exit codes: 0 done, 1 failed, 130 interrupted, 70 this machine's fault."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--serve"]:
        protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
        commands = os.fdopen(os.dup(0), "r", encoding="utf-8")
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        return _Serving(commands, protocol).run()
    if len(arguments) != 1:
        print("usage: python -m drupe.core.worker JOB | --serve", file=sys.stderr)  # noqa: T201
        return 2
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    signal.signal(signal.SIGINT, lambda number, frame: stop.set())
    folder = Path(arguments[0])
    try:
        with (folder / "events.jsonl").open("a", encoding="utf-8") as events:

            def write(event: Mapping[str, Any]) -> None:
                events.write(json.dumps(event) + "\n")
                events.flush()

            exclusive = (folder / "exclusive").exists()
            return _EXIT[run_job(folder, write, stop.is_set, exclusive=exclusive)["status"]]
    except (HostError, StoreError) as error:
        write_json(folder / "host_error.json", {"schema": SCHEMA, "message": str(error)})
        print(error, file=sys.stderr)  # noqa: T201
        return 70


if __name__ == "__main__":
    sys.exit(main())
