"""One job of a workspace: submitted once under a name that its content gives, followed, cancelled, found again."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drupe.core.digests import digest_of
from drupe.core.errors import HostError, Interrupted
from drupe.core.hosts import Events
from drupe.hosts.azureml.client import Absent, Workspace
from drupe.hosts.azureml.config import AzureMLConfig
from drupe.hosts.azureml.log import LogFollower
from drupe.hosts.azureml.storage import Container

__all__ = ["CloudJobs", "Ended", "Order"]

_ACTIVE = ("NotStarted", "Starting", "Provisioning", "Preparing", "Queued", "Running", "Finalizing", "Paused")
_ENDED = ("Completed", "Failed", "Canceled", "NotResponding")
_RUNNING = ("Running", "Finalizing")
_NODE = "drupe.hosts.azureml.node"
_STEP_SECONDS = 0.2
_MOST_ATTEMPTS = 1000
_TAG = re.compile(r"[^\w .,:;/+=@-]")


@dataclass(frozen=True)
class Order:
    """What is to run. content: all that makes it this job and no other. what: the argument of the node's command,
    with {name} for the job's own name. display: how the studio lists it. prepare: called before it is submitted, with
    its name."""

    content: Any
    what: str
    display: str
    tags: Mapping[str, str]
    environment: str
    variables: Mapping[str, str]
    prepare: Callable[[str], None]


@dataclass(frozen=True)
class Ended:
    """How a job ended. status: as the service words it. error: what the service says of it."""

    name: str
    status: str
    error: str
    code: str


class CloudJobs:
    """The jobs of one system. waiting_dir: where the names of jobs lie that a driver waits for."""

    def __init__(self, workspace: Workspace, config: AzureMLConfig, datastore: str, waiting_dir: Path) -> None:
        self._workspace = workspace
        self._config = config
        self._datastore = datastore
        self._waiting = waiting_dir

    @contextmanager
    def started(self, order: Order, events: Events) -> Iterator[str]:
        """Submit the job, or find the one that an earlier driver left, and give its name.

        Ends the job when the caller raises. Raises HostError.
        """
        name, found = self._name(order)
        mark = self._waiting / name
        self._waiting.mkdir(parents=True, exist_ok=True)
        mark.touch()
        try:
            if found:
                events({"event": "state", "state": "found again", "id": name})
            else:
                order.prepare(name)
                self._submit(order, name)
                events({"event": "state", "state": "submitted", "id": name})
            try:
                yield name
            except BaseException:
                with suppress(HostError):
                    if self._status(name) in _ACTIVE:
                        self.cancel(name)
                raise
        finally:
            mark.unlink(missing_ok=True)

    def follow(
        self,
        name: str,
        log: LogFollower,
        events: Events,
        cancelled: Callable[[], bool],
        look: Callable[[], None],
    ) -> Ended:
        """Wait for a job's end, streaming its log. look: called twice a second and more while it runs.

        Raises HostError, Interrupted.
        """
        began, state, asked = time.monotonic(), "", -self._config.poll_seconds
        while True:
            if time.monotonic() - asked >= self._config.poll_seconds:
                asked = time.monotonic()
                before, state = state, self._status(name)
                if state != before:
                    events({"event": "state", "state": state.lower(), "id": name})
                if state in _ENDED:
                    code, error = log.finish(name)
                    return Ended(name, state, error, code)
                if state in _RUNNING:
                    log.forward(name)
            if state in _RUNNING or state == "CancelRequested":
                look()
            elif cancelled():
                raise Interrupted("stopped while the job waited for its turn in Azure ML")
            elif self._config.queue_timeout and time.monotonic() - began > self._config.queue_timeout:
                raise HostError(
                    f"the job {name} waited longer than queue_timeout ({self._config.queue_timeout:g} s) for "
                    f"{self._config.aml_compute}: it is {state.lower()}; are its nodes busy, or is the quota used up?",
                    retry=False,
                )
            time.sleep(_STEP_SECONDS)

    def cancel(self, name: str) -> None:
        """Ask the service to end a job. Raises HostError."""
        self._workspace.ask(f"cancelling the job {name}", lambda: self._workspace.client().jobs.begin_cancel(name))

    # Inside

    def _name(self, order: Order) -> tuple[str, bool]:
        """Return the name of the job, and whether it is there already.

        A job that still runs is that of a driver which is gone, or of another one: it is joined. One that has ended is
        taken only where a driver of this machine was killed while it waited for it.
        """
        base = f"drupe-{digest_of(order.content)[:24]}"
        for attempt in range(1, _MOST_ATTEMPTS):
            name = f"{base}-{attempt}"
            try:
                status = self._status(name)
            except Absent:
                return name, False
            if status in _ACTIVE or (status in ("Completed", "Failed") and (self._waiting / name).exists()):
                return name, True
        raise HostError(f"the job {base} was tried {_MOST_ATTEMPTS} times", retry=False)

    def _status(self, name: str) -> str:
        try:
            return str(
                _plain(
                    self._workspace.ask(
                        f"asking for the job {name}", lambda: self._workspace.client().jobs.get(name)
                    ).status
                )
            )
        except Absent:
            raise Absent(f"the job {name} is not in the workspace; was it deleted there?") from None

    def _submit(self, order: Order, name: str) -> None:
        from azure.ai.ml import Output, command
        from azure.ai.ml.entities import (
            JobResourceConfiguration,
            ManagedIdentityConfiguration,
            UserIdentityConfiguration,
        )

        config = self._config
        identity = {"managed": ManagedIdentityConfiguration, "user": UserIdentityConfiguration}
        attempt = name.rpartition("-")[2]
        tags = {**config.tags, **order.tags, "drupe.attempt": attempt}
        root = f"azureml://datastores/{self._datastore}/paths/{config.folder.strip('/')}/"
        job = command(
            name=name,
            display_name=order.display,
            experiment_name=config.experiment_name,
            tags={key: _TAG.sub("_", value)[:250] for key, value in tags.items()},
            command=f"{config.python} -m {_NODE} ${{{{outputs.drupe}}}} {order.what.format(name=name)}",
            outputs={"drupe": Output(type="uri_folder", path=root, mode="rw_mount")},
            environment=order.environment,
            environment_variables=dict(order.variables),
            compute=config.aml_compute,
            instance_type=config.node_type,
            identity=identity[config.identity]() if config.identity else None,
        )
        given = config.resources
        if given is not None and (given.shm_size or given.docker_args or given.properties):
            job.resources = JobResourceConfiguration(
                instance_type=config.node_type,
                shm_size=given.shm_size,
                docker_args=given.docker_args,
                properties=given.properties,
            )
        what = f"submitting {order.display} to {config.aml_compute}"
        self._workspace.ask(what, lambda: self._workspace.client().jobs.create_or_update(job))


def read_answer(container: Container, name: str) -> Mapping[str, Any] | None:
    """Return what a job's node wrote at its end, or None where it could not. Raises HostError."""
    data = container.read(name)
    if data is None:
        return None
    try:
        answer: Mapping[str, Any] = json.loads(data)
    except ValueError:
        return None  # Its node went while it wrote.
    return answer


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)
