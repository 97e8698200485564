"""A folder of a machine where jobs from elsewhere are staged and run: what is behind SSH, Ray and the like.

Files are kept by their digests, so that only what is missing travels; what a job makes stays here as well, since the
next step may need it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from drupe.core.context import Resources
from drupe.core.errors import HostError
from drupe.core.hosts import Events, JobOptions
from drupe.core.job import Job, write_json
from drupe.core.job_files import relocated
from drupe.core.machine import devices, fingerprint, gpu_names
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.core.specs import ModelKindSpec
from drupe.core.store import Store
from drupe.hosts.launch import launched, worker_command
from drupe.hosts.local import launched_environment
from drupe.hosts.oneshot import run_command
from drupe.hosts.pool import WorkerPool
from drupe.hosts.slots import Gpus

__all__ = ["Site", "facts", "options_from_json", "options_to_json"]

_KEPT_BYTES = 20 * 10**9


def facts() -> dict[str, Any]:
    """Return what `HostDescription` says of the machine and environment that this runs in."""
    versions: dict[str, str] = {}
    for found in importlib.metadata.distributions():
        if found.name:
            # The first on the path is the one that is imported.
            versions.setdefault(found.name.lower().replace("_", "-"), found.version)
    plugins = {p.dist.name: p.dist.version for p in importlib.metadata.entry_points(group="drupe") if p.dist}
    return {
        "versions": versions,
        "devices": list(devices()),
        "python": platform.python_version(),
        "drupe": versions.get("drupe", ""),
        "machine": fingerprint(),
        "plugins": plugins,
    }


def options_to_json(options: JobOptions, env: Mapping[str, str], processes: int = 1) -> dict[str, Any]:
    """Return job options as JSON data. env: variables of the system, below the job's own."""
    resources = options.resources
    return {
        "resources": {"cpus": resources.cpus, "gpus": resources.gpus, "memory": resources.memory},
        "threads": resources.threads,
        "env": {**env, **options.env},
        "exclusive": options.exclusive,
        "launcher": options.launcher,
        "launched_from": options.launched_from,
        "processes": processes,
    }


def options_from_json(data: Mapping[str, Any]) -> JobOptions:
    """Return the options that `options_to_json` was given, less the time-out, which the driver watches."""
    resources = Resources(**data["resources"], threads=data["threads"])
    return JobOptions(resources, data["env"], None, data["exclusive"], data["launcher"], data["launched_from"])


class Site:
    """Stages and runs jobs below one folder. Safe to use from several threads."""

    def __init__(self, root: Path, *, kept_bytes: int = _KEPT_BYTES) -> None:
        """kept_bytes: how much may stay here between runs. Raises StoreError."""
        self.store = Store(root.expanduser())
        self._pool = WorkerPool([sys.executable], {})
        self._gpus = Gpus(gpu_names())
        if self.store.size() > kept_bytes:
            self.store.gc(max_bytes=kept_bytes)

    def free(self) -> int:
        """Return how many bytes there is room for."""
        return shutil.disk_usage(self.store.root).free

    def missing(self, digests: Sequence[str]) -> list[str]:
        """Return the digests that are not here."""
        return [digest for digest in digests if not self.store.has(digest)]

    def part(self, digest: str) -> Path:
        """Return where to write a file that arrives, before `keep`."""
        return self.store.root / "tmp" / f"{digest}-{os.getpid()}-{time.time_ns():x}"

    def keep(self, digest: str, part: Path) -> None:
        """Take a file that has arrived. Raises StoreError when it is not what its digest says."""
        try:
            self.store.put_file(part, digest)
        finally:
            part.unlink(missing_ok=True)

    def prepare(self, data: Mapping[str, Any], files: Mapping[str, str]) -> Path:
        """Stage a job whose files are all here and return its folder.

        data: its job.json. files: what it reads besides its inputs, path on the driver's machine → digest.
        """
        job = Job.from_json(data)
        folder = self.store.new_job_dir(f"{job.name}-{job.key[:12]}")
        registry = get_registry(job.plugins)
        for role, model in job.inputs.items():
            entry = registry.find("drupe_model_kinds", model.kind)
            links = entry is None or cast(ModelKindSpec, entry.spec).hard_links
            self.store.stage(model, folder / "inputs" / role, hard_links=links)
        (folder / "outputs").mkdir()
        (folder / "files").mkdir()
        self.store.stage(Model("files", {path.lstrip("/"): digest for path, digest in files.items()}), folder / "files")
        (folder / "checkpoint").symlink_to(self.store.checkpoint_dir(job.key), target_is_directory=True)
        moved = relocated(job, folder / "files", files)
        Path(moved.workflow_dir or folder).mkdir(parents=True, exist_ok=True)
        write_json(folder / "job.json", moved.to_json(), durable=False)
        return folder

    def run(
        self, folder: Path, options: Mapping[str, Any], events: Events, cancelled: Callable[[], bool]
    ) -> Mapping[str, Any]:
        """Run a prepared job and return its result. Raises HostError, StoreError, Interrupted."""
        wanted = options_from_json(options)
        with self._gpus.take(wanted.resources.gpus, cancelled) as gpus:
            if not launched(wanted, options["processes"]):
                return self._pool.run(folder, wanted, events, cancelled, gpus=gpus)
            command = worker_command([sys.executable], folder, wanted, processes=options["processes"])
            env = launched_environment(wanted.env, gpus)
            return run_command(command, folder, events, cancelled, env=env)

    def made(self, folder: Path, result: Mapping[str, Any]) -> dict[str, str]:
        """Keep what a job made here and return its files, name → digest. Raises StoreError."""
        if not result.get("model"):
            return {}
        model = Model.from_json(result["model"])
        self.store.publish(model, folder / "outputs")
        job = Job.from_json(json.loads((folder / "job.json").read_text(encoding="utf-8")))
        inputs = {digest for given in job.inputs.values() for digest in given.files.values()}
        # The record makes them known to a collection; the driver has its own.
        self.store.put(job.key, {"key": job.key, "model": None, "blobs": sorted({*inputs, *model.files.values()})})
        return {name: digest for name, digest in model.files.items() if digest not in inputs}

    def path(self, digest: str) -> Path:
        """Return the file with that digest. Raises HostError when it is not here."""
        if not self.store.has(digest):
            raise HostError(f"the file {digest[:12]} is no longer there")
        return self.store.blob_path(digest)

    def finish(self, folder: Path) -> None:
        """Remove a job's folder."""
        self.store.remove_job_dir(folder)

    def close(self) -> None:
        """End the workers."""
        self._pool.close()
