"""Follows the log of a job through the run history: events to whoever listens, text to the job's log."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from drupe.core.errors import HostError
from drupe.core.hosts import Events
from drupe.hosts.azureml.client import Absent, Workspace
from drupe.hosts.azureml.protocol import read_event

__all__ = ["LogFollower"]


class LogFollower:
    """The log of one job. target: gets the text."""

    def __init__(self, workspace: Workspace, target: Path, events: Events) -> None:
        self._workspace = workspace
        self._target = target
        self._events = events
        self._read = 0
        self._rest = b""

    def forward(self, name: str) -> None:
        """Pass on what is new. A log that can't be read now is read the next time."""
        with suppress(HostError):
            self._take(self._details(name))

    def finish(self, name: str) -> tuple[str, str]:
        """Pass on the rest and return code and message of the error that the service saw, both "" where there is none.

        Raises HostError.
        """
        details = self._details(name)
        with suppress(HostError):
            self._take(details)
        if self._rest:
            self._lines(self._rest)
            self._rest = b""
        error = getattr(details, "error", None)
        inner = getattr(error, "error", None) or error
        return str(getattr(inner, "code", "") or ""), str(getattr(inner, "message", "") or "")

    def _details(self, name: str) -> Any:
        # The public methods print the log, and only they; what they are made of gives the addresses.
        def look() -> Any:
            return self._workspace.client().jobs._runs_operations.get_run_details(name)

        return self._workspace.ask(f"asking for the log of {name}", look)

    def _take(self, details: Any) -> None:
        files = {key: url for key, url in (details.log_files or {}).items() if key.startswith("user_logs/")}
        if not files:
            return
        url = files[min(files)]

        def fetch() -> bytes:
            from azure.core.exceptions import HttpResponseError
            from azure.storage.blob import BlobClient

            with BlobClient.from_blob_url(url, retry_total=1, initial_backoff=1) as client:
                try:
                    return bytes(client.download_blob(offset=self._read, max_concurrency=1).readall())
                except HttpResponseError as error:
                    if error.status_code == 416:  # Nothing new.
                        return b""
                    raise

        try:
            data = self._workspace.ask("reading a job's log", fetch, once=True)
        except Absent:
            return
        self._read += len(data)
        whole, end, rest = (self._rest + data).rpartition(b"\n")
        self._rest = rest
        self._lines(whole + end)

    def _lines(self, data: bytes) -> None:
        text = []
        for line in data.decode("utf-8", errors="replace").splitlines():
            event = read_event(line)
            if event is None:
                text.append(line)
            else:
                self._events(event)
        if text:
            with self._target.open("a", encoding="utf-8") as log:
                log.write("\n".join(text) + "\n")
