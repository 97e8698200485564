"""A cloud for each test, and this process's way to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.azure.cloud import Cloud, cloud


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A cloud that this process and its children find."""
    pytest.importorskip("azure.ai.ml")
    pytest.importorskip("trustme")
    with cloud(tmp_path / "cloud") as here:
        for name, value in here.environment.items():
            monkeypatch.setenv(name, value)
        yield here


@pytest.fixture
def system(azure: Cloud) -> dict[str, Any]:
    """The config of a system on that cloud."""
    return {
        "azureml_client": azure.client,
        "aml_compute": "cpu-cluster",
        "aml_docker_config": {"base_image": "drupe:test"},
        "poll_seconds": 0.1,
    }
