"""The board as a host: jobs are put there, run there, and brought back, all through the board's own command."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from drupe import Fault, Host, HostConfig, HostDescription, HostError, HostSpec, Interrupted, JobOptions
from pydantic import Field

__all__ = ["AcmeBoard"]

Events = Callable[[Mapping[str, Any]], None]

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 30
_WORKER_FAILED = 70


class BoardConfig(HostConfig):
    """Which board, and how it is reached."""

    board: str | None = Field(
        None, description="The board's address, as the command takes it (here: a folder); default: a simulated board."
    )
    command: list[str] = Field(["acme-board"], min_length=1, description="The command that reaches boards.")
    timeout: float | None = Field(None, gt=0, description="Seconds after which a job is ended.")


class AcmeBoard(Host):
    """One job at a time. Timings are the device's own, so the way to the board is in none of them."""

    Config = BoardConfig

    def __init__(self, spec: HostSpec, config: BoardConfig, *, state_dir: Path) -> None:
        super().__init__(spec, config, state_dir=state_dir)
        if config.board is None:
            (state_dir / "board").mkdir(parents=True, exist_ok=True)
        command = [_located(config.command[0]), *config.command[1:]]
        self._reach = [*command, "--board", config.board or str(state_dir / "board")]
        self._described: HostDescription | None = None
        self._one_job = threading.Lock()

    def check(self) -> Sequence[Fault]:
        """See Host.check."""
        command = self.config.command[0]
        if shutil.which(_located(command)) is None:
            return [Fault("command", f"{command} is not on this machine", "the board's command", "install its package")]
        try:
            self.describe()
        except HostError as error:
            return [Fault("board", str(error), "a board that answers", kind="needs")]
        return ()

    def describe(self) -> HostDescription:
        """See Host.describe. The machine that timings depend on is the board: its serial number, clock and table."""
        if self._described is None:
            info = json.loads(self._do("info"))
            timing = json.dumps([info["serial"], info["clock_mhz"], info["table"]])
            self._described = HostDescription(
                versions=info["versions"],
                devices=[{"device": "acme_npu", "name": info["name"], "cores": 1}],
                slots=1,
                python=info["python"],
                drupe=info["versions"].get("drupe", ""),
                machine=hashlib.sha256(timing.encode()).hexdigest()[:32],
            )
        return self._described

    def run(self, job: Path, options: JobOptions, events: Events, cancelled: Callable[[], bool]) -> Mapping[str, Any]:
        """See Host.run."""
        name = f"{job.name}-{uuid.uuid4().hex[:8]}"
        with self._one_job:
            if options.exclusive:
                (job / "exclusive").touch()
            self._do("put", str(job), name)
            try:
                code = self._run_there(name, options.timeout or self.config.timeout, events, cancelled)
                self._do("get", name, str(job))
            finally:
                self._do("remove", name)
        if cancelled() and not (job / "result.json").is_file():
            raise Interrupted("the job on the board was stopped before it had a result")
        return _result(job, code)

    def _run_there(self, name: str, timeout: float | None, events: Events, cancelled: Callable[[], bool]) -> int:
        deadline = time.monotonic() + timeout if timeout else None
        stop_by: float | None = None
        with self._started("run", name) as process:
            reader = threading.Thread(target=_forward, args=(process, events), daemon=True)
            reader.start()
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                now = time.monotonic()
                if stop_by is None and cancelled():
                    process.terminate()
                    stop_by = now + _GRACE_SECONDS
                if stop_by is not None and now > stop_by:
                    raise Interrupted("the job on the board did not stop by itself and was ended")
                if deadline is not None and now > deadline:
                    raise HostError(f"the job on the board ran longer than its {timeout:g} s and was ended")
            reader.join()
            return process.returncode

    @contextlib.contextmanager
    def _started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [*self._reach, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(2)
                process.kill()
            process.wait()

    def _do(self, *arguments: str) -> str:
        command = [*self._reach, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except OSError as error:
            raise HostError(f"{command[0]} can't be started: {error.strerror}") from error
        except subprocess.CalledProcessError as error:
            raise HostError(f"{' '.join(command[:4])} failed: {error.stderr.strip() or error.returncode}") from error
        return done.stdout


def _located(command: str) -> str:
    """Return where a command lies: on the PATH, or beside this Python, whose environment need not be activated."""
    return shutil.which(command) or shutil.which(command, path=str(Path(sys.executable).parent)) or command


def _forward(process: subprocess.Popen[str], events: Events) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        events(json.loads(line))


def _result(job: Path, code: int) -> Mapping[str, Any]:
    """Return result.json. Raises HostError with the log's end when the worker did not get as far."""
    log = job / "log.txt"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.is_file() else ""
    if code == _WORKER_FAILED and (job / "host_error.json").is_file():
        raise HostError(json.loads((job / "host_error.json").read_text())["message"], tail)
    if not (job / "result.json").is_file():
        raise HostError(f"the worker on the board ended with exit code {code} and without a result", tail)
    result: Mapping[str, Any] = json.loads((job / "result.json").read_text())
    return result
