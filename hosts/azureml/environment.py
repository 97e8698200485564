"""The environment of the jobs: a curated or existing one, or one made of an image, a conda file or a build context.

What is made is registered once, under a version that is the digest of all that goes into it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from drupe.core.config import FileRef, PluginConfig
from drupe.core.digests import digest_of
from drupe.core.errors import Fault, HostError
from drupe.core.stat_cache import path_identity
from drupe.hosts.azureml.client import Absent, Workspace

__all__ = ["DockerSettings", "EnvironmentSettings", "environment_faults", "environment_id"]

_CURATED = re.compile(r"azureml://registries/[^/]+/environments/[^/]+/(versions|labels)/[^/]+")
_DEFAULT_IMAGE = "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04:latest"


class DockerSettings(PluginConfig):
    """`aml_docker_config`: what to make the environment of."""

    base_image: str | None = Field(None, description="The image; default with a conda file: Azure ML's plain one.")
    conda_file_path: FileRef | None = Field(
        None, description="A conda environment file; drupe must be among its pip lines."
    )
    build_context_path: FileRef | None = Field(
        None, description="A folder to build the image from, instead of base_image."
    )
    dockerfile: str = Field("Dockerfile", description="The file in it that says how.")
    name: str = Field("drupe", description="The name that the environment is registered under.")
    version: str | None = Field(None, description="Its version; default: a digest of what goes into it.")

    @model_validator(mode="after")
    def _one_origin(self) -> DockerSettings:
        if self.build_context_path is not None and (self.base_image or self.conda_file_path):
            raise ValueError("build_context_path makes the whole image; leave base_image and conda_file_path out")
        if not (self.build_context_path or self.base_image or self.conda_file_path):
            raise ValueError("give base_image, conda_file_path or build_context_path")
        return self


class EnvironmentSettings(PluginConfig):
    """`aml_environment_config`: an environment that is there already."""

    name: str = Field(description="Its name, or azureml://registries/REGISTRY/environments/NAME/versions/VERSION.")
    version: str | None = Field(None, description="Its version.")
    label: str | None = Field(None, description="Or a label, such as latest.")

    @model_validator(mode="after")
    def _one_version(self) -> EnvironmentSettings:
        if _CURATED.fullmatch(self.name):
            if self.version or self.label:
                raise ValueError("the name holds the version already")
        elif self.name.startswith("azureml:"):
            raise ValueError(
                "expected azureml://registries/REGISTRY/environments/NAME/versions/VERSION, or a plain name"
            )
        elif bool(self.version) == bool(self.label):
            raise ValueError("give version or label")
        return self


def environment_faults(docker: DockerSettings | None) -> Iterator[Fault]:
    """Yield what is wrong with the files of an environment, without asking the service."""
    if docker is None:
        return
    if docker.conda_file_path is not None:
        try:
            _conda(docker)
        except HostError as error:
            yield Fault("aml_docker_config.conda_file_path", str(error))
    if docker.build_context_path is not None:
        folder = Path(docker.build_context_path)
        if not (folder / docker.dockerfile).is_file():
            yield Fault("aml_docker_config.build_context_path", f"{folder} has no {docker.dockerfile}")


def environment_id(workspace: Workspace, docker: DockerSettings | None, existing: EnvironmentSettings | None) -> str:
    """Return the environment as a job names it, registering it where it is not there yet. Raises HostError."""
    if existing is not None:
        if _CURATED.fullmatch(existing.name):
            return existing.name
        what = f"looking for the environment {existing.name}"
        found = workspace.ask(
            what, lambda: workspace.client().environments.get(existing.name, existing.version, label=existing.label)
        )
        return f"{found.name}:{found.version}"
    if docker is None:
        raise HostError("the system has no environment; give aml_docker_config or aml_environment_config", retry=False)
    conda = _conda(docker) if docker.conda_file_path is not None else None
    context = path_identity(Path(docker.build_context_path)) if docker.build_context_path is not None else None
    image = docker.base_image or (_DEFAULT_IMAGE if context is None else None)
    version = docker.version or digest_of([image, conda, context, docker.dockerfile])[:32]
    return _registered(workspace, docker, version, image, conda)


def _registered(workspace: Workspace, docker: DockerSettings, version: str, image: str | None, conda: Any) -> str:
    name = docker.name
    try:
        workspace.ask(
            f"looking for the environment {name}:{version}", lambda: workspace.client().environments.get(name, version)
        )
    except Absent:
        from azure.ai.ml.entities import BuildContext, Environment

        build = None
        if docker.build_context_path is not None:
            build = BuildContext(path=docker.build_context_path, dockerfile_path=docker.dockerfile)
        made = Environment(name=name, version=version, image=image, conda_file=conda, build=build)
        workspace.ask(
            f"registering the environment {name}:{version}",
            lambda: workspace.client().environments.create_or_update(made),
        )
    return f"{name}:{version}"


def _conda(docker: DockerSettings) -> dict[str, Any]:
    path = Path(str(docker.conda_file_path))
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HostError(f"{path} can't be read: {error.strerror}", retry=False) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise HostError(f"{path}{line}: {problem}; expected a conda environment file", retry=False) from error
    if not isinstance(data, dict) or not isinstance(data.get("dependencies"), list):
        raise HostError(f"{path} has no list of dependencies; expected a conda environment file", retry=False)
    unknown = sorted(set(data) - {"name", "channels", "dependencies", "variables", "prefix"})
    if unknown:
        raise HostError(f"{path} has the key {unknown[0]!r}, which conda does not know", retry=False)
    return {key: value for key, value in data.items() if key != "prefix"}
