"""A job: what a host stages and the worker reads and writes.

JOB/job.json        what to do (this module)
JOB/inputs/ROLE/    the input models' files, read-only, one folder a role ("model", "baseline", "reference")
JOB/outputs/        what the job makes
JOB/checkpoint/     survives retries; linked or copied by the host
JOB/events.jsonl    progress, one JSON object a line
JOB/log.txt         the log
JOB/result.json     written last, by rename
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from drupe.core.accelerators import Accelerator
from drupe.core.context import Resources
from drupe.core.errors import PluginError
from drupe.core.model import Model

__all__ = ["SCHEMA", "Job", "JobData", "check_json", "read_result", "write_json"]

SCHEMA = 1


@dataclass(frozen=True)
class JobData:
    """A data config as a job carries it. split: {"train": …, "selection": …, "certification": …, "seed": …} or {}."""

    type: str
    config: Mapping[str, Any]
    split: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {"type": self.type, "config": dict(self.config), "split": dict(self.split)}


@dataclass(frozen=True)
class Job:
    """What to do. kind says which of `drupe.core.work`'s functions does it.

    subject: the registered name of the pass or model kind (empty for "measure"). config: after defaults. requires: the
    distributions that the job needs where it runs, {name: version here}; drupe itself is among them. options: what is
    particular to the kind of job. plugins: the plugin policy. Secrets are never in it: they are read from the
    environment where the job runs.
    """

    kind: Literal["import", "pass", "measure", "look"]
    key: str
    name: str
    subject: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Model] = field(default_factory=dict)
    data: Mapping[str, JobData] = field(default_factory=dict)
    accelerator: Accelerator = field(default_factory=Accelerator)
    resources: Resources = field(default_factory=Resources)
    seed: int = 0
    allow: tuple[str, ...] = ()
    plugins: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, str] = field(default_factory=dict)
    workflow_dir: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data, schema included."""
        resources = self.resources
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "key": self.key,
            "name": self.name,
            "subject": self.subject,
            "config": dict(self.config),
            "inputs": {role: model.to_json() for role, model in self.inputs.items()},
            "data": {name: data.to_json() for name, data in self.data.items()},
            "accelerator": self.accelerator.to_json(),
            "resources": {
                "cpus": resources.cpus,
                "gpus": resources.gpus,
                "memory": resources.memory,
                "threads": resources.threads,
            },
            "seed": self.seed,
            "allow": sorted(self.allow),
            "plugins": dict(self.plugins),
            "requires": dict(self.requires),
            "workflow_dir": self.workflow_dir,
            "options": dict(self.options),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        """Build a job from what `to_json` gave. Raises ValueError for another schema."""
        if data.get("schema") != SCHEMA:
            raise ValueError(f"job.json has schema {data.get('schema')!r}; this drupe reads schema {SCHEMA}")
        return cls(
            kind=data["kind"],
            key=data["key"],
            name=data["name"],
            subject=data["subject"],
            config=data["config"],
            inputs={role: Model.from_json(model) for role, model in data["inputs"].items()},
            data={name: JobData(d["type"], d["config"], d.get("split", {})) for name, d in data["data"].items()},
            accelerator=Accelerator.from_json(data["accelerator"]),
            resources=Resources(**data["resources"]),
            seed=data["seed"],
            allow=tuple(data["allow"]),
            plugins=data["plugins"],
            requires=data["requires"],
            workflow_dir=data["workflow_dir"],
            options=data["options"],
        )


def check_json(what: str, told: dict[str, Any]) -> None:
    """Take out what JSON can't hold of what a plugin tells, by name. Raises PluginError naming it.

    what: what each is, for the message. What stays in `told` can be written.
    """
    faults = []
    for name, value in list(told.items()):
        try:
            json.dumps({name: value}, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            faults.append(f"{what} {name!r} can't be written as JSON: {error}")
            del told[name]
    if faults:
        expected = "expected finite numbers, texts, and lists and mappings of them"
        raise PluginError(f"{'; '.join(faults)}; {expected}")


def write_json(path: Path, data: Any, *, durable: bool = True) -> None:
    """Write JSON to a temporary file and rename it into place. Raises OSError.

    durable: sync it first, so that it outlives a power cut. Not worth its time for what lies in a job's folder.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as handle:
        json.dump(data, handle, ensure_ascii=False, allow_nan=False)
        if durable:
            handle.flush()
            os.fsync(handle.fileno())
    temporary.replace(path)


def read_result(job: Path) -> Mapping[str, Any] | None:
    """Return result.json of a job folder, or None when the job has not ended.

    Fields: schema; status "done" | "failed" | "interrupted"; error {"type", "message", "traceback"} or None; model (a
    Model as JSON; new files lie in outputs/) or None; measurements {metric name: {"rows", "values"}} for "measure";
    report (accounting, forecasts, curves); seconds; peak_memory (bytes); versions {distribution: version}.
    """
    path = job / "result.json"
    if not path.is_file():
        return None
    data: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data
