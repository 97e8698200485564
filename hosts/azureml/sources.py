"""Models and data in Azure ML: registries, workspaces, outputs of jobs, datastores.

They are fetched where the job runs, with the credentials that are there: on a node, those of its compute.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError, Fault, HostError
from drupe.core.sources import ModelSource
from drupe.hosts.azureml.assets import AssetKind, asset
from drupe.hosts.azureml.client import Absent, ClientConfig, Workspace
from drupe.hosts.azureml.references import (
    DataAsset,
    DatastorePath,
    JobOutput,
    NamedAsset,
    Reference,
    RegistryModel,
    WorkspaceModel,
    pinned_reference,
    read_reference,
)
from drupe.hosts.azureml.storage import Item, Store, open_datastore

__all__ = ["AzureMLSource"]

_WILD = re.compile(r"[*?\[]")
_STORE = re.compile(r"datastores/([^/]+)/paths/(.+)$")
_MARKS = ("MLmodel", "config.json")


class AzureMLSource(ModelSource):
    """What `{"type": "azureml_…"}` and azureml:// name."""

    def check(self, reference: str | Mapping[str, Any], workflow_dir: Path) -> Sequence[Fault]:
        """See ModelSource.check: the form, and whether a workspace is named."""
        try:
            found = read_reference(reference)
            if not isinstance(found, RegistryModel):
                _client(found).workspace(workflow_dir)
        except ConfigError as error:
            return (Fault("", str(error)),)
        except HostError as error:
            return (Fault("", str(error), kind="needs"),)
        return ()

    def files(self, reference: str | Mapping[str, Any], workflow_dir: Path) -> Sequence[Path]:
        """See ModelSource.files: a workspace's config.json, where one is named."""
        path = _client(read_reference(reference)).aml_config_path
        return (workflow_dir / Path(path).expanduser(),) if path else ()

    def pinned(self, reference: str | Mapping[str, Any], workflow_dir: Path) -> str | Mapping[str, Any]:
        """See ModelSource.pinned: a label becomes the version that it means now."""
        found = read_reference(reference)
        if not isinstance(found, NamedAsset) or found.label is None:
            return reference
        with _found(reference):
            return pinned_reference(reference, str(_asset(Workspace(_client(found), workflow_dir), found).version))

    def identity(self, reference: str | Mapping[str, Any], options: Mapping[str, Any], workflow_dir: Path) -> Any:
        """Return a model's version, which never changes, or the marks of the files of a datastore."""
        found = read_reference(reference)
        workspace = Workspace(_client(found), workflow_dir)
        with _found(reference):
            match found:
                case RegistryModel():
                    return {"registry model": [found.registry_name, found.name, _asset(workspace, found).version]}
                case WorkspaceModel():
                    model = _asset(workspace, found)
                    return {"model": [workspace.name.model_dump(), model.name, model.version]}
            store, path = _place(workspace, found)
            return {"files": {item.name: [item.size, item.mark] for item in _items(store, path)}}

    def fetch(
        self, reference: str | Mapping[str, Any], options: Mapping[str, Any], into: Path, context: JobContext
    ) -> Path:
        """See ModelSource.fetch."""
        found = read_reference(reference)
        workspace = Workspace(_client(found), context.workflow_dir or Path())
        with _found(reference):
            if isinstance(found, RegistryModel):
                return _registry_model(workspace, found, into, context)
            store, path = _place(workspace, found)
            target = _download(store, path, into, context)
            return _inside(target) if isinstance(found, WorkspaceModel) else target


class _found(contextlib.AbstractContextManager[None]):  # noqa: N801
    """Tells what is absent as a fault of the workflow."""

    def __init__(self, reference: str | Mapping[str, Any]) -> None:
        self._reference = reference

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Absent):
            raise ConfigError(str(error)) from error


def _client(reference: Reference) -> ClientConfig:
    return reference.azureml_client or ClientConfig()


def _asset(workspace: Workspace, wanted: NamedAsset) -> Any:
    registry = wanted.registry_name if isinstance(wanted, RegistryModel) else None
    kind: AssetKind = "data" if isinstance(wanted, DataAsset) else "model"
    return asset(workspace, kind, registry, wanted.name, wanted.version, wanted.label)


def _registry_model(workspace: Workspace, wanted: RegistryModel, into: Path, context: JobContext) -> Path:
    model = _asset(workspace, wanted)
    what = f"downloading {model.name}:{model.version} from the registry {wanted.registry_name}"
    context.progress(0, 1, what)
    into.mkdir(parents=True, exist_ok=True)

    def fetch() -> None:
        models = workspace.client(wanted.registry_name).models
        models.download(name=model.name, version=model.version, download_path=str(into))

    workspace.ask(what, fetch)
    return _inside(into / model.name)


def _inside(folder: Path) -> Path:
    """Return the folder that holds a model's files: registries put one or two around them."""
    while folder.is_dir() and not any((folder / mark).exists() for mark in _MARKS):
        entries = list(folder.iterdir())
        if len(entries) != 1:
            break
        folder = entries[0]
    return folder


def _place(workspace: Workspace, found: Reference) -> tuple[Store, str]:
    """Return the datastore and the path in it."""
    match found:
        case DatastorePath():
            return open_datastore(workspace, found.datastore_name), found.relative_path
        case WorkspaceModel() | DataAsset():
            known = _asset(workspace, found)
            what = f"the {'model' if isinstance(found, WorkspaceModel) else 'data asset'} {found.name}"
            if str(known.type) == "mltable":
                raise ConfigError(f"{what} is an MLTable, whose recipe is not followed; name the files that it reads")
            inside = _STORE.search(str(known.path))
            if inside is None:
                raise ConfigError(f"{what} lies at {known.path}, which is no path of a datastore")
            return open_datastore(workspace, inside[1]), inside[2].rstrip("/")
        case JobOutput():
            return _job_output(workspace, found)
    raise AssertionError(found)


def _job_output(workspace: Workspace, wanted: JobOutput) -> tuple[Store, str]:
    name, output = wanted.job_name, wanted.output_name
    job = workspace.ask(f"looking for the job {name}", lambda: workspace.client().jobs.get(name))
    status = str(getattr(job.status, "value", job.status))
    if status != "Completed":
        raise ConfigError(f"the job {name} is {status.lower()}; expected one that is completed")
    known = sorted(job.outputs or {})
    if output not in known:
        raise ConfigError(f"the job {name} has no output {output!r}; it has: {', '.join(known) or 'none'}")
    inside = _STORE.search(str(getattr(job.outputs[output], "path", None) or ""))
    # An output without a path of its own lies where Azure ML puts such ones.
    store, path = inside.groups() if inside else (None, f"azureml/{name}/{output}")
    return open_datastore(workspace, store), f"{path.rstrip('/')}/{wanted.relative_path}".rstrip("/")


def _items(store: Store, path: str) -> list[Item]:
    """Return the file, the files of the folder, or those that match the pattern. Raises ConfigError for none."""
    path = path.strip("/")
    if _WILD.search(path):
        parts = PurePosixPath(path).parts
        fixed = parts[: next(index for index, part in enumerate(parts) if _WILD.search(part))]
        found = [item for item in store.items("/".join(fixed)) if _matches(item.name, path)]
    else:
        one = store.find(path)
        found = [one] if one is not None else store.items(path)
    if not found:
        raise ConfigError(f"{store.where} has nothing at {path}; expected a file, a folder or a pattern that matches")
    return sorted(found, key=lambda item: item.name)


def _matches(name: str, pattern: str) -> bool:
    """Match as a shell does: a star stays within one folder, two stars do not."""
    if "**" in pattern:
        return fnmatch.fnmatchcase(name, pattern.replace("**/", "*"))
    names, patterns = name.split("/"), pattern.split("/")
    return len(names) == len(patterns) and all(map(fnmatch.fnmatchcase, names, patterns))


def _download(store: Store, path: str, into: Path, context: JobContext) -> Path:
    items = _items(store, path)
    path = path.strip("/")
    if [item.name for item in items] == [path]:
        context.progress(0, 1, f"downloading {path}")
        return _file(store, items[0], into / PurePosixPath(path).name)
    wild = _WILD.search(path)
    root = path[: wild.start()].rpartition("/")[0] if wild else path
    target = into / (PurePosixPath(root).name or store.name)
    for index, item in enumerate(items):
        context.progress(index, len(items), f"downloading {item.name}")
        inside = PurePosixPath(item.name).relative_to(root or ".")
        if ".." in inside.parts:
            raise ConfigError(f"{store.where} has a file that would leave its folder: {item.name}")
        _file(store, item, target / inside)
    return target


def _file(store: Store, item: Item, target: Path) -> Path:
    if not (target.is_file() and target.stat().st_size == item.size):
        part = target.with_name(f".{target.name}.part")
        store.download(item.name, part)
        part.replace(target)
    return target
