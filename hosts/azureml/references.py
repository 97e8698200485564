"""What workflows call things in Azure ML: `{"type": "azureml_…"}` references and azureml:// addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from drupe.core.config import PluginConfig
from drupe.core.errors import ConfigError
from drupe.hosts.azureml.client import ClientConfig

__all__ = ["DatastorePath", "JobOutput", "Reference", "RegistryModel", "WorkspaceModel", "read_reference"]


class Reference(PluginConfig):
    """What all of them share."""

    azureml_client: ClientConfig | None = Field(None, description="The workspace; default: the workflow's.")


class _NamedModel(Reference):
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


class RegistryModel(_NamedModel):
    """A model of a registry."""

    registry_name: str = "azureml"


class WorkspaceModel(_NamedModel):
    """A model of a workspace."""


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
    "azureml_job_output": JobOutput,
    "azureml_datastore": DatastorePath,
}
_ADDRESSES = (
    (
        re.compile(r"registries/(?P<registry_name>[^/]+)/models/(?P<name>[^/]+)/versions/(?P<version>[^/]+)"),
        RegistryModel,
    ),
    (re.compile(r"registries/(?P<registry_name>[^/]+)/models/(?P<name>[^/]+)/labels/(?P<label>[^/]+)"), RegistryModel),
    (re.compile(r"models/(?P<name>[^/]+)/versions/(?P<version>[^/]+)"), WorkspaceModel),
    (re.compile(r"datastores/(?P<datastore_name>[^/]+)/paths/(?P<relative_path>.+)"), DatastorePath),
    (re.compile(r"jobs/(?P<job_name>[^/]+)/outputs/(?P<output_name>[^/]+)(/paths/(?P<relative_path>.*))?"), JobOutput),
)
_SCOPE = re.compile(
    r"subscriptions/(?P<subscription_id>[^/]+)/resource[gG]roups/(?P<resource_group>[^/]+)"
    r"(/providers/Microsoft.MachineLearningServices)?/workspaces/(?P<workspace_name>[^/]+)/",
)
_FORMS = "azureml://registries/R/models/M/versions/V, azureml://datastores/D/paths/P, azureml://jobs/J/outputs/O"


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
    return _validated(_TYPES[kind], values, kind)


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
