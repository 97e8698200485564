"""Azure ML: each job of Drupe is a command job on a compute of a workspace.

Files lie in a datastore under their digests, so that each goes up once, whichever step or run wants it, and what one
step made is there for the next. Versions of what is installed come from a job of their own, once an environment.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drupe.core.digests import digest_of
from drupe.core.errors import Fault, HostError, Interrupted
from drupe.core.host_faults import fault_error, forget_attempt, log_tail
from drupe.core.hosts import Events, Host, HostDescription, JobOptions
from drupe.core.job import Job, write_json
from drupe.core.job_files import job_files
from drupe.hosts.azureml.checks import faults
from drupe.hosts.azureml.client import ClientConfig, Workspace
from drupe.hosts.azureml.config import AzureMLConfig
from drupe.hosts.azureml.environment import JobEnvironment
from drupe.hosts.azureml.job import CloudJobs, Ended, Order, read_answer
from drupe.hosts.azureml.log import LogFollower
from drupe.hosts.azureml.protocol import SCHEMA, blob_name
from drupe.hosts.azureml.storage import Container, open_datastore
from drupe.hosts.config import with_config
from drupe.hosts.site import options_to_json
from drupe.hosts.slots import Slots
from drupe.hosts.transfer import receive
from drupe.hosts.watching import Watch

__all__ = ["AzureML"]


class AzureML(Host):
    """A compute of an Azure ML workspace."""

    Config = AzureMLConfig
    one_machine = False

    def __init__(self, spec: Any, config: AzureMLConfig, *, state_dir: Path) -> None:
        super().__init__(spec, config, state_dir=state_dir)
        self._workspace = Workspace(config.azureml_client or ClientConfig(), Path())
        self._environment = JobEnvironment(self._workspace, config.aml_docker_config, config.aml_environment_config)
        self._slots = Slots(config.slots)
        self._lock = threading.RLock()
        self._opened: tuple[Container, str, str] | None = None
        self._description: HostDescription | None = None
        self._there: set[str] = set()

    def check(self) -> Sequence[Fault]:
        """Return what keeps jobs from running: credentials, workspace, compute, environment, datastore, key vault."""
        return faults(self._workspace, self.config, self._environment)

    def use_environment(self, environment: str) -> None:
        """See Host.use_environment."""
        self._environment.use(environment)

    def describe(self) -> HostDescription:
        """Describe a node. An environment on a compute is looked at once, by a job of its own, from any machine."""
        with self._lock:
            if self._description is None:
                found = dict(self._facts())
                found.pop("schema")
                named = self._environment.named() or ""
                slots = self.config.slots or self._nodes()
                self._description = HostDescription(**found, slots=slots, environment=named)
            return self._description

    def run(self, job: Path, options: JobOptions, events: Events, cancelled: Callable[[], bool]) -> Mapping[str, Any]:
        """Run a job; see Host.run. Its time-out counts from when it starts."""
        options = with_config(options, self.config)
        with self._slots.take(cancelled):
            forget_attempt(job)
            container, environment, datastore = self._open()
            order = self._order(job, options, container, environment, events, cancelled)
            jobs = CloudJobs(self._workspace, self.config, datastore, self.state_dir / "waiting")
            with jobs.started(order, events) as name:
                watching: list[Watch] = []

                def look() -> None:
                    if not watching:
                        watching.append(Watch(job, cancelled, options.timeout))
                    watching[0].look(lambda: jobs.cancel(name), lambda: jobs.cancel(name))

                log = LogFollower(self._workspace, job / "log.txt", events)
                ended = jobs.follow(name, log, events, cancelled, look)
                return self._result(container, ended, job, cancelled)

    # Inside

    def _open(self) -> tuple[Container, str, str]:
        """Return the datastore's container, the environment, and the datastore's name. Raises HostError."""
        with self._lock:
            if self._opened is None:
                store = open_datastore(self._workspace, self.config.datastore)
                if not isinstance(store, Container):
                    message = f"{store.where} is a file share; jobs need a blob container or Data Lake Gen2"
                    raise HostError(message, retry=False)
                self._opened = store, self._environment.id(), store.name
            return self._opened

    def _at(self, name: str) -> str:
        return f"{self.config.folder.strip('/')}/{name}"

    def _order(
        self,
        job: Path,
        options: JobOptions,
        container: Container,
        environment: str,
        events: Events,
        cancelled: Callable[[], bool],
    ) -> Order:
        data = json.loads((job / "job.json").read_text(encoding="utf-8"))
        what = Job.from_json(data)
        files = job_files(what)
        here = {path_digest: Path(path) for path, path_digest in files.items()}
        for role, model in what.inputs.items():
            here |= {digest: job / "inputs" / role / name for name, digest in model.files.items()}
        request = {
            "schema": SCHEMA,
            "job": data,
            "files": files,
            "needs": sorted(here),
            # Variables of the system are the job's own; these are the caller's.
            "options": options_to_json(options, {}, self.config.launcher_processes),
            "token_from": self._token_from(),
        }

        def prepare(name: str) -> None:
            self._send(here, container, events, cancelled)
            container.put_bytes(self._at(f"jobs/{name}/request.json"), json.dumps(request, ensure_ascii=False).encode())

        tags = {"drupe.workflow": Path(what.workflow_dir or "").name, "drupe.step": what.name, "drupe.key": what.key}
        return Order(
            content=[request, environment, self._place()],
            what="jobs/{name}",
            display=f"{what.name} ({what.subject})" if what.subject else what.name,
            tags=tags | {"drupe.kind": what.kind},
            environment=environment,
            variables=self.config.environment,
            prepare=prepare,
        )

    def _place(self) -> list[Any]:
        config, name = self.config, self._workspace.name
        return [
            name.model_dump(),
            config.aml_compute,
            config.node_type,
            config.identity,
            config.folder,
            config.python,
        ]

    def _token_from(self) -> dict[str, Any] | None:
        """Return where a node finds the hub's token; never the token."""
        if not self.config.hf_token:
            return None
        client = self._workspace.config
        if not client.keyvault_name:
            raise HostError("hf_token needs azureml_client.keyvault_name", retry=False)
        auth = client.default_auth_params
        return {"vault": client.keyvault_name, "name": self.config.hf_token_secret, "auth": auth}

    def _send(
        self, here: Mapping[str, Path], container: Container, events: Events, cancelled: Callable[[], bool]
    ) -> None:
        for digest, path in sorted(here.items()):
            if digest in self._there:
                continue
            if cancelled():
                raise Interrupted("stopped while files were sent")
            size = path.stat().st_size
            found = container.find(self._at(blob_name(digest)))
            if found is None or found.size != size:
                events({"event": "state", "state": "sending", "bytes": size})
                container.put(self._at(blob_name(digest)), path)
            self._there.add(digest)

    def _result(
        self, container: Container, ended: Ended, job: Path, cancelled: Callable[[], bool]
    ) -> Mapping[str, Any]:
        answer = read_answer(container, self._at(f"jobs/{ended.name}/answer.json"))
        if answer is not None and "result" in answer:
            result: Mapping[str, Any] = answer["result"]
            if result["status"] == "interrupted" and not cancelled():
                raise _no_answer(ended, log_tail(job))
            for name, digest in answer["made"].items():
                self._fetch(container, digest, job / "outputs" / name)
            write_json(job / "result.json", result, durable=False)
            return result
        if cancelled():
            raise Interrupted("the job was stopped")
        if answer is not None:
            for digest in answer.get("damaged", ()):
                container.remove(self._at(blob_name(digest)))
                self._there.discard(digest)
            raise fault_error(answer["fault"])
        raise _no_answer(ended, log_tail(job))

    def _fetch(self, container: Container, digest: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)

        def fetch() -> None:
            receive(container.get(self._at(blob_name(digest))), digest, target)

        self._workspace.ask(f"fetching {target.name} from {container.where}", fetch)
        self._there.add(digest)

    # What is installed

    def _nodes(self) -> int:
        name = self.config.aml_compute
        found = self._workspace.ask(
            f"looking for the compute {name}", lambda: self._workspace.client().compute.get(name)
        )
        return int(getattr(found, "max_instances", None) or 1)

    def _facts(self) -> Mapping[str, Any]:
        container, environment, datastore = self._open()
        name = digest_of([environment, self._place(), dict(self.config.environment)])[:32]
        known = read_answer(container, self._at(f"facts/{name}.json"))
        if known is None:
            order = Order(
                content=["facts", name],
                what=f"facts/{name}",
                display="what is installed",
                tags={"drupe.kind": "facts"},
                environment=environment,
                variables=self.config.environment,
                prepare=lambda name: None,
            )
            jobs = CloudJobs(self._workspace, self.config, datastore, self.state_dir / "waiting")
            self.state_dir.mkdir(parents=True, exist_ok=True)
            log = self.state_dir / f"facts-{name}.txt"
            log.unlink(missing_ok=True)
            with jobs.started(order, _quiet) as job:
                ended = jobs.follow(job, LogFollower(self._workspace, log, _quiet), _quiet, _never, lambda: None)
            known = read_answer(container, self._at(f"facts/{name}.json"))
            if known is None:
                said = log.read_text(encoding="utf-8") if log.exists() else ""
                if "No module named" in said:
                    message = f"drupe is not in the environment {environment}; add drupe[azure] to its pip lines"
                    raise HostError(message, said[-2000:], retry=False)
                raise _no_answer(ended, said[-2000:])
            log.unlink(missing_ok=True)
        return known


def _no_answer(ended: Ended, tail: str) -> HostError:
    """Say why a job ended without an answer of its node."""
    what = f"the job {ended.name}"
    code, said = ended.code.lower(), ended.error.splitlines()[0] if ended.error else ""
    if ended.status == "Canceled":
        return HostError(f"{what} was cancelled in Azure ML; run the same command again to go on", tail, retry=False)
    if "quota" in code or "quota" in said.lower():
        return HostError(f"{what} got no node: {said}; ask for more quota, or name another compute", tail, retry=False)
    if "image" in code or "environment" in code or "image build" in said.lower():
        return HostError(f"{what} got no environment: {said}; see its image build log in the studio", tail, retry=False)
    if "137" in said:
        return HostError(f"{what}: its process was killed, most likely out of memory", tail)
    return HostError(f"{what} ended as {ended.status.lower()} without a result{': ' + said if said else ''}", tail)


def _quiet(event: Mapping[str, Any]) -> None:
    return None


def _never() -> bool:
    return False
