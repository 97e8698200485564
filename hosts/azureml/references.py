"""What workflows call things in Azure ML: `{"type": "azureml_…"}` references and azureml: addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from drupe.core.config import PluginConfig
from drupe.core.errors import ConfigError
from drupe.hosts.azureml.client import ClientConfig

__all__ = [
    "DataAsset",
    "DatastorePath",
    "JobOutput",
    "NamedAsset",
    "Reference",
    "RegistryModel",
    "WorkspaceModel",
    "pinned_reference",
    "read_reference",
]


class Reference(PluginConfig):
    """What all of them share."""

    azureml_client: ClientConfig | None = Field(None, description="The workspace; default: the workflow's.")


class NamedAsset(Reference):
    """What has versions, and labels that move from one to the next."""

    name: str
    version: str | None = None
    label: str | None = None

    @field_validator("version", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _one_version(self) -> Self:
        if bool(self.version) == bool(self.label):
            raise ValueError("give version or label (such as latest)")
        return self


class RegistryModel(NamedAsset):
    """A model of a registry."""

    registry_name: str = "azureml"


class WorkspaceModel(NamedAsset):
    """A model of a workspace."""


class DataAsset(NamedAsset):
    """Data that is registered in a workspace: a file or a folder of a datastore."""


class JobOutput(Reference):
    """What a job of the workspace made."""

    job_name: str
    output_name: str
    relative_path: str = ""


class DatastorePath(Reference):
    """A file, a folder or a pattern in a datastore."""

    datastore_name: str
    relative_path: str


_TYPES: Mapping[str, type[Reference]] = {
    "azureml_registry_model": RegistryModel,
    "azureml_model": WorkspaceModel,
    "azureml_data": DataAsset,
    "azureml_job_output": JobOutput,
    "azureml_datastore": DatastorePath,
}
_ADDRESSES = (
    (
        re.compile(
            r"registries/(?P<registry_name>[^/]+)/models/(?P<name>[^/]+)"
            r"/(versions/(?P<version>[^/]+)|labels/(?P<label>[^/]+))"
        ),
        RegistryModel,
    ),
    (re.compile(r"models/(?P<name>[^/]+)/(versions/(?P<version>[^/]+)|labels/(?P<label>[^/]+))"), WorkspaceModel),
    (re.compile(r"data/(?P<name>[^/]+)/(versions/(?P<version>[^/]+)|labels/(?P<label>[^/]+))"), DataAsset),
    (re.compile(r"datastores/(?P<datastore_name>[^/]+)/paths/(?P<relative_path>.+)"), DatastorePath),
    (re.compile(r"jobs/(?P<job_name>[^/]+)/outputs/(?P<output_name>[^/]+)(/paths/(?P<relative_path>.*))?"), JobOutput),
)
_SCOPE = re.compile(
    r"subscriptions/(?P<subscription_id>[^/]+)/resource[gG]roups/(?P<resource_group>[^/]+)"
    r"(/providers/Microsoft.MachineLearningServices)?/workspaces/(?P<workspace_name>[^/]+)/",
)
_FORMS = (
    "azureml://registries/R/models/M/versions/V, azureml://datastores/D/paths/P, azureml://jobs/J/outputs/O, "
    "azureml:NAME:VERSION"
)


def read_reference(reference: str | Mapping[str, Any]) -> Reference:
    """Return what a reference names. Raises ConfigError."""
    if isinstance(reference, str):
        return _of_address(reference, None)
    values = {key: value for key, value in reference.items() if key not in ("type", "config")}
    values |= reference.get("config") or {}
    kind = str(reference.get("type", "")).lower()
    if kind == "azureml_uri":
        return _of_address(str(values.get("uri")), values.get("azureml_client"))
    if values.get("azureml_client") is None:
        values.pop("azureml_client", None)
    if kind == "azureml_datastore" and values.get("datastore_url"):
        return _of_url(values)
    return _validated(_TYPES[kind], values, kind)


def pinned_reference(reference: str | Mapping[str, Any], version: str) -> dict[str, Any]:
    """Return a reference to an asset with the version that its label means now. Raises ConfigError."""
    found = read_reference(reference)
    kind = next(name for name, model in _TYPES.items() if type(found) is model)
    values = found.model_dump(mode="json", exclude_none=True, exclude_unset=True, exclude={"label"})
    return {"type": kind, **values, "version": version}


def _of_url(values: dict[str, Any]) -> Reference:
    """Read Olive's datastore_url, which stands for datastore and path."""
    url = str(values.pop("datastore_url"))
    both = sorted(name for name in ("datastore_name", "relative_path") if values.pop(name, None))
    if both:
        raise ConfigError(f"azureml_datastore: datastore_url says what {' and '.join(both)} would; leave those out")
    unknown = sorted(set(values) - {"azureml_client"})
    if unknown:
        raise ConfigError(f"azureml_datastore: {unknown[0]} is unknown; expected datastore_url and azureml_client")
    found = _of_address(url, values.get("azureml_client"))
    if not isinstance(found, DatastorePath):
        raise ConfigError(f"azureml_datastore: datastore_url is {url}; expected azureml://datastores/D/paths/P")
    return found


def _of_address(address: str, client: Any) -> Reference:
    rest = address.removeprefix("azureml://")
    scope = _SCOPE.match(rest)
    if scope is not None:
        rest = rest[scope.end() :]
        # Retries and the like are those of the workflow's client; the workspace is the address's.
        own = {k: v for k, v in (client or {}).items() if k not in (*scope.groupdict(), "aml_config_path")}
        client = {**own, **scope.groupdict()}
    for pattern, kind in _ADDRESSES:
        found = pattern.fullmatch(rest.rstrip("/"))
        if found is not None:
            values = {key: value for key, value in found.groupdict().items() if value is not None}
            return _validated(kind, values | ({"azureml_client": client} if client else {}), address)
    if re.match(r"registries/[^/]+/data/", rest):
        raise ConfigError(f"{address} is data of a registry, which is not fetched; register it in the workspace")
    raise ConfigError(f"{address} can't be read; expected a form like {_FORMS}")


def _validated(kind: type[Reference], values: Mapping[str, Any], what: str) -> Reference:
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        faults = []
        for item in error.errors():
            place = ".".join(str(part) for part in item["loc"])
            faults.append(f"{place}: {item['msg'].removeprefix('Value error, ')}" if place else item["msg"])
        raise ConfigError(f"{what}: {'; '.join(faults)}") from error
