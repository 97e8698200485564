"""Slurm: jobs on a cluster's nodes, submitted with sbatch from a machine that shares their file system.

The store (cache_dir) and the Python environment must lie on the shared file system. Nothing here needs accounting to be
set up: the controller's own memory of a job is asked, and the job's folder tells the rest.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field

from drupe.core.context import Resources
from drupe.core.digests import digest_of
from drupe.core.errors import Fault, HostError, Interrupted
from drupe.core.host_faults import CANCEL, forget_attempt, log_tail
from drupe.core.hosts import Events, Host, HostDescription, JobOptions
from drupe.core.job import Job, read_result
from drupe.hosts.config import WorkerConfig, with_config
from drupe.hosts.interpreter import interpreter_facts
from drupe.hosts.launch import launched, worker_command
from drupe.hosts.local import launched_environment
from drupe.hosts.oneshot import result_of
from drupe.hosts.slots import Slots
from drupe.hosts.watching import EventFile, Heartbeat, Watch

__all__ = ["Slurm", "SlurmConfig"]

_POLL_SECONDS = 0.2
_ASK_SECONDS = 1.0
_LAG_SECONDS = 30
"""A shared file system may show what a node wrote only after so long."""
_COMMAND_SECONDS = 60
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SUSPENDED")
_RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED")


class SlurmConfig(WorkerConfig):
    """Config of Slurm."""

    partition: str | None = Field(None, description="The partition; default: the cluster's.")
    account: str | None = Field(None, description="The account that is charged.")
    qos: str | None = Field(None, description="The quality of service.")
    time_limit: str | None = Field(None, description="The time limit as sbatch takes it: 30, 2:00:00, 1-0.")
    gpu_type: str | None = Field(None, description="The kind of GPU, as the cluster names it.")
    sbatch_options: list[str] = Field(default_factory=list, description="Further options for sbatch, as they are.")
    python: str = Field(sys.executable, description="The interpreter on the nodes; default: this one.")


class Slurm(Host):
    """A Slurm cluster."""

    Config = SlurmConfig
    one_machine = False

    def __init__(self, spec: Any, config: SlurmConfig, *, state_dir: Path) -> None:
        super().__init__(spec, config, state_dir=state_dir)
        self._slots = Slots(config.slots)

    def check(self) -> Sequence[Fault]:
        """Return what keeps jobs from running: no Slurm here, no controller, no such partition, another drupe."""
        try:
            partitions = _ask("sinfo", "--noheader", "--format=%R").split()
            wanted = self.config.partition
            if wanted is not None and wanted not in partitions:
                return (Fault("partition", f"{wanted!r} is not there", f"one of: {', '.join(partitions)}"),)
            description = self.describe()
        except HostError as error:
            return (Fault("", str(error), kind="needs"),)
        from drupe.hosts.remote import remote_faults

        return remote_faults(description, self.config.resources.gpus if self.config.resources else None)

    def describe(self) -> HostDescription:
        """Describe the partition's nodes; versions are those of the environment that they share with this machine."""
        facts = interpreter_facts(Path(self.config.python), self.state_dir, self.config.environment)
        nodes = _nodes(self.config.partition)
        devices = [{"device": "cpu", "name": nodes.features or "cluster node", "cores": nodes.cpus}]
        devices += [{"device": "gpu", "name": self.config.gpu_type or "GPU", "cores": 1}] * nodes.gpus
        return HostDescription(
            versions=facts["versions"],
            devices=devices,
            slots=self.config.slots or max(1, nodes.count),
            python=facts["python"],
            drupe=facts["versions"].get("drupe", ""),
            machine=digest_of([nodes.cpus, nodes.gpus, nodes.features, self.config.partition])[:32],
        )

    def run(self, job: Path, options: JobOptions, events: Events, cancelled: Callable[[], bool]) -> Mapping[str, Any]:
        """Run a job; see Host.run. Its time-out counts from when it starts."""
        options = with_config(options, self.config)
        with self._slots.take(cancelled):
            forget_attempt(job)
            heart = Heartbeat(job)
            number = self._submit(job, options)
            events({"event": "state", "state": "submitted", "id": number})
            try:
                return self._follow(number, job, options, events, cancelled, heart)
            except BaseException:
                # Nothing of it may go on: the job's folder is about to be removed.
                with suppress(HostError):
                    _ask("scancel", "--quiet", number)
                raise

    def _submit(self, job: Path, options: JobOptions) -> str:
        what = Job.from_json(_read_json(job / "job.json"))
        config, resources = self.config, options.resources
        self._refuse(what, resources)
        # Without this, % would begin a pattern in a file's name.
        log = str(job / "log.txt").replace("%", "%%")
        command = ["sbatch", "--parsable", "--no-requeue", "--open-mode=append", f"--output={log}", "--nodes=1"]
        command += ["--ntasks=1", f"--job-name=drupe-{what.name}"[:60], f"--cpus-per-task={resources.cpus}"]
        for name, value in (("partition", config.partition), ("account", config.account), ("qos", config.qos)):
            command += [f"--{name}={value}"] if value else []
        command += [f"--time={config.time_limit}"] if config.time_limit else []
        command += [f"--mem={max(1, resources.memory // 2**20)}M"] if resources.memory else []
        if resources.gpus:
            kind = f"{config.gpu_type}:" if config.gpu_type else ""
            command += [f"--gpus={kind}{max(1, int(resources.gpus))}"]
        command += ["--exclusive"] if options.exclusive else []
        worker = worker_command([config.python], job, options, processes=config.launcher_processes, tie="heartbeat")
        import shlex

        script = f"#!/bin/sh\nexec {shlex.join(worker)}\n"
        env = {**os.environ, **config.environment, **options.env}
        if launched(options, config.launcher_processes):
            env = launched_environment({**config.environment, **options.env}, ())
        return _ask(*command, *config.sbatch_options, script=script, env=env).strip().split(";")[0]

    def _refuse(self, job: Job, resources: Resources) -> None:
        """Raise HostError for what no node has: Slurm would let the job wait for ever."""
        nodes = _nodes(self.config.partition)
        for wanted, most, what in ((resources.cpus, nodes.cpus, "cores"), (resources.gpus, nodes.gpus, "GPUs")):
            if wanted > most:
                raise HostError(
                    f"{job.name} asks for {wanted:g} {what}, and no node of the partition has more than {most}",
                    retry=False,
                )

    def _follow(
        self,
        number: str,
        job: Path,
        options: JobOptions,
        events: Events,
        cancelled: Callable[[], bool],
        heart: Heartbeat,
    ) -> Mapping[str, Any]:
        follow = EventFile(job, events)
        watch: Watch | None = None
        asked = 0.0
        state = "PENDING"
        while True:
            follow.forward()
            heart.beat()
            if read_result(job) is not None and state not in _WAITING:
                return self._taken(number, result_of(job, state), job, watch)
            if time.monotonic() - asked > _ASK_SECONDS:
                asked = time.monotonic()
                before, state = state, _state(number)
                if state != before:
                    events({"event": "state", "state": state.lower(), "id": number})
            if state in _WAITING:
                if cancelled():
                    raise Interrupted("stopped while the job waited for its turn on the cluster")
            elif state in _RUNNING:
                watch = watch or Watch(job, cancelled, options.timeout)
                watch.look((job / CANCEL).touch, lambda: None)
            else:
                return self._taken(number, self._ended(number, state, job, follow), job, watch)
            time.sleep(_POLL_SECONDS)

    def _taken(self, number: str, result: Mapping[str, Any], job: Path, watch: Watch | None) -> Mapping[str, Any]:
        """Return the result, unless the cluster and not the user stopped the job: it goes on from its checkpoint."""
        if result["status"] == "interrupted" and not (watch and watch.stopping):
            raise HostError(
                f"the cluster stopped Slurm job {number} (preempted, cancelled, out of time)", log_tail(job)
            )
        return result

    def _ended(self, number: str, state: str, job: Path, follow: EventFile) -> Mapping[str, Any]:
        end = time.monotonic() + (_LAG_SECONDS if state in ("COMPLETED", "GONE") else 2)
        while time.monotonic() < end:
            # Listing a folder makes a shared file system look again.
            names = {path.name for path in job.iterdir()}
            if names & {"result.json", "host_error.json"}:
                break
            time.sleep(_POLL_SECONDS)
        follow.forward()
        try:
            return result_of(job, state)
        except HostError as error:
            if not error.retry or (job / "host_error.json").exists():
                raise
            raise HostError(f"Slurm job {number} ended as {state}", log_tail(job)) from None


class _Nodes:
    """What the nodes of a partition have, by the largest of them."""

    def __init__(self, count: int, cpus: int, gpus: int, features: str) -> None:
        self.count, self.cpus, self.gpus, self.features = count, cpus, gpus, features


def _nodes(partition: str | None) -> _Nodes:
    wanted = [f"--partition={partition}"] if partition else []
    lines = _ask("sinfo", "--noheader", "--Node", "--format=%N|%c|%G|%f|%R|%P", *wanted).splitlines()
    rows = [line.split("|") for line in lines]
    # A star marks the partition that is the default.
    rows = [row for row in rows if partition or row[5].strip().endswith("*")] or rows
    if not rows:
        raise HostError("the cluster has no node in that partition", retry=False)
    gpus = max(sum(int(n) for n in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", row[2])) for row in rows)
    features = sorted({row[3].strip() for row in rows if row[3].strip() != "(null)"})
    cpus = max(int(row[1].strip().rstrip("+")) for row in rows)
    return _Nodes(len({row[0] for row in rows}), cpus, gpus, ",".join(features))


def _state(number: str) -> str:
    """Return a job's state; GONE when the controller has forgotten it."""
    try:
        text = _ask("scontrol", "--oneliner", "show", "job", number)
    except HostError as error:
        if "Invalid job id" in str(error):
            return "GONE"
        raise
    found = re.search(r"\bJobState=(\w+)", text)
    return found.group(1) if found else "GONE"


def _ask(program: str, *arguments: str, script: str | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run one of Slurm's programs and return what it printed. Raises HostError."""
    if shutil.which(program) is None:
        raise HostError(f"{program} is not installed here; run Drupe where Slurm's programs are", retry=False)
    try:
        done = subprocess.run(
            [program, *arguments],
            input=script,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
            env=dict(env) if env is not None else None,
        )
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{program} did not answer within {_COMMAND_SECONDS} s; is the controller there?") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix(f"{program}: ")
        if "configuration source" in said or "Unable to contact slurm controller" in said:
            said += "; is a cluster set up here (slurm.conf, $SLURM_CONF), and does its controller run?"
        # What the cluster does not allow it will not allow the next time.
        refused = program == "sbatch" and "Unable to contact" not in said and "timed out" not in said
        raise HostError(f"{program}: {said}", retry=not refused)
    return done.stdout


def _read_json(path: Path) -> Mapping[str, Any]:
    import json

    data: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data
