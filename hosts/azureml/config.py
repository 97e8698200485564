"""The config of the host AzureML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from drupe.hosts.azureml.client import ClientConfig
from drupe.hosts.azureml.environment import DockerSettings, EnvironmentSettings
from drupe.hosts.config import WorkerConfig

__all__ = ["AzureMLConfig"]

_OLDER = {"azureml_client_config": "azureml_client", "aml_config": "azureml_client"}


class AzureMLConfig(WorkerConfig):
    """A system of type AzureML. aml_compute is needed, and one of aml_docker_config and aml_environment_config."""

    azureml_client: ClientConfig | None = Field(None, description="The workspace; default: the workflow's.")
    aml_compute: str = Field(description="The compute's name: a cluster, or Kubernetes attached through Azure Arc.")
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
        return {_OLDER.get(key, key): value for key, value in data.items()}

    @model_validator(mode="after")
    def _whole(self) -> AzureMLConfig:
        if (self.aml_docker_config is None) == (self.aml_environment_config is None):
            raise ValueError("give aml_docker_config or aml_environment_config, and not both")
        if self.hf_token and self.azureml_client is not None and not self.azureml_client.keyvault_name:
            raise ValueError("hf_token needs azureml_client.keyvault_name, the key vault that holds the token")
        return self
