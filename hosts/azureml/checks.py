"""What `drupe hosts --check` says of a system of type AzureML: everything that is missing, a line each."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from drupe.core.errors import Fault, HostError
from drupe.hosts.azureml.client import Absent, Workspace
from drupe.hosts.azureml.config import AzureMLConfig
from drupe.hosts.azureml.environment import JobEnvironment, environment_faults
from drupe.hosts.azureml.storage import Container, open_datastore
from drupe.hosts.azureml.vault import secret_exists

__all__ = ["faults"]

_KINDS = ("amlcompute", "computeinstance", "kubernetes")
_EXPECTED = "a cluster (AmlCompute), a compute instance, or attached Kubernetes"


def faults(workspace: Workspace, config: AzureMLConfig, environment: JobEnvironment) -> list[Fault]:
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
    found += _tried("aml_environment_config", lambda: _environment(environment))
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
    kind = str(getattr(found.type, "value", found.type)).lower()
    if kind not in _KINDS:
        # The library has no name for some of them.
        what = "of another kind" if kind.startswith("*") else f"of the kind {kind}"
        yield Fault("aml_compute", f"{name} is {what}, which runs no jobs", _EXPECTED, kind="needs")
        return
    state = str(getattr(found.provisioning_state, "value", found.provisioning_state)).lower()
    if state not in ("succeeded", "none"):
        why = f": {found.provisioning_errors}" if found.provisioning_errors else ""
        yield Fault("aml_compute", f"{name} is {state}, not ready{why}", kind="needs")
    yield from _running(found, name, kind)
    if kind != "kubernetes":
        inner = config.resources.instance_type if config.resources else None
        given = {"instance_type": config.instance_type, "resources.instance_type": inner, "namespace": config.namespace}
        for option, value in given.items():
            if value is not None:
                yield Fault(option, f"{name} is no Kubernetes compute ({kind})", hint=f"leave {option} out")
        return
    types = sorted(_instance_types(found.properties or {}))
    where = "instance_type" if config.instance_type else "resources.instance_type"
    if config.node_type is not None and types and config.node_type not in types:
        yield Fault(where, f"{name} has no {config.node_type!r}", f"one of: {', '.join(types)}")
    if config.namespace is not None and config.namespace != found.namespace:
        yield Fault("namespace", f"{name} is attached to the namespace {found.namespace!r}", repr(config.namespace))


def _running(found: Any, name: str, kind: str) -> Iterator[Fault]:
    """Yield why a job would wait there for ever."""
    if kind == "computeinstance":
        state = str(getattr(found.state, "value", found.state) or "").lower()
        if state and state not in ("running", "jobrunning", "starting", "restarting"):
            hint = f"az ml compute start -n {name}"
            yield Fault("aml_compute", f"the compute instance {name} is {state}", "one that runs", hint, "needs")
    elif kind == "amlcompute" and found.max_instances == 0:
        hint = f"az ml compute update -n {name} --max-instances 1"
        yield Fault("aml_compute", f"the cluster {name} may have no node (max-instances 0)", "", hint, "needs")


def _instance_types(properties: Mapping[str, Any]) -> Mapping[str, Any]:
    return properties.get("instanceTypes") or properties.get("instance_types") or {}


def _environment(environment: JobEnvironment) -> Iterator[Fault]:
    environment.named()
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
