"""What `drupe hosts --check` says of a system of type AzureML: everything that is missing, a line each."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

from drupe.core.errors import Fault, HostError
from drupe.hosts.azureml.client import Absent, Workspace
from drupe.hosts.azureml.config import AzureMLConfig
from drupe.hosts.azureml.environment import environment_faults
from drupe.hosts.azureml.storage import Container, open_datastore
from drupe.hosts.azureml.vault import secret_exists

__all__ = ["faults"]


def faults(workspace: Workspace, config: AzureMLConfig) -> list[Fault]:
    """Return what keeps jobs from running. Writes and removes one small file in the datastore."""
    found = list(environment_faults(config.aml_docker_config))
    try:
        name = workspace.name
        workspace.ask(
            f"looking for the workspace {name.workspace_name}",
            lambda: workspace.client().workspaces.get(name.workspace_name),
        )
    except HostError as error:
        # Without it nothing else can be asked.
        return [*found, Fault("azureml_client", str(error), kind="needs")]
    found += _tried("aml_compute", lambda: _compute(workspace, config))
    found += _tried("aml_environment_config", lambda: _environment(workspace, config))
    found += _tried("datastore", lambda: _datastore(workspace, config))
    if config.hf_token:
        found += _tried("azureml_client.keyvault_name", lambda: _vault(workspace, config))
    return found


def _tried(path: str, look: Callable[[], Iterator[Fault]]) -> list[Fault]:
    try:
        return list(look())
    except HostError as error:
        return [Fault(path, str(error), kind="needs")]


def _compute(workspace: Workspace, config: AzureMLConfig) -> Iterator[Fault]:
    name = config.aml_compute
    try:
        found = workspace.ask(f"looking for the compute {name}", lambda: workspace.client().compute.get(name))
    except Absent:
        yield Fault("aml_compute", f"the workspace has no compute {name!r}", hint="make it, or attach it", kind="needs")
        return
    state = str(getattr(found.provisioning_state, "value", found.provisioning_state))
    if state.lower() not in ("succeeded", "none"):
        yield Fault("aml_compute", f"{name} is {state.lower()}, not ready", kind="needs")
    kind = str(getattr(found.type, "value", found.type)).lower()
    if kind != "kubernetes":
        for option in ("instance_type", "namespace"):
            if getattr(config, option) is not None:
                yield Fault(option, f"{name} is no Kubernetes compute ({kind})", hint=f"leave {option} out")
        return
    types = sorted((found.properties or {}).get("instanceTypes") or {})
    if config.instance_type is not None and types and config.instance_type not in types:
        yield Fault("instance_type", f"{name} has no {config.instance_type!r}", f"one of: {', '.join(types)}")
    if config.namespace is not None and config.namespace != found.namespace:
        yield Fault("namespace", f"{name} is attached to the namespace {found.namespace!r}", repr(config.namespace))


def _environment(workspace: Workspace, config: AzureMLConfig) -> Iterator[Fault]:
    existing = config.aml_environment_config
    if existing is not None and not existing.name.startswith("azureml://"):
        workspace.ask(
            f"looking for the environment {existing.name}",
            lambda: workspace.client().environments.get(existing.name, existing.version, label=existing.label),
        )
    yield from ()


def _datastore(workspace: Workspace, config: AzureMLConfig) -> Iterator[Fault]:
    store = open_datastore(workspace, config.datastore)
    if not isinstance(store, Container):
        yield Fault("datastore", f"{store.where} is a file share", "a blob container or Data Lake Gen2")
        return
    probe = f"{config.folder.strip('/')}/tmp/{uuid.uuid4().hex}"
    store.put_bytes(probe, b"drupe")
    store.remove(probe)


def _vault(workspace: Workspace, config: AzureMLConfig) -> Iterator[Fault]:
    if not workspace.config.keyvault_name:
        yield Fault("azureml_client.keyvault_name", "is not given", "the key vault that holds the hub's token")
        return
    secret_exists(workspace, workspace.config.keyvault_name, config.hf_token_secret)
    yield from ()
