"""The base of hosts that reach an agent through a command: connections, one a running job, kept for the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drupe.core.errors import Fault, HostError
from drupe.core.hosts import Events, Host, HostDescription, JobOptions
from drupe.hosts.config import WorkerConfig, with_config
from drupe.hosts.connection import Connection
from drupe.hosts.site import options_to_json
from drupe.hosts.slots import Slots
from drupe.hosts.transfer import run_through
from drupe.hosts.watching import Watch

__all__ = ["RemoteHost", "remote_faults"]


class RemoteHost(Host):
    """A host behind a command that leads to `python -m drupe.hosts.agent`. Subclasses say which command."""

    def __init__(self, spec: Any, config: WorkerConfig, *, state_dir: Path) -> None:
        super().__init__(spec, config, state_dir=state_dir)
        self._slots = Slots(config.slots)
        self._free: list[Connection] = []
        self._lock = threading.Lock()
        self._description: HostDescription | None = None

    def command(self) -> Sequence[str]:
        """Return the command whose stdin and stdout lead to an agent."""
        raise NotImplementedError

    def explain(self, said: str, code: int | None) -> tuple[str, bool]:
        """Say why the command ended: the message, and whether another try is worth it."""
        raise NotImplementedError

    def check(self) -> Sequence[Fault]:
        """Return what keeps jobs from running there."""
        try:
            description = self.describe()
        except HostError as error:
            return (Fault("", str(error), kind="needs"),)
        wanted = self.config.resources.gpus if self.config.resources else None
        return remote_faults(description, wanted)

    def describe(self) -> HostDescription:
        """Describe the machine; asked once a run. Raises HostError."""
        if self._description is None:
            with self._connection() as connection:
                facts = dict(connection.facts)
            facts.pop("free", None)
            self._description = HostDescription(**facts, slots=self.config.slots or 1)
        return self._description

    def run(self, job: Path, options: JobOptions, events: Events, cancelled: Callable[[], bool]) -> Mapping[str, Any]:
        """Run a job; see Host.run."""
        options = with_config(options, self.config)
        plain = options_to_json(options, self.config.environment, self.config.launcher_processes)
        with self._slots.take(cancelled), self._connection() as connection:
            watch = Watch(job, cancelled, options.timeout)
            return run_through(connection, job, plain, events, lambda stop: watch.look(stop, connection.kill))

    def close(self) -> None:
        """End the agents."""
        with self._lock:
            connections, self._free = self._free, []
        for connection in connections:
            connection.close()

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with self._lock:
            connection = self._free.pop() if self._free else None
        if connection is not None and not connection.alive:
            connection.kill()
            connection = None
        if connection is None:
            connection = Connection(self.command(), self.config.environment, self.explain)
        try:
            yield connection
        except BaseException:
            # What state it is in nobody knows.
            connection.kill()
            raise
        with self._lock:
            self._free.append(connection)


def remote_faults(description: HostDescription, gpus: float | None) -> list[Fault]:
    """Return what is wrong with a machine that answers: another drupe, too few GPUs."""
    import drupe

    faults = []
    if description.drupe != drupe.__version__:
        found = f"drupe {description.drupe or '(none)'} is installed there"
        faults.append(Fault("", found, f"drupe {drupe.__version__} as here", "install the same version", "needs"))
    count = sum(1 for device in description.devices if device.get("device") == "gpu")
    if gpus and gpus > count:
        faults.append(Fault("resources.gpus", f"{gpus:g} asked for; the machine has {count or 'none'}", kind="needs"))
    return faults
