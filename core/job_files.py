"""The files of this machine that a job reads besides its input models: data, scripts, a model to import.

A host that has another file system sends them along. There they lie below a folder of the job's own at the paths that
they have here, and `relocated` makes the job look for them below that folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from drupe.core.config import references
from drupe.core.job import Job
from drupe.core.script_files import script_files
from drupe.core.stat_cache import cached_digest

__all__ = ["job_files", "job_paths", "referred_files", "relocated"]


def referred_files(config: BaseModel, folder: Path) -> list[Path]:
    """Return what the FileRef fields of a config refer to, those of configs inside it included.

    A script comes with what it imports from its own folder.
    """
    found = []
    kinds = references(type(config))
    for name in type(config).model_fields:
        value = getattr(config, name)
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, BaseModel):
                found += referred_files(item, folder)
            elif kinds.get(name) == "file" and item is not None:
                found += script_files(_absolute(folder, item))
    return found


def job_paths(job: Job) -> list[Path]:
    """Return the files and folders that a job reads, as absolute paths, whether they exist or not.

    What only the plugins of another machine know can't be told here.
    """
    from drupe.core.registry import get_registry

    registry = get_registry(job.plugins)

    def create(hook: str, name: str) -> Any:
        entry = registry.find(hook, name)
        return registry.resolve(entry)(entry.spec) if entry is not None else None

    folder = Path(job.workflow_dir or ".").absolute()
    found: list[Path] = []
    if job.kind == "import" and (kind := create("drupe_model_kinds", job.subject)):
        from drupe.core.sources import find_source

        config = kind.Config.model_validate(dict(job.config))
        found += referred_files(config, folder)
        for reference in kind.references(config).values():
            found += find_source(registry, reference, folder).files(reference, folder)
    if job.kind == "pass" and (pass_ := create("drupe_passes", job.subject)):
        found += referred_files(pass_.Config.model_validate(dict(job.config)), folder)
    for data in job.data.values():
        if container := create("drupe_data_containers", data.type):
            found += container.files(container.Config.model_validate(dict(data.config)), folder)
    for request in job.options.get("metrics", ()):
        if metric := create("drupe_metrics", request["type"]):
            found += referred_files(metric.Config.model_validate(dict(request["config"])), folder)
    return sorted({Path(os.path.normpath(path)) for path in found})


def job_files(job: Job) -> dict[str, str]:
    """Return the files that a job reads, absolute path → digest; folders are searched, hidden files left out.

    Raises OSError.
    """
    found: dict[str, str] = {}
    for path in job_paths(job):
        for file in _below(path):
            found[str(file)] = cached_digest(file)
    return found


def relocated(job: Job, root: Path, paths: Iterable[str]) -> Job:
    """Return the job as it reads where its files lie below `root`, each at the path that it has here.

    paths: the files' absolute paths here. Relative paths hold as they are, since the workflow's folder moves along.
    """
    known = {str(part) for path in paths for part in (Path(path), *Path(path).parents[:-1])}
    folder = job.workflow_dir or "/"

    def moved(value: Any) -> Any:
        if isinstance(value, str):
            bare = value.removeprefix("file://")
            if bare.startswith(("/", "~")) and os.path.normpath(Path(bare).expanduser()) in known:
                return str(below(root, bare))
            return value
        if isinstance(value, Mapping):
            return {key: moved(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [moved(item) for item in value]
        return value

    return replace(
        job,
        config=moved(job.config),
        data={name: replace(data, config=moved(data.config)) for name, data in job.data.items()},
        options=moved(job.options),
        workflow_dir=str(below(root, folder)),
    )


def below(root: Path, path: str) -> Path:
    """Return where the file of an absolute path lies below root."""
    absolute = os.path.normpath(Path(path).expanduser())
    return root / absolute.lstrip("/")


def _below(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = []
    for folder, folders, files in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder) / name for name in sorted(files) if not name.startswith(".")]
    return found


def _absolute(folder: Path, item: Any) -> Path:
    return folder / Path(str(item).removeprefix("file://")).expanduser()
