"""The environment of the jobs: a curated or existing one, or one made of an image, a conda file or a build context.

What is made is registered once, under a version that is the digest of all that goes into it. What a label means is
asked once, and from then on it is the version that counts.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from drupe.core.config import FileRef, PluginConfig
from drupe.core.digests import digest_of
from drupe.core.errors import Fault, HostError
from drupe.hosts.azureml.assets import asset
from drupe.hosts.azureml.build_context import check_recipe, context_files, file_digests, send_context
from drupe.hosts.azureml.client import Absent, Workspace

__all__ = ["DockerSettings", "EnvironmentSettings", "JobEnvironment", "environment_faults"]

_REGISTRY = re.compile(
    r"azureml://registries/(?P<registry>[^/]+)/environments/(?P<name>[^/]+)"
    r"(/(versions/(?P<version>[^/]+)|labels/(?P<label>[^/]+)))?"
)
_SHORT = re.compile(r"azureml:(?P<name>[^:@/]+)(:(?P<version>[^:@/]+)|@(?P<label>[^:@/]+))?")
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
    dockerfile: str | None = Field(None, description="The file in it that says how; default: Dockerfile.")
    name: str | None = Field(None, description="The name that the environment is registered under; default: drupe.")
    version: str | None = Field(None, description="Its version; default: a digest of what goes into it.")

    @field_validator("version", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _one_origin(self) -> DockerSettings:
        if self.build_context_path is not None and (self.base_image or self.conda_file_path):
            raise ValueError("build_context_path makes the whole image; leave base_image and conda_file_path out")
        if self.dockerfile is not None:
            if self.build_context_path is None:
                raise ValueError("dockerfile is a file in build_context_path; give that folder, or leave it out")
            path = PurePosixPath(self.dockerfile)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"dockerfile is {self.dockerfile}; expected a path inside build_context_path")
        if not (self.build_context_path or self.base_image or self.conda_file_path):
            raise ValueError("give base_image, conda_file_path or build_context_path")
        return self

    @property
    def recipe(self) -> str:
        """The Dockerfile's path in the build context."""
        return self.dockerfile or "Dockerfile"


class EnvironmentSettings(PluginConfig):
    """`aml_environment_config`: an environment that is there already."""

    name: str = Field(description="Its name, or azureml://registries/REGISTRY/environments/NAME/versions/VERSION.")
    version: str | None = Field(None, description="Its version.")
    label: str | None = Field(None, description="Or a label: latest.")

    @field_validator("version", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _one_version(self) -> EnvironmentSettings:
        found = self._named()
        inside = found.get("version") or found.get("label")
        if inside and (self.version or self.label):
            raise ValueError("the name holds the version already; leave version and label out")
        if not inside and bool(self.version) == bool(self.label):
            raise ValueError("give version or label")
        return self

    def _named(self) -> Mapping[str, str | None]:
        if self.name.startswith("azureml:"):
            found = (_REGISTRY if self.name.startswith("azureml://") else _SHORT).fullmatch(self.name)
            if found is None:
                form = "azureml://registries/REGISTRY/environments/NAME/versions/VERSION"
                raise ValueError(f"the name is {self.name}; expected {form}, azureml:NAME:VERSION, or a plain name")
            return found.groupdict()
        return {"name": self.name}

    @property
    def parts(self) -> tuple[str | None, str, str | None, str | None]:
        """Registry (None for the workspace), name, version and label (one of the two None)."""
        found = self._named()
        version, label = found.get("version") or self.version, found.get("label") or self.label
        return found.get("registry"), str(found["name"]), version, label


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
        try:
            check_recipe(Path(docker.build_context_path), docker.recipe)
        except HostError as error:
            yield Fault("aml_docker_config.build_context_path", str(error))


class JobEnvironment:
    """The environment of a system. What is asked of the service is asked once. Safe to use from several threads."""

    def __init__(
        self, workspace: Workspace, docker: DockerSettings | None, existing: EnvironmentSettings | None
    ) -> None:
        self._workspace = workspace
        self._docker = docker
        self._existing = existing
        self._lock = threading.Lock()
        self._asked = False
        self._known: str | None = None
        self._made: str | None = None

    def use(self, environment: str) -> None:
        """Let the name that the workflow has mean this, as `named` told it in another process of the run."""
        with self._lock:
            if self._existing is not None:
                self._known, self._asked = environment, True

    def named(self) -> str | None:
        """Return the environment that the workflow names, with its version; None where it is to be made.

        Raises HostError.
        """
        with self._lock:
            if not self._asked:
                self._known = self._look()
                self._asked = True
            return self._known

    def id(self) -> str:
        """Return the environment as a job names it, registering it where it is not there yet. Raises HostError."""
        named = self.named()
        if named is not None:
            return named
        if self._docker is None:
            message = "the system has no environment; give aml_docker_config or aml_environment_config"
            raise HostError(message, retry=False)
        with self._lock:
            if self._made is None:
                self._made = _registered(self._workspace, self._docker)
            return self._made

    def _look(self) -> str | None:
        if self._existing is None:
            return None
        registry, name, version, label = self._existing.parts
        try:
            found = asset(self._workspace, "environment", registry, name, version, label)
        except Absent:
            if self._docker is None:
                raise
            return None  # What to make it of is given as well.
        if registry:
            return f"azureml://registries/{registry}/environments/{found.name}/versions/{found.version}"
        return f"{found.name}:{found.version}"


def _registered(workspace: Workspace, docker: DockerSettings) -> str:
    conda = _conda(docker) if docker.conda_file_path is not None else None
    files = None
    if docker.build_context_path is not None:
        files = context_files(Path(docker.build_context_path), docker.recipe)
    context = file_digests(files) if files is not None else None
    image = docker.base_image or (_DEFAULT_IMAGE if context is None else None)
    name = docker.name or "drupe"
    digest = digest_of([image, conda, context, docker.recipe])[:32]
    version = docker.version or digest
    try:
        workspace.ask(
            f"looking for the environment {name}:{version}", lambda: workspace.client().environments.get(name, version)
        )
    except Absent:
        from azure.ai.ml.entities import BuildContext, Environment

        build = None
        if files is not None:
            address = send_context(workspace, files, f"LocalUpload/{digest}/context")
            build = BuildContext(path=address, dockerfile_path=docker.recipe)
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
