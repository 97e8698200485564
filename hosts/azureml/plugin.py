"""Registers Azure ML: the host, and the sources of models and data."""

from __future__ import annotations

from drupe.core.hookspecs import hookimpl
from drupe.core.specs import HostSpec, ModelSourceSpec

_HERE = "drupe.hosts.azureml"
_NEEDS = ("azure-ai-ml>=1.26", "azure-identity>=1.19", "azure-storage-blob>=12.23")


@hookimpl
def drupe_hosts() -> list[HostSpec]:
    """Contribute the host."""
    return [
        HostSpec(
            name="AzureML",
            target=f"{_HERE}.host:AzureML",
            summary="A compute of an Azure ML workspace: a cluster, or Kubernetes attached through Azure Arc.",
            aliases=("azureml_system",),
            requires=_NEEDS,
        )
    ]


@hookimpl
def drupe_model_sources() -> list[ModelSourceSpec]:
    """Contribute the source."""
    return [
        ModelSourceSpec(
            name="azureml",
            target=f"{_HERE}.sources:AzureMLSource",
            summary="Models and data of Azure ML: registries, workspaces, outputs of jobs, datastores.",
            schemes=("azureml",),
            resource_types=(
                "azureml_registry_model",
                "azureml_model",
                "azureml_data",
                "azureml_job_output",
                "azureml_datastore",
                "azureml_uri",
            ),
            requires=_NEEDS,
        )
    ]
