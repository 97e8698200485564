"""Ray: jobs on the nodes of a Ray cluster, an existing one by its address or one that is started on this machine.

A job runs in an actor that holds what it asks for: cores, GPUs (or a part of one), custom resources such as
`npu: 1`. A timed job asks for all cores of a node, so that it is alone there. Nodes need no shared file system.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from drupe.core.errors import Fault, HostError, Interrupted, StoreError
from drupe.core.host_faults import fault_error
from drupe.core.hosts import Events, Host, HostDescription, JobOptions
from drupe.hosts.config import WorkerConfig, with_config
from drupe.hosts.remote import remote_faults
from drupe.hosts.site import options_to_json
from drupe.hosts.slots import Slots
from drupe.hosts.transfer import receive, run_through
from drupe.hosts.watching import Watch

__all__ = ["Ray", "RayConfig"]

_CHUNK = 16 * 2**20
_POLL_SECONDS = 0.25
_IDLE_SECONDS = 30
_ANSWER_SECONDS = 300
_CONNECT_SECONDS = 15

Shape = tuple[float, float, bool]
"""Cores, GPUs, and whether a node is to be held whole: what an actor is made for."""


class RayConfig(WorkerConfig):
    """Config of Ray."""

    address: str | None = Field(
        None, description="An existing cluster: host:port, or auto; default: start one on this machine."
    )
    custom_resources: dict[str, float] = Field(
        default_factory=dict, description="What a job needs besides cores and GPUs, as the nodes declare it."
    )
    runtime_env: dict[str, Any] = Field(
        default_factory=dict, description="The environment of the jobs, as Ray takes it (pip, env_vars, …)."
    )
    folder: str = Field("~/.cache/drupe/site", description="The folder on the nodes for files and jobs.")


class Ray(Host):
    """A Ray cluster."""

    Config = RayConfig
    one_machine = False

    def __init__(self, spec: Any, config: RayConfig, *, state_dir: Path) -> None:
        super().__init__(spec, config, state_dir=state_dir)
        self._slots = Slots(config.slots)
        self._lock = threading.Lock()
        self._idle: list[tuple[Shape, Any, float]] = []
        self._description: HostDescription | None = None
        self._ours = False

    def check(self) -> Sequence[Fault]:
        """Return what keeps jobs from running: no Ray, no cluster, too few GPUs, a resource that no node declares."""
        try:
            ray = self._connected()
            total = ray.cluster_resources()
            faults = []
            for name, wanted in self.config.custom_resources.items():
                if total.get(name, 0) < wanted:
                    declared = ", ".join(n for n in total if not n.startswith(("node:", "memory", "object_store")))
                    where = f"custom_resources.{name}"
                    faults.append(Fault(where, f"the cluster has {total.get(name, 0):g}", f"{wanted:g}", declared))
            gpus = (self.config.resources.gpus if self.config.resources else None) or 0
            if gpus > total.get("GPU", 0):
                faults.append(Fault("resources.gpus", f"{gpus:g}; the cluster has {total.get('GPU', 0):g}"))
            return faults or remote_faults(self.describe(), None)
        except HostError as error:
            return (Fault("", str(error), kind="needs"),)

    def describe(self) -> HostDescription:
        """Describe a node that has what jobs ask for; asked once a run."""
        if self._description is None:
            ray = self._connected()
            with self._actor(self._shape(0, 0, False)) as actor:
                facts = dict(self._answer(actor.facts.remote()))
            facts.pop("free")
            nodes = self._nodes()
            gpus = int(max((node["Resources"].get("GPU", 0) for node in nodes), default=0))
            devices = [device for device in facts["devices"] if device["device"] != "gpu"]
            devices[0] = {**devices[0], "cores": int(max(node["Resources"].get("CPU", 1) for node in nodes))}
            facts["devices"] = devices + [{"device": "gpu", "name": "GPU", "cores": 1}] * gpus
            slots = self.config.slots or max(1, int(ray.cluster_resources().get("CPU", 1)))
            self._description = HostDescription(**facts, slots=slots)
        return self._description

    def run(self, job: Path, options: JobOptions, events: Events, cancelled: Callable[[], bool]) -> Mapping[str, Any]:
        """Run a job; see Host.run."""
        self._connected()
        options = with_config(options, self.config)
        resources = options.resources
        shape = self._shape(resources.cpus, resources.gpus, options.exclusive)
        plain = options_to_json(options, self._environment(), self.config.launcher_processes)
        with self._slots.take(cancelled), self._actor(shape, cancelled) as actor:
            watch = Watch(job, cancelled, options.timeout)
            link = _ActorLink(self, actor)
            return run_through(link, job, plain, events, lambda stop: watch.look(stop, lambda: self._kill(actor)))

    def close(self) -> None:
        """End the idle actors, and the cluster where it is ours."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, actor, _ in idle:
            self._kill(actor)
        if self._ours:
            _ray().shutdown()
            self._ours = False

    # Inside

    def _connected(self) -> Any:
        """Return ray, connected. Raises HostError."""
        ray = _ray()
        with self._lock:
            if not ray.is_initialized():
                where = self.config.address or "this machine"
                _reachable(where)
                try:
                    ray.init(
                        address=self.config.address or "local",
                        namespace="drupe",
                        log_to_driver=False,
                        include_dashboard=False if self.config.address is None else None,
                        configure_logging=False,
                    )
                except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
                    said = str(error).strip().splitlines()
                    raise HostError(f"Ray at {where} can't be reached: {said[0] if said else error!r}") from error
                self._ours = True
        return ray

    def _nodes(self) -> list[Any]:
        """Return the living nodes that declare the custom resources."""
        wanted = self.config.custom_resources
        nodes = [node for node in _ray().nodes() if node["Alive"]]
        fitting = [n for n in nodes if all(n["Resources"].get(name, 0) >= many for name, many in wanted.items())]
        if not fitting:
            raise HostError(f"no node of the cluster declares {', '.join(wanted)}" if wanted else "there are no nodes")
        return fitting

    def _shape(self, cpus: float, gpus: float, whole: bool) -> Shape:
        """Return what an actor asks for; whole: all cores of a node. Raises HostError for what no node has."""
        nodes = self._nodes()
        for name, wanted in (("CPU", cpus), ("GPU", gpus)):
            most = max(node["Resources"].get(name, 0) for node in nodes)
            if wanted > most:
                raise HostError(f"the job asks for {wanted:g} {name}s; no node has more than {most:g}", retry=False)
        if whole:
            able = [node["Resources"].get("CPU", 0) for node in nodes if node["Resources"].get("GPU", 0) >= gpus]
            cpus = max(able)
        return (float(cpus), float(gpus), whole)

    @contextmanager
    def _actor(self, shape: Shape, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Any]:
        actor = self._taken(shape) or self._started(shape, cancelled)
        try:
            yield actor
        except BaseException:
            self._kill(actor)
            raise
        with self._lock:
            self._idle.append((shape, actor, time.monotonic()))
        timer = threading.Timer(_IDLE_SECONDS + 1, self._drop_idle)
        timer.daemon = True
        timer.start()

    def _taken(self, shape: Shape) -> Any:
        """Return an idle actor of that shape; others let go of what they hold, which may be what is missing."""
        with self._lock:
            same = [item for item in self._idle if item[0] == shape]
            others = [item for item in self._idle if item[0] != shape]
            self._idle = same[1:] if same else []
        if not same:
            for _, actor, _ in others:
                self._kill(actor)
            return None
        with self._lock:
            self._idle += others
        actor = same[0][1]
        try:
            self._answer(actor.missing.remote([]))
        except HostError:
            return None
        return actor

    def _environment(self) -> dict[str, str]:
        """Return the system's variables less those that its runtime_env sets: what is closer to the cluster wins."""
        closer = self.config.runtime_env.get("env_vars", {})
        return {name: value for name, value in self.config.environment.items() if name not in closer}

    def _started(self, shape: Shape, cancelled: Callable[[], bool]) -> Any:
        ray = _ray()
        from drupe.hosts.ray_actor import RaySite

        cpus, gpus, _ = shape
        env = self._environment()
        runtime = dict(self.config.runtime_env)
        runtime["env_vars"] = {**env, **runtime.get("env_vars", {})}
        actor = (
            ray.remote(RaySite)
            .options(
                num_cpus=cpus,
                num_gpus=gpus,
                resources=self.config.custom_resources or None,
                max_concurrency=8,
                runtime_env=runtime,
            )
            .remote(self.config.folder, env)
        )
        # Until there is room for it, the cluster lets it wait; another thread's job may be done sooner.
        waiting = actor.missing.remote([])
        while not ray.wait([waiting], timeout=_POLL_SECONDS)[0]:
            if cancelled():
                self._kill(actor)
                raise Interrupted("stopped while the job waited for room on the cluster")
            if (free := self._taken(shape)) is not None:
                self._kill(actor)
                return free
        try:
            self._answer(waiting)
        except HostError:
            self._kill(actor)
            raise
        return actor

    def _drop_idle(self) -> None:
        with self._lock:
            now = time.monotonic()
            old = [item for item in self._idle if now - item[2] > _IDLE_SECONDS]
            self._idle = [item for item in self._idle if item not in old]
        for _, actor, _ in old:
            self._kill(actor)

    def _kill(self, actor: Any) -> None:
        # Ray may be gone already, and the actor with it.
        with suppress(Exception):
            _ray().kill(actor)

    def _answer(self, reference: Any) -> Any:
        """Return what a call gave. Raises HostError when the node, its actor or its disk failed."""
        ray = _ray()
        try:
            return ray.get(reference, timeout=_ANSWER_SECONDS)
        except ray.exceptions.GetTimeoutError as error:
            raise HostError(f"the node did not answer within {_ANSWER_SECONDS} s") from error
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise HostError(f"on the node: {cause}", retry=not isinstance(cause, StoreError)) from error
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise HostError(f"the runtime_env can't be set up: {_short(error)}", retry=False) from error
        except ray.exceptions.RayError as error:
            raise HostError(f"the node or its worker died: {_short(error)}") from error


class _ActorLink:
    """The way to an actor's Site; see Link."""

    def __init__(self, host: Ray, actor: Any) -> None:
        self._ask = host._answer
        self._actor = actor

    def missing(self, digests: Sequence[str]) -> tuple[list[str], int]:
        missing, free = self._ask(self._actor.missing.remote(list(digests)))
        return missing, free

    def put(self, digest: str, path: Path) -> None:
        left = path.stat().st_size
        with path.open("rb") as handle:
            while True:
                chunk = handle.read(_CHUNK)
                left -= len(chunk)
                self._ask(self._actor.put.remote(digest, chunk, left <= 0))
                if left <= 0:
                    return

    def run(
        self,
        job: Mapping[str, Any],
        files: Mapping[str, str],
        options: Mapping[str, Any],
        events: Events,
        log: IO[bytes],
        look: Callable[[Callable[[], None]], None],
    ) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        self._ask(self._actor.start.remote(dict(job), dict(files), dict(options)))
        try:
            while True:
                look(lambda: self._ask(self._actor.cancel.remote()))
                news = self._ask(self._actor.poll.remote(_POLL_SECONDS))
                log.write(news["log"])
                for event in news["events"]:
                    events(event)
                end = news["end"]
                if end is None:
                    continue
                if "fault" in end:
                    raise fault_error(end["fault"])
                return end["result"], end["made"]
        except HostError as error:
            if not error.log_tail:
                from drupe.core.host_faults import log_tail

                error.log_tail = log_tail(Path(log.name).parent)
            raise

    def get(self, digest: str, path: Path) -> None:
        receive(self._pieces(digest), digest, path)

    def finish(self) -> None:
        self._ask(self._actor.finish.remote())

    def _pieces(self, digest: str) -> Iterator[bytes]:
        offset = 0
        while chunk := self._ask(self._actor.get.remote(digest, offset, _CHUNK)):
            yield chunk
            offset += len(chunk)


def _reachable(address: str) -> None:
    """Raise HostError where nobody listens at host:port: Ray itself tries for minutes, and then ends the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise HostError(f"Ray at {address} can't be reached: {reason}; is the cluster's head there?") from error


def _ray() -> Any:
    """Return the library. Raises HostError where it is not installed."""
    # Ray reports its use to its makers unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A job without GPUs is to see none of those that its node has.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    try:
        import ray
    except ImportError as error:
        raise HostError("Ray is not installed here; pip install 'drupe[ray]'", retry=False) from error
    return ray


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
