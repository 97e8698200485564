"""Docker: each job in a container of its own, through the engine's API (Docker's, or Podman's).

The job's folder, its checkpoint and the files that it reads are mounted at the paths that they have here, so the engine
must run on this machine. The image needs Python with the same drupe, and `sh`. Containers are labelled and removed; one
whose driver is gone ends by itself.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field

from drupe.core.config import FileRef
from drupe.core.digests import digest_of
from drupe.core.errors import Fault, HostError
from drupe.core.host_faults import CANCEL, forget_attempt
from drupe.core.hosts import Events, Host, HostDescription, JobOptions
from drupe.core.job import Job
from drupe.core.job_files import job_paths
from drupe.core.machine import devices, fingerprint, gpu_names, lock_folder
from drupe.core.worker import LAUNCHED
from drupe.hosts.config import WorkerConfig, with_config
from drupe.hosts.interpreter import QUESTION
from drupe.hosts.launch import launched, worker_command
from drupe.hosts.oneshot import result_of
from drupe.hosts.remote import remote_faults
from drupe.hosts.slots import Gpus, Slots
from drupe.hosts.watching import EventFile, Heartbeat, Watch

__all__ = ["Docker", "DockerConfig"]

_POLL_SECONDS = 0.2
_ANSWER_SECONDS = 120
"""How long an image's interpreter may take to say what is installed."""
_LABEL = "drupe.job"
_ENDED = ("exited", "dead", "stopped")


class DockerConfig(WorkerConfig):
    """Config of Docker."""

    image_name: str = Field(description="The image, with its tag or digest.")
    build_context_path: FileRef | None = Field(None, description="The folder to build the image from if it's absent.")
    dockerfile: str = Field("Dockerfile", description="The file in it that says how.")
    url: str | None = Field(None, description="The engine: unix:///…; default: $DOCKER_HOST, else Docker's socket.")
    python: str = Field("python3", description="The interpreter in the image.")
    network: str = Field("none", description="The container's network: none, bridge, host, or a network's name.")
    volumes: list[str] = Field(default_factory=list, description="Further mounts: /here:/there or /here:/there:ro.")
    user: str | None = Field(None, description="The user in the container; default: the one that runs Drupe.")
    pull: bool = Field(False, description="Pull the image when it is not there.")
    run_params: dict[str, Any] = Field(
        default_factory=dict, description="Further options of the container, as the docker library names them."
    )


class Docker(Host):
    """A container engine on this machine."""

    Config = DockerConfig

    def __init__(self, spec: Any, config: DockerConfig, *, state_dir: Path) -> None:
        super().__init__(spec, config, state_dir=state_dir)
        self._slots = Slots(config.slots)
        self._gpus = Gpus(gpu_names())
        self._engine: Any = None
        self._description: HostDescription | None = None

    def check(self) -> Sequence[Fault]:
        """Return what keeps jobs from running: no engine, no image, no drupe in it, too few GPUs."""
        try:
            description = self.describe()
        except HostError as error:
            return (Fault("", str(error), kind="needs"),)
        return remote_faults(description, self.config.resources.gpus if self.config.resources else None)

    def describe(self) -> HostDescription:
        """Describe the image on this machine; an image is asked once."""
        if self._description is None:
            facts = self._facts(self._image())
            self._description = HostDescription(
                versions=facts["versions"],
                devices=devices(),
                slots=self.config.slots or 1,
                python=facts["python"],
                drupe=facts["versions"].get("drupe", ""),
                machine=fingerprint(),
            )
        return self._description

    def run(self, job: Path, options: JobOptions, events: Events, cancelled: Callable[[], bool]) -> Mapping[str, Any]:
        """Run a job; see Host.run."""
        options = with_config(options, self.config)
        with self._slots.take(cancelled), self._gpus.take(options.resources.gpus, cancelled) as gpus:
            forget_attempt(job)
            follow, heart = EventFile(job, events), Heartbeat(job)
            watch = Watch(job, cancelled, options.timeout)

            def look() -> None:
                follow.forward()
                heart.beat()
                watch.look((job / CANCEL).touch, lambda: None)

            state = self._ended(self._created(job, options, gpus), look)
            follow.forward()
            how = "out of memory" if state.get("OOMKilled") else f"exit code {state.get('ExitCode')}"
            return result_of(job, f"its container ended: {how}")

    def close(self) -> None:
        """Let go of the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    # Inside

    def _client(self) -> Any:
        if self._engine is None:
            docker = _docker()
            where = self.config.url or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
            if not where.startswith("unix://"):
                message = f"the container engine {where} is on another machine; name it as a system of type SSH"
                raise HostError(message, retry=False)
            try:
                self._engine = docker.DockerClient(base_url=where, timeout=120)
                self._engine.ping()
            except (docker.errors.DockerException, OSError) as error:
                self._engine = None
                file = where.removeprefix("unix://")
                reason = _short(error) if Path(file).exists() else f"there is no {file}"
                message = f"no container engine answers at {where}: {reason}; is it running, and may you use it?"
                raise HostError(message) from error
        return self._engine

    def _asked(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Return what the engine answers. Raises HostError."""
        docker = _docker()
        try:
            return call(*arguments, **options)
        except (docker.errors.DockerException, OSError) as error:
            raise HostError(f"the container engine refused: {_short(error)}") from error

    def _image(self) -> Any:
        docker = _docker()
        client, name = self._client(), self.config.image_name
        try:
            return client.images.get(name)
        except docker.errors.ImageNotFound:
            if self.config.build_context_path is None and not self.config.pull:
                message = f"the image {name} is not there; pull or build it, or set pull to true"
                raise HostError(message, retry=False) from None
        except (docker.errors.DockerException, OSError) as error:
            raise HostError(f"the container engine refused: {_short(error)}") from error
        if self.config.build_context_path is not None:
            folder = self.config.build_context_path
            built = self._asked(client.images.build, path=folder, dockerfile=self.config.dockerfile, tag=name)
            return built[0]
        return self._asked(client.images.pull, *_name_and_tag(name))

    def _facts(self, image: Any) -> Mapping[str, Any]:
        """Ask the image's interpreter what is installed; remembered by the image's id."""
        record = self.state_dir / f"facts-{digest_of([image.id, self.config.python, self.config.volumes])[:24]}.json"
        try:
            known: Mapping[str, Any] = json.loads(record.read_text(encoding="utf-8"))
            return known
        except (OSError, ValueError):
            pass  # Not asked yet.
        self.state_dir.mkdir(parents=True, exist_ok=True)
        # Into files: not every engine's logs are complete when the container has ended.
        answer, said = (self.state_dir / f"{name}-{os.getpid()}" for name in ("answer", "said"))
        script = 'answer=$1; said=$2; shift 2; "$@" >"$answer" 2>"$said"'
        command = ["sh", "-c", script, "sh", str(answer), str(said), self.config.python, "-c", QUESTION]
        options = self._options({str(self.state_dir): "rw"}, ())
        deadline = time.monotonic() + _ANSWER_SECONDS

        def look() -> None:
            if time.monotonic() > deadline:
                raise HostError(f"it gave no answer in {_ANSWER_SECONDS} s")

        try:
            said.touch()
            state = self._ended(self._asked(self._client().containers.create, image, command, **options), look)
            try:
                facts: Mapping[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                why = _last_line(said.read_text(encoding="utf-8", errors="replace"))
                raise HostError(why or f"exit code {state.get('ExitCode')}, and no answer") from None
            answer.replace(record)
        except (HostError, OSError) as error:
            message = f"{self.config.python} does not run in the image {self.config.image_name}: {_short(error)}"
            raise HostError(message, retry=False) from error
        finally:
            answer.unlink(missing_ok=True)
            said.unlink(missing_ok=True)
        return facts

    def _options(self, mounts: Mapping[str, str], gpus: tuple[str, ...]) -> dict[str, Any]:
        """Return what every container is created with. mounts: path → "rw" or "ro", the same there as here."""
        docker = _docker()
        volumes = [f"{path}:{path}:{mode}" for path, mode in mounts.items()] + self.config.volumes
        options: dict[str, Any] = {
            "volumes": volumes,
            "network_mode": self.config.network,
            "user": self.config.user or f"{os.getuid()}:{os.getgid()}",
            "environment": {"HOME": "/tmp", **self.config.environment},
        }
        if gpus:
            request = docker.types.DeviceRequest(device_ids=list(gpus), capabilities=[["gpu"]])
            options["device_requests"] = [request]
        return {**options, **self.config.run_params}

    def _created(self, job: Path, options: JobOptions, gpus: tuple[str, ...]) -> Any:
        what = Job.from_json(json.loads((job / "job.json").read_text(encoding="utf-8")))
        mounts = {str(job): "rw", str(job / "inputs"): "ro", str(lock_folder()): "rw"}
        checkpoint = (job / "checkpoint").resolve()
        if checkpoint.is_dir() and not checkpoint.is_relative_to(job):
            mounts[str(checkpoint)] = "rw"
        for path in job_paths(what):
            if path.exists():
                mounts.setdefault(str(path), "ro")
        created = self._options({path: mode for path, mode in mounts.items() if Path(path).exists()}, gpus)
        created["environment"] |= {**options.env, "DRUPE_LOCKS": str(lock_folder())}
        if launched(options, self.config.launcher_processes):
            created["environment"][LAUNCHED] = "1"
        if options.resources.memory:
            created["mem_limit"] = options.resources.memory
        worker = worker_command(
            [self.config.python], job, options, processes=self.config.launcher_processes, tie="heartbeat"
        )
        # The log is to be complete while the job runs, whatever writes to it; and a shell is the container's first
        # process, which the kernel spares signals that native code may end a worker by.
        command = ["sh", "-c", 'log=$1; shift; "$@" >>"$log" 2>&1; exit $?', "sh", str(job / "log.txt"), *worker]
        return self._asked(
            self._client().containers.create,
            self._image(),
            command,
            working_dir=str(job),
            labels={_LABEL: what.key},
            **created,
        )

    def _ended(self, container: Any, look: Callable[[], None]) -> Mapping[str, Any]:
        """Start a container, wait until it has ended, and remove it; return its state then.

        look: called while it runs; what it raises ends the container. The engine is asked again and again: to be told
        by it of an end that came at once may take as long as the client waits at all.
        """
        try:
            self._asked(container.start)
            while (state := self._state(container))["Status"] not in _ENDED:
                look()
                time.sleep(_POLL_SECONDS)
            return state
        finally:
            self._removed(container)

    def _state(self, container: Any) -> Mapping[str, Any]:
        for left in range(5, 0, -1):
            try:
                self._asked(container.reload)
                break
            except HostError:
                # An engine may stumble over a container that ends while it looks at it.
                if left == 1:
                    raise
                time.sleep(_POLL_SECONDS)
        state: Mapping[str, Any] = container.attrs["State"]
        return state

    def _removed(self, container: Any) -> None:
        with suppress(HostError):
            self._asked(container.remove, force=True)


def _docker() -> Any:
    """Return the library. Raises HostError where it is not installed."""
    try:
        import docker
    except ImportError as error:
        raise HostError("the library docker is not installed here; pip install 'drupe[docker]'", retry=False) from error
    return docker


def _name_and_tag(image: str) -> tuple[str, ...]:
    """Return the arguments of a pull: without a tag the engine would fetch every one there is."""
    last = image.rpartition("/")[2]
    return (image,) if ":" in last or "@" in last else (image, "latest")


def _short(error: Exception) -> str:
    return _last_line(str(getattr(error, "explanation", None) or error)) or type(error).__name__


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
