"""The environments of jobs: made of a build context, or named by version or label, of the workspace or a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drupe.core.errors import HostError
from drupe.hosts.azureml.client import ClientConfig, Workspace
from drupe.hosts.azureml.config import AzureMLConfig
from drupe.hosts.azureml.environment import JobEnvironment, environment_faults
from tests.hosts.azure.cloud import Cloud

_UPLOAD = r"^PUT labstore\.blob\S*/LocalUpload/[^?]*$"


class Named:
    """Makes environments, each as a driver of its own would."""

    def __init__(self, azure: Cloud) -> None:
        self._client = azure.client

    def config(self, **parts: Any) -> AzureMLConfig:
        return AzureMLConfig.model_validate({"azureml_client": self._client, "aml_compute": "cpu-cluster", **parts})

    def __call__(self, **parts: Any) -> JobEnvironment:
        config = self.config(**parts)
        workspace = Workspace(ClientConfig(**self._client), Path())
        return JobEnvironment(workspace, config.aml_docker_config, config.aml_environment_config)

    def of(self, folder: Path, **more: Any) -> str:
        return self(aml_docker_config={"build_context_path": str(folder), **more}).id()


@pytest.fixture
def named(azure: Cloud) -> Named:
    return Named(azure)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "lib").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM python:3.11\nCOPY lib /lib\nRUN pip install drupe[azure]\n")
    (folder / "lib" / "a.py").write_text("a = 1\n")
    (folder / ".dockerignore").write_text("*.pyc\n")
    return folder


def test_a_build_context_goes_up_once_and_is_registered_by_its_content(
    azure: Cloud, named: Named, context: Path
) -> None:
    name, _, version = named.of(context).partition(":")
    assert name == "drupe"
    made = azure.assets.get("", "environments", name, version)
    assert made is not None and made["build"]["dockerfilePath"] == "Dockerfile" and not made.get("image")
    place = made["build"]["contextUri"].partition("azureml-blobstore/")[2]
    there = azure.container / place
    assert (there / "Dockerfile").read_text() == (context / "Dockerfile").read_text()
    assert (there / "lib" / "a.py").is_file() and (there / ".dockerignore").is_file()

    sent = azure.faults.count(_UPLOAD)
    assert named.of(context) == f"{name}:{version}"
    assert azure.faults.count(_UPLOAD) == sent
    # What docker leaves out changes the image as much as what it takes in.
    (context / ".dockerignore").write_text("*.pyc\nlib\n")
    assert named.of(context) != f"{name}:{version}"
    (context / "docker").mkdir()
    (context / "Dockerfile").rename(context / "docker" / "gpu")
    other = named.of(context, dockerfile="docker/gpu", name="mine", version=3)
    assert other == "mine:3"
    assert azure.assets.get("", "environments", "mine", "3")["build"]["dockerfilePath"] == "docker/gpu"  # type: ignore[index]


def test_an_upload_that_broke_off_is_not_taken_for_whole(azure: Cloud, named: Named, context: Path) -> None:
    azure.faults.add(
        r"^PUT labstore\.blob\S*/LocalUpload/\S*/lib/a\.py", 403, code="AuthorizationFailure", message="no"
    )
    with pytest.raises(HostError, match=r"uploading a\.py to .*: permission denied \(no\)") as caught:
        named.of(context)
    assert caught.value.retry is False
    refused = azure.faults.add(r"^PUT management.*/environments/", 503)
    _, _, version = named.of(context).partition(":")
    assert refused.hits == 1
    made = azure.assets.get("", "environments", "drupe", version)
    assert made is not None
    there = azure.container / made["build"]["contextUri"].partition("azureml-blobstore/")[2]
    assert (there / "lib" / "a.py").read_text() == "a = 1\n"


def test_a_build_context_that_can_not_be_built_is_told_before_anything_is_sent(
    azure: Cloud, named: Named, context: Path, tmp_path: Path
) -> None:
    def told(folder: Path, **more: Any) -> str:
        with pytest.raises(HostError) as caught:
            named.of(folder, **more)
        assert caught.value.retry is False and "\n" not in str(caught.value)
        config = named.config(aml_docker_config={"build_context_path": str(folder), **more})
        found = [(fault.path, fault.found) for fault in environment_faults(config.aml_docker_config)]
        assert found in ([], [("aml_docker_config.build_context_path", str(caught.value))])
        return str(caught.value)

    assert told(context, dockerfile="Dockerfile.gpu") == (
        f"{context} has no Dockerfile.gpu; it holds Dockerfile: name it as dockerfile"
    )
    (context / "Dockerfile").unlink()
    assert told(context) == f"{context} has no Dockerfile; put it there, or name it as dockerfile"
    assert told(tmp_path / "none").startswith(f"{tmp_path / 'none'} is no folder; expected the folder that holds")
    (context / "Dockerfile").write_text("FROM python:3.11\n")
    (context / ".amlignore").write_text("Docker*\n")
    assert ".amlignore leaves Dockerfile out" in told(context)
    (context / ".amlignore").unlink()
    (context / "gone").symlink_to(tmp_path / "nowhere")
    assert told(context).startswith("gone of the build context can't be read: No such file or directory (")
    assert azure.faults.count(_UPLOAD) == 0


def test_a_label_means_the_version_that_was_registered_last(azure: Cloud, named: Named) -> None:
    for version in ("8", "9", "10"):
        azure.put_environment("team", version)
    azure.put_environment("team", "11", isArchived=True)
    azure.put_environment("acpt", "4", registry="azureml")
    azure.put_environment("acpt", "5", registry="azureml")
    latest = named(aml_environment_config={"name": "team", "label": "latest"})
    assert latest.named() == latest.id() == "team:10"
    # What it meant when it was asked is what it means to the end of the run.
    azure.put_environment("team", "12")
    assert latest.id() == "team:10"
    registry = "azureml://registries/azureml/environments/acpt"
    for config, expected in (
        ({"name": "team", "label": "latest"}, "team:12"),
        ({"name": "team", "version": 9}, "team:9"),
        ({"name": "azureml:team:8"}, "team:8"),
        ({"name": "azureml:team@latest"}, "team:12"),
        ({"name": f"{registry}/labels/latest"}, f"{registry}/versions/5"),
        ({"name": f"{registry}/versions/4"}, f"{registry}/versions/4"),
    ):
        assert named(aml_environment_config=config).id() == expected
    with_both = named(
        aml_environment_config={"name": "none", "version": "1"}, aml_docker_config={"base_image": "drupe:test"}
    )
    # As in Olive: what it is made of counts where the one that is named is not there.
    assert with_both.named() is None and with_both.id().startswith("drupe:")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"name": "team", "label": "prod"}, r"environment team@prod in the workspace: there is no such label; expected "
         r"latest, the only one that Azure ML resolves, or a version instead of a label \(1\)"),
        ({"name": "none", "label": "latest"}, "environment none@latest in the workspace: Not found asset"),
        ({"name": "none", "label": "prod"}, "none@prod in the workspace: the workspace has nothing of that name"),
        ({"name": "gone", "label": "latest"}, "environment gone@latest in the workspace: Asset gone does not exist"),
        ({"name": "team", "version": "2"}, "environment team:2 in the workspace: Not found asset"),
        ({"name": "azureml://registries/none/environments/e/versions/1"}, "e:1 in the registry none: registry none"),
        ({"name": "azureml://registries/azureml/environments/e/versions/1"}, "e:1 in the registry azureml: Not found"),
    ],
)  # fmt: skip
def test_an_environment_that_is_not_there_is_one_message(
    azure: Cloud, named: Named, config: dict[str, Any], says: str
) -> None:
    azure.put_environment("team", "1")
    azure.put_environment("gone", "1", isArchived=True)
    azure.put_environment("other", "1", registry="azureml")
    with pytest.raises(HostError, match=says) as caught:
        named(aml_environment_config=config).id()
    assert caught.value.retry is False and "\n" not in str(caught.value)
