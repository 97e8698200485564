"""Models and data in Azure ML, fetched through the real SDK."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drupe.core.errors import ConfigError, HostError
from drupe.core.registry import Registry
from tests.hosts.azure.cloud import RESOURCE_GROUP, SUBSCRIPTION, WORKSPACE, Cloud
from tests.hosts.azure.looks import Look, names

_HOME = f"subscriptions/{SUBSCRIPTION}/resourcegroups/{RESOURCE_GROUP}/workspaces/{WORKSPACE}"


@pytest.fixture
def look(azure: Cloud, tmp_path: Path) -> Look:
    return Look(tmp_path)


def model(folder: Path, text: str = "{}") -> Path:
    (folder / "weights").mkdir(parents=True)
    (folder / "config.json").write_text(text)
    (folder / "weights" / "a.bin").write_bytes(b"abc")
    return folder


def test_a_model_of_a_registry(azure: Cloud, look: Look, tmp_path: Path) -> None:
    azure.put_model(model(tmp_path / "m"), "tiny", "3", registry="azureml")
    reference = {"type": "azureml_registry_model", "name": "tiny", "version": 3, "azureml_client": azure.client}
    assert look.identity(reference) == {"registry model": ["azureml", "tiny", "3"]}
    assert names(look.fetch(reference)) == ["config.json", "weights/a.bin"]
    azure.put_model(model(tmp_path / "n", "[]"), "tiny", "4", registry="azureml")
    newest = {"type": "azureml_registry_model", "config": {"name": "tiny", "label": "latest"}}
    assert look.identity(newest) == {"registry model": ["azureml", "tiny", "4"]}
    assert (look.fetch("azureml://registries/azureml/models/tiny/versions/4") / "config.json").read_text() == "[]"
    for absent, says in (
        ({**reference, "version": "9"}, "tiny:9 in the registry azureml: Not found asset"),
        ({**reference, "registry_name": "none"}, "tiny:3 in the registry none: registry none was not found"),
    ):
        with pytest.raises(ConfigError, match=says):
            look.identity(absent)


def test_a_model_of_the_workspace(azure: Cloud, look: Look, tmp_path: Path) -> None:
    azure.put_model(model(tmp_path / "m"), "own", "1")
    reference = {"type": "azureml_model", "name": "own", "version": "1", "azureml_client": azure.client}
    assert look.identity(reference)["model"][1:] == ["own", "1"]
    assert names(look.fetch(reference)) == ["config.json", "weights/a.bin"]
    azure.faults.add(r"^GET management.*/models/", 403, message="no")
    with pytest.raises(HostError, match="permission denied"):
        look.fetch(reference)


def test_the_output_of_a_job(azure: Cloud, look: Look) -> None:
    from azure.ai.ml import Output, command
    from azure.ai.ml.entities import Environment

    from drupe.hosts.azureml.client import ClientConfig, Workspace

    client = Workspace(ClientConfig(**azure.client), Path()).client()
    client.environments.create_or_update(Environment(name="e", version="1", image="x"))
    place = "azureml://datastores/workspaceblobstore/paths/made/"
    run = command(
        name="before",
        command="echo hello > ${{outputs.text}}/hello.txt",
        environment="e:1",
        compute="cpu-cluster",
        outputs={"text": Output(type="uri_folder", path=place)},
    )
    reference = {"type": "azureml_job_output", "job_name": "before", "output_name": "text"}
    reference["azureml_client"] = azure.client
    azure.queued = True
    client.jobs.create_or_update(run)
    with pytest.raises(ConfigError, match="expected one that is completed"):
        look.identity(reference)
    azure.queued = False
    while client.jobs.get("before").status != "Completed":
        pass
    assert list(look.identity(reference)["files"]) == ["made/hello.txt"]
    assert names(look.fetch(reference)) == ["hello.txt"]
    with pytest.raises(ConfigError, match="no output 'other'; it has: text"):
        look.fetch({**reference, "output_name": "other"})


@pytest.mark.parametrize(
    ("store", "box"), [("workspaceblobstore", "azureml-blobstore"), ("lake", "lake"), ("workspacefilestore", "share")]
)
def test_files_folders_and_patterns_of_datastores(store: str, box: str, azure: Cloud, look: Look) -> None:
    root = azure.storage.path("labstore", box)
    for name in ("rows/a.jsonl", "rows/b.jsonl", "rows/deep/c.jsonl", "rows/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)

    def at(path: str) -> dict[str, Any]:
        place = {"datastore_name": store, "relative_path": path, "azureml_client": azure.client}
        return {"type": "azureml_datastore", "config": place}

    one = look.fetch(at("rows/a.jsonl"))
    assert one.name == "a.jsonl" and one.read_text() == "rows/a.jsonl"
    assert names(look.fetch(at("rows"))) == ["a.jsonl", "b.jsonl", "deep/c.jsonl", "notes.txt"]
    assert names(look.fetch(at("rows/*.jsonl"))) == ["a.jsonl", "b.jsonl"]
    assert names(look.fetch(at("rows/**/*.jsonl"))) == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    before = look.identity(at("rows"))
    assert look.identity(at("rows")) == before
    (root / "rows" / "a.jsonl").write_text("other")
    assert look.identity(at("rows")) != before
    assert names(look.fetch(f"azureml://{_HOME}/datastores/{store}/paths/rows/*.jsonl")) == ["a.jsonl", "b.jsonl"]
    with pytest.raises(ConfigError, match="has nothing at none; expected a file, a folder or a pattern"):
        look.identity(at("none"))


_FETCH = """
import json
import subprocess
import sys
from pathlib import Path
from drupe.core.context import JobContext
from drupe.core.registry import Registry
from drupe.core.sources import find_source

here = Path().absolute()
address = "abfs://lake@labstore.dfs.core.windows.net/rows"
source = find_source(Registry.discover({"autoload": False}), address, here)
context = JobContext(here, here, workflow_dir=here)
for name, what in (("glob", f"{address}/*.jsonl"), ("folder", address), ("file", f"{address}/a.jsonl")):
    (here / name).mkdir()
    source.fetch(what, {}, here / name, context)
print(json.dumps(sorted(source.identity(f"{address}/*.jsonl", {}, here))))
"""


def test_addresses_that_fsspec_opens(azure: Cloud, look: Look) -> None:
    root = azure.storage.path("labstore", "lake")
    (root / "rows").mkdir(parents=True)
    (root / "rows" / "a.jsonl").write_text('{"a": 1}\n')
    (root / "rows" / "b.jsonl").write_text('{"a": 2}\n')
    # In a process of its own: adlfs' transport looks for certificates when it is imported.
    done = subprocess.run([sys.executable, "-c", _FETCH], cwd=look.folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["a.jsonl", "b.jsonl"]
    assert names(look.folder / "glob") == ["rows/a.jsonl", "rows/b.jsonl"]
    assert names(look.folder / "folder") == ["rows/a.jsonl", "rows/b.jsonl"]
    assert json.loads((look.folder / "file" / "a.jsonl").read_text()) == {"a": 1}


def test_what_can_be_told_without_asking(look: Look, tmp_path: Path, azure: Cloud) -> None:
    def check(reference: Any) -> list[str]:
        return [str(fault) for fault in look.source(reference).check(reference, tmp_path)]

    assert check({"type": "azureml_registry_model", "name": "m", "version": "1"}) == []
    (both,) = check({"type": "azureml_registry_model", "name": "m"})
    assert "give version or label" in both
    (form,) = check("azureml://somewhere/else")
    assert "expected a form like azureml://registries/" in form
    (client,) = check({"type": "azureml_datastore", "datastore_name": "d", "relative_path": "p"})
    assert "names no workspace" in client
    (tmp_path / "config.json").write_text(json.dumps({"subscription_id": "s", "resource_group": "g"}))
    files = {"type": "azureml_datastore", "datastore_name": "d", "relative_path": "p"}
    (config,) = check({**files, "azureml_client": {"aml_config_path": "config.json"}})
    assert "is no workspace's config.json" in config
    (tmp_path / "config.json").write_text(json.dumps({**azure.client, "workspace_name": "w"}))
    assert check({**files, "azureml_client": {"aml_config_path": "config.json"}}) == []
    (secret,) = check({**files, "azureml_client": {**azure.client, "default_auth_params": {"client_secret": "x"}}})
    assert "a secret does not belong here" in secret


def test_a_system_of_the_older_form_is_read(tmp_path: Path) -> None:
    from drupe.core.workflow.read import examine

    registry = Registry.discover({"autoload": False})
    (tmp_path / "conda.yaml").write_text("dependencies: [python]\n")
    client = {"subscription_id": "s", "resource_group": "g", "workspace_name": "w", "keyvault_name": "k"}
    docker = {"base_image": "image", "conda_file_path": "conda.yaml"}
    config = {"aml_compute": "c", "aml_docker_config": docker, "accelerators": ["gpu"], "hf_token": True}
    config |= {"is_dev": True, "instance_count": 1, "azureml_client_config": client}
    document = {
        "input_model": {"type": "HfModel", "model_path": "azureml://registries/azureml/models/m/versions/1"},
        "systems": {"aml": {"type": "AzureML", "config": config}},
        "passes": {"merge": {"type": "ModelBuilder", "config": {"precision": "int4"}}},
        "engine": {"host": "aml", "target": "aml"},
    }
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(document))
    found = examine(path, registry)
    assert [str(fault) for fault in found.faults] == []
    assert found.workflow is not None
    assert found.workflow.systems["aml"].config["azureml_client"] == client
    told = {notice.path for notice in found.notices}
    assert {"systems.aml.is_dev", "systems.aml.instance_count", "systems.aml.azureml_client_config"} <= told
    docker["conda_file_path"] = "elsewhere.yaml"
    path.write_text(json.dumps(document))
    (fault,) = examine(path, registry).faults
    assert fault.path == "systems.aml.aml_docker_config.conda_file_path" and fault.kind == "needs"
