"""The built-in hosts under the contract that every host must keep."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from drupe.core import registry as registry_module
from drupe.core.hosts import Host
from drupe.core.registry import Registry
from drupe.core.testing import HostContract, contract_site


def built_in(name: str, state_dir: Path, **config: object) -> Host:
    """Return a built-in host as the engine makes it."""
    registry = Registry.discover({"autoload": False})
    entry = registry.get("drupe_hosts", name)
    factory = registry.resolve(entry)
    host: Host = factory(entry.spec, factory.Config.model_validate(config), state_dir=state_dir)
    return host


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("local")
    host = built_in("LocalSystem", folder / "state", environment={"PYTHONPATH": str(contract_site(folder / "site"))})
    yield host
    host.close()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("environment")
    variables = {"PYTHONPATH": str(contract_site(folder / "site"))}
    config = {"python_environment_path": sys.prefix, "environment": variables}
    host = built_in("PythonEnvironment", folder / "state", **config)
    yield host
    host.close()


class TestLocalSystem(HostContract):
    artifact_bytes = 256 << 20

    @pytest.fixture
    def host(self, local: Host) -> Host:
        return local


class TestInProcess(HostContract):
    isolated = False
    artifact_bytes = 64 << 20

    @pytest.fixture
    def host(self, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
        monkeypatch.syspath_prepend(str(site))
        # What is discovered while the site is on the path must not outlive it.
        monkeypatch.setattr(registry_module, "_registries", {})
        monkeypatch.setattr(registry_module, "_current", None)
        host = built_in("LocalSystem", tmp_path / "state", in_process=True)
        yield host
        host.close()
        for name in [name for name in sys.modules if name.partition(".")[0] == "drupe_contract"]:
            del sys.modules[name]


class TestPythonEnvironment(HostContract):
    artifact_bytes = 256 << 20

    @pytest.fixture
    def host(self, environment: Host) -> Host:
        return environment

    @pytest.fixture
    def failing_host(self, tmp_path: Path) -> Host:
        return built_in("PythonEnvironment", tmp_path / "state", python_environment_path=str(tmp_path / "nowhere"))
