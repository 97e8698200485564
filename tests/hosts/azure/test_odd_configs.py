"""What users of Olive write under systems and azureml_client: it works, or one message says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drupe.core.registry import Registry
from drupe.core.workflow.read import examine

_CLIENT = {"subscription_id": "s", "resource_group": "g", "workspace_name": "w"}
_DOCKER = {"base_image": "image"}

Read = Callable[..., tuple[list[str], set[str], Any]]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover({"autoload": False})


@pytest.fixture
def read(registry: Registry, tmp_path: Path) -> Read:
    """Reads a workflow with a system and returns its faults, the paths of its notices, and the system's config."""

    def one(client: Any = _CLIENT, **config: Any) -> tuple[list[str], set[str], Any]:
        given = {"aml_compute": "c", "aml_docker_config": _DOCKER, "accelerators": ["cpu"], **config}
        document = {
            "input_model": {"type": "HfModel", "model_path": "azureml://registries/azureml/models/m/versions/1"},
            "systems": {"aml": {"type": "AzureML", "config": given}},
            "passes": {"build": {"type": "ModelBuilder", "config": {"precision": "int4"}}},
            "engine": {"host": "aml", "target": "aml"},
        }
        if client is not None:
            document["azureml_client"] = client
        path = tmp_path / "workflow.json"
        path.write_text(json.dumps(document))
        found = examine(path, registry)
        system = found.workflow.systems["aml"].config if found.workflow is not None else None
        return [str(fault) for fault in found.faults], {notice.path for notice in found.notices}, system

    return one


@pytest.mark.parametrize(
    "config",
    [
        {"tags": {"team": "a", "run": 3, "draft": True}},
        {"tags": None, "hf_token": None, "requirements_file": None},
        {"aml_docker_config": {"base_image": "image", "conda_file_path": None, "dockerfile": None, "name": None}},
        {"aml_docker_config": {"base_image": "image", "name": "mine", "version": 4}},
        {"aml_docker_config": None, "aml_environment_config": {"name": "e", "version": 4}},
        {"aml_environment_config": {"name": "e", "label": "latest"}},
        {"resources": {"instance_type": "gpu", "instance_count": 1, "properties": {"AISuperComputer": {"sla": 1}}}},
        {"resources": {"cpus": 2, "shm_size": "2g", "docker_args": "--ipc=host"}},
        {"azureml_client": {}},
        {"azureml_client": {**_CLIENT, "default_auth_params": None, "keyvault_name": None, "read_timeout": 600}},
        {"azureml_client": {**_CLIENT, "max_operation_retries": 0, "operation_retry_interval": 0}},
    ],
)
def test_what_olive_takes_is_taken(read: Read, config: dict[str, Any]) -> None:
    faults, _, system = read(**config)
    assert faults == []
    assert system["azureml_client"]["workspace_name"] == "w"


@pytest.mark.parametrize(
    ("config", "path", "now"),
    [
        ({"datastores": "workspaceblobstore"}, "datastores", {"datastore": "workspaceblobstore"}),
        ({"is_dev": True}, "is_dev", {}),
        ({"instance_count": 1}, "instance_count", {}),
        ({"olive_managed_env": True}, "olive_managed_env", {}),
    ],
)
def test_older_fields_are_told_with_what_they_are_now(
    read: Read, config: dict[str, Any], path: str, now: dict[str, Any]
) -> None:
    faults, notices, system = read(**config)
    assert faults == [] and f"systems.aml.{path}" in notices
    assert now.items() <= system.items() and path not in system


def test_a_config_json_beside_the_workflow(read: Read, tmp_path: Path) -> None:
    """As azureml_client has it, and as the first form had it: in the system itself."""
    (tmp_path / "config.json").write_text(json.dumps(_CLIENT))
    for config in ({"aml_config_path": "config.json"}, {"azureml_client": {"aml_config_path": "config.json"}}):
        faults, _, system = read(client=None, **config)
        assert faults == [] and system["azureml_client"] == {"aml_config_path": "config.json"}
    (fault,), _, _ = read(client={"aml_config_path": "none.json"})
    assert "azureml_client.aml_config_path: none.json is not there" in fault


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"client": None}, "no workspace is named; give azureml_client, here or at the top of the workflow"),
        ({"client": {"keyvault_name": "k"}}, "no workspace is named; give azureml_client"),
        ({"client": {**_CLIENT, "workspace_name": "<my-ws>"}}, "workspace_name is <my-ws>, which is left to be"),
        ({"client": {"workspace_name": "w"}}, "subscription_id and resource_group is missing"),
        ({"client": {**_CLIENT, "aml_config_path": "workflow.json"}}, "aml_config_path names the workspace"),
        ({"client": {**_CLIENT, "max_operation_retries": -1}}, "max_operation_retries: -1; expected a number at"),
        ({"client": {**_CLIENT, "read_timeout": "long"}}, 'azureml_client.read_timeout: "long"; expected a number'),
        ({"client": {**_CLIENT, "workspace": "w"}}, "workspace_name"),
        ({"aml_compute": ""}, "aml_compute"),
        ({"instance_count": 2}, "instance_count: a step is one job on one node; expected 1"),
        ({"resources": {"instance_count": 4}}, "resources.instance_count: a step is one job on one node; expected 1"),
        ({"resources": {"instance_type": "a"}, "instance_type": "b"}, "instance_type is b and resources.instance_t"),
        ({"resources": {"gpu": 1}}, "resources.gpu"),
        ({"resources": {"shm_size": "lots"}}, "resources.shm_size"),
        ({"requirements_file": "r.txt"}, "write its lines under pip in aml_docker_config.conda_file_path"),
        ({"hf_token": True}, "hf_token needs azureml_client.keyvault_name"),
        ({"tags": {"a": [1]}}, "systems.aml.tags.a"),
        ({"aml_docker_config": None}, "give aml_docker_config or aml_environment_config"),
        ({"aml_docker_config": {}}, "give base_image, conda_file_path or build_context_path"),
        ({"aml_docker_config": {"dockerfile": "D"}}, "dockerfile is a file in build_context_path; give that folder"),
        ({"aml_docker_config": {"build_context_path": ".", "dockerfile": "/D"}}, "expected a path inside build"),
        ({"aml_docker_config": {"build_context_path": ".", "base_image": "i"}}, "build_context_path makes the whole i"),
        ({"aml_docker_config": {"build_context_path": "none"}}, "build_context_path: none is not there"),
        ({"aml_docker_config": {"conda_file_path": "conda/none.yaml"}}, "conda_file_path: conda/none.yaml is not"),
        ({"aml_environment_config": {"name": "e"}}, "aml_environment_config: give version or label"),
        ({"aml_environment_config": {"name": "azureml://e"}}, "the name is azureml://e; expected azureml://registries/"),
        ({"aml_environment_config": {"name": "azureml:e:1", "version": 1}}, "the name holds the version already"),
    ],
)  # fmt: skip
def test_what_can_not_work_is_one_message(read: Read, config: dict[str, Any], says: str) -> None:
    faults, _, _ = read(**config)
    assert len(faults) == 1, faults
    assert says in faults[0] and "\n" not in faults[0]
    place = "azureml_client" if config.get("client") and "no workspace" not in says else "systems.aml"
    assert faults[0].startswith(place)
