"""Runs the commands of jobs in child processes, as a compute would."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Run"]

_GRACE_SECONDS = 5


class Run:
    """One job. status: as Azure ML words it. definition: the properties that it was submitted with."""

    def __init__(self, name: str, definition: dict[str, Any], log: Path) -> None:
        self.name = name
        self.definition = definition
        self.log = log
        self.status = "NotStarted"
        self.error: dict[str, Any] | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0
        self._cancelled = threading.Event()

    def start(self, queue: Callable[[], bool], mount: Callable[[str], Path], env: Mapping[str, str]) -> None:
        """Run it in the background once `queue` lets it."""
        threading.Thread(target=self._run, args=(queue, mount, env), daemon=True).start()

    def fail(self, code: str, message: str) -> None:
        """End it before it runs."""
        self.error = {"error": {"code": code, "message": message}}
        self.status = "Failed"

    def cancel(self) -> None:
        """Ask it to end; killed after a while."""
        self._cancelled.set()
        if self.status not in ("Completed", "Failed", "Canceled"):
            self.status = "CancelRequested"
        process = self.process
        if process is not None and process.poll() is None:
            _signal(process, signal.SIGTERM)

            def later() -> None:
                time.sleep(_GRACE_SECONDS)
                _signal(process, signal.SIGKILL)

            threading.Thread(target=later, daemon=True).start()

    def kill(self) -> None:
        """End it as a node does that is gone."""
        if self.process is not None:
            _signal(self.process, signal.SIGKILL)

    def _run(self, queue: Callable[[], bool], mount: Callable[[str], Path], env: Mapping[str, str]) -> None:
        self.status = "Queued"
        while not queue():
            if self._cancelled.wait(0.05):
                self.status = "Canceled"
                return
        if self._cancelled.is_set():
            self.status = "Canceled"
            return
        places = {}
        for group in ("inputs", "outputs"):
            for name, value in (self.definition.get(group) or {}).items():
                if name != "default":
                    places[f"{group}.{name}"] = str(mount(value["uri"]) if "uri" in value else value["value"])
        command = re.sub(r"\$\{\{(\w+\.\w+)\}\}", lambda found: places[found[1]], self.definition["command"])
        self.log.parent.mkdir(parents=True, exist_ok=True)
        home = tempfile.mkdtemp(prefix="node-")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        variables = {"PATH": path, "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8", "AZUREML_RUN_ID": self.name}
        variables |= {name: os.environ[name] for name in ("PYTHONPATH", "DRUPE_LOCKS") if name in os.environ}
        given = dict(self.definition.get("environmentVariables") or {})
        if "PYTHONPATH" in given:
            given["PYTHONPATH"] = f"{given['PYTHONPATH']}:{variables.get('PYTHONPATH', '')}".rstrip(":")
        with self.log.open("ab") as log:
            self.started += 1
            self.process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=home,
                env={**variables, **env, **given},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            if self._cancelled.is_set():
                self.cancel()
            else:
                self.status = "Running"
            code = self.process.wait()
        _signal(self.process, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)
        if self._cancelled.is_set():
            self.status = "Canceled"
        elif code:
            message = f"Execution failed. User process '/bin/bash' exited with status code {code}."
            self.fail("UserError", message)
        else:
            self.status = "Completed"


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
