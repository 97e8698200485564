"""The base class of hosts: places where jobs run.

A job is a folder. A host stages it, runs `python -m drupe.core.worker FOLDER` there, streams its log and events, brings
back `result.json` and `outputs/`, describes itself, and can cancel. A failing pass is the job's result; a failing host
raises HostError, which the engine retries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from drupe.core.config import PluginConfig
from drupe.core.context import Resources
from drupe.core.errors import Fault

if TYPE_CHECKING:
    from drupe.core.specs import HostSpec

__all__ = ["OTHER_INTERPRETER", "Events", "Host", "HostConfig", "HostDescription", "JobOptions"]

OTHER_INTERPRETER = "DRUPE_OTHER_INTERPRETER"
"""The variable by which a host that measures through a runtime of its own (HostSpec.runtime) tells that runtime in
which Python to open models, where it is not the worker's: JSON {"python": path, "environment": variables}."""

Events = Callable[[Mapping[str, Any]], None]
"""Called with {"event": "progress" | "log" | "state", …} while a job runs, from any thread."""


@dataclass(frozen=True)
class HostDescription:
    """What a host is. versions: distribution → version, as installed there. devices: [{"device": "cpu", "name": …,
    "cores": …}, …]. slots: how many jobs it runs at once. machine: a digest of what timings depend on. environment: one
    that the workflow names, with its version, where others may change what the name means; it enters keys."""

    versions: Mapping[str, str]
    devices: Sequence[Mapping[str, Any]] = ()
    slots: int = 1
    python: str = ""
    drupe: str = ""
    machine: str = ""
    plugins: Mapping[str, str] = field(default_factory=dict)
    environment: str = ""


@dataclass(frozen=True)
class JobOptions:
    """How to run a job. timeout in seconds; exclusive: a timed job, alone on its machine (or device); launcher: None,
    "accelerate" or "torchrun", put before a job of at least `launched_from` processes."""

    resources: Resources = field(default_factory=Resources)
    env: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    exclusive: bool = False
    launcher: str | None = None
    launched_from: int = 1


class HostConfig(PluginConfig):
    """Base of host configs (a workflow's `systems` entries, less type and accelerators)."""


class Host:
    """A place where jobs run. Safe to call from several threads, up to `describe().slots` jobs at once."""

    Config: ClassVar[type[HostConfig]] = HostConfig
    one_machine: ClassVar[bool] = True
    """Whether all jobs share one machine's cores, as opposed to a cluster, which gives each job its own."""
    light: ClassVar[bool] = False
    """Whether `describe` takes no connection and no time, so that a plan may ask."""

    def __init__(self, spec: HostSpec, config: Any, *, state_dir: Path) -> None:
        """state_dir: a folder of this machine where the host may keep what outlives a run (environments, ids)."""
        self.spec = spec
        self.config = config
        self.state_dir = state_dir

    def check(self) -> Sequence[Fault]:
        """Return what keeps jobs from running here: unreachable, wrong key, no space, another version, no device."""
        return ()

    def describe(self) -> HostDescription:
        """Describe the host; cached. Raises HostError when it can't be reached."""
        raise NotImplementedError

    def run(self, job: Path, options: JobOptions, events: Events, cancelled: Callable[[], bool]) -> Mapping[str, Any]:
        """Run a staged job folder and return its result.json as data, outputs being in `job/outputs`.

        Blocks. Asks `cancelled` at least every half second and then stops the job and raises Interrupted. Raises
        HostError (worker died, unreachable, timed out) with the last lines of the log.
        """
        raise NotImplementedError

    def use_environment(self, environment: str) -> None:
        """Run jobs in what `describe().environment` named in the run that this process belongs to.

        Called before anything else, in a process that joins a run or verifies it: the name that the workflow has may
        mean another environment by now. A host whose environments can't be changed under their names does nothing.
        """

    def close(self) -> None:
        """Stop what runs for this host."""
