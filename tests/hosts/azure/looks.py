"""Looks at references through their source, as a run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drupe.core.context import JobContext
from drupe.core.registry import Registry
from drupe.core.sources import ModelSource, find_source
from tests.hosts.azure.cloud import Cloud

__all__ = ["Look", "names"]


class Look:
    """A workflow's folder, and what the references in its file name."""

    def __init__(self, folder: Path) -> None:
        self.registry, self.folder = Registry.discover({"autoload": False}), folder
        self.context = JobContext(folder, folder, workflow_dir=folder)
        self.count = 0

    def source(self, reference: Any) -> ModelSource:
        return find_source(self.registry, reference, self.folder)

    def identity(self, reference: Any) -> Any:
        return self.source(reference).identity(reference, {}, self.folder)

    def fetch(self, reference: Any) -> Path:
        self.count += 1
        return self.source(reference).fetch(reference, {}, self.folder / f"into-{self.count}", self.context)

    def context_of(self, azure: Cloud, address: str) -> dict[str, Any]:
        """Return an address as it stands in a workflow with a client."""
        return {"type": "azureml_uri", "uri": address, "azureml_client": azure.client}


def names(folder: Path) -> list[str]:
    """Return the files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
