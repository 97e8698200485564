"""Azure ML under the contract that every host must keep; every request goes through the real SDK."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe.core.hosts import Host
from drupe.core.testing import HostContract
from tests.hosts.support import built_in


class TestAzureML(HostContract):
    artifact_bytes = 64 << 20

    @pytest.fixture
    def host(self, system: dict[str, Any], site: Path, tmp_path: Path) -> Iterator[Host]:
        host = built_in("AzureML", tmp_path / "state", **system, environment={"PYTHONPATH": str(site)})
        yield host
        host.close()

    @pytest.fixture
    def failing_host(self, system: dict[str, Any], tmp_path: Path) -> Host:
        return built_in("AzureML", tmp_path / "state", **{**system, "aml_compute": "nowhere"})
