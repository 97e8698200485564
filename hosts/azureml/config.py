"""The config of the host AzureML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from drupe.hosts.azureml.client import ClientConfig
from drupe.hosts.azureml.environment import DockerSettings, EnvironmentSettings
from drupe.hosts.config import ResourcesConfig, WorkerConfig

__all__ = ["AzureMLConfig", "AzureResources"]

_OLDER = {"azureml_client_config": "azureml_client", "aml_config": "azureml_client", "datastores": "datastore"}
_ONE_NODE = "a step is one job on one node"


class AzureResources(ResourcesConfig):
    """`resources`: what a job may use, and what Azure ML's own resource configuration says of its node."""

    instance_type: str | None = Field(None, description="Of Kubernetes compute: which of its instance types.")
    instance_count: int | None = Field(None, description="1: a step is one job on one node.")
    shm_size: str | None = Field(
        None, pattern=r"^[1-9]\d*[bkmg]$", description="The container's shared memory: 2g and the like."
    )
    docker_args: str | list[str] | None = Field(None, description="Further arguments of docker run.")
    properties: dict[str, Any] | None = Field(None, description="Properties of the compute's own kind.")

    @field_validator("instance_count")
    @classmethod
    def _one_node(cls, value: int | None) -> int | None:
        if value not in (None, 1):
            raise ValueError(f"{_ONE_NODE}; expected 1")
        return value


class AzureMLConfig(WorkerConfig):
    """A system of type AzureML. aml_compute is needed, and one of aml_docker_config and aml_environment_config."""

    azureml_client: ClientConfig | None = Field(None, description="The workspace; default: the workflow's.")
    aml_compute: str = Field(
        min_length=1, description="The compute's name: a cluster, or Kubernetes attached through Azure Arc."
    )
    resources: AzureResources | None = Field(None, description="What a job may use, and of which instance type it is.")
    instance_count: int = Field(1, description="1: a step is one job on one node.")
    instance_type: str | None = Field(None, description="Of Kubernetes compute: which of its instance types.")
    namespace: str | None = Field(None, description="Of Kubernetes compute: the namespace that it must be attached to.")
    aml_docker_config: DockerSettings | None = Field(None, description="What to make the environment of.")
    aml_environment_config: EnvironmentSettings | None = Field(None, description="An environment that is there.")
    python: str = Field("python", description="The interpreter in the environment.")
    datastore: str | None = Field(None, description="Where files lie; default: the workspace's own blob store.")
    folder: str = Field("drupe", description="The folder in it.")
    hf_token: bool = Field(
        False, description="Jobs get the hub's token from the key vault azureml_client.keyvault_name."
    )
    hf_token_secret: str = Field("hf-token", description="The name of that secret.")
    identity: Literal["managed", "user"] | None = Field(
        None, description="Who jobs are to Azure; default: the compute."
    )
    experiment_name: str = Field("drupe", description="The experiment that jobs are listed under.")
    tags: dict[str, str] = Field(default_factory=dict, description="Further tags of the jobs.")
    poll_seconds: float = Field(2, gt=0, description="How often a job is looked at.")
    queue_timeout: float | None = Field(None, gt=0, description="Seconds that a job may wait for its turn.")

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if data.get("requirements_file") is not None:
            raise ValueError("requirements_file: write its lines under pip in aml_docker_config.conda_file_path")
        # What Olive's templates leave empty means the default.
        return {
            _OLDER.get(key, key): value
            for key, value in data.items()
            if key != "requirements_file" and not (value is None and key in ("tags", "hf_token", "datastores"))
        }

    @field_validator("tags", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {str(key): str(item) if isinstance(item, (bool, int, float)) else item for key, item in value.items()}

    @field_validator("instance_count")
    @classmethod
    def _one_node(cls, value: int) -> int:
        if value != 1:
            raise ValueError(f"{_ONE_NODE}; expected 1")
        return value

    @model_validator(mode="after")
    def _whole(self) -> AzureMLConfig:
        if self.aml_docker_config is None and self.aml_environment_config is None:
            raise ValueError("give aml_docker_config or aml_environment_config")
        if self.azureml_client is None or not self.azureml_client.names_one:
            raise ValueError(
                "no workspace is named; give azureml_client, here or at the top of the workflow, with subscription_id, "
                "resource_group and workspace_name, or aml_config_path"
            )
        inner = self.resources.instance_type if self.resources else None
        if inner and self.instance_type and inner != self.instance_type:
            raise ValueError(
                f"instance_type is {self.instance_type} and resources.instance_type {inner}; give one of them"
            )
        if self.hf_token and not self.azureml_client.keyvault_name:
            raise ValueError("hf_token needs azureml_client.keyvault_name, the key vault that holds the token")
        return self

    @property
    def node_type(self) -> str | None:
        """The instance type, wherever it is given."""
        return self.instance_type or (self.resources.instance_type if self.resources else None)
