"""Registries that hold what a test puts into them and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from drupe.core import registry as registry_module
from drupe.core.errors import PluginError
from drupe.core.plugin_index import GROUP, EntryPoint
from drupe.core.plugin_loading import PluginLoader
from drupe.core.registry import Plugin, Registry

__all__ = ["isolated_registry", "register"]


@pytest.fixture
def isolated_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Registry]:
    """An empty registry that `get_registry()` returns while the test runs; fill it with `register`.

    Drupe's own files ($DRUPE_HOME) lie in the test's folder.
    """
    registry = Registry()
    monkeypatch.setenv("DRUPE_HOME", str(tmp_path / "drupe-home"))
    monkeypatch.setattr(registry_module, "_registries", {"[]": registry})
    monkeypatch.setattr(registry_module, "_current", registry)
    yield registry


def register(
    registry: Registry, module: str | ModuleType, *, distribution: str = "under-test", version: str = "0"
) -> Plugin:
    """Load a plugin module into a registry as discovery would, and return the plugin.

    Raises PluginError that says what is wrong with it.
    """
    name = module if isinstance(module, str) else module.__name__
    point = EntryPoint(GROUP, name.rpartition(".")[2], name, distribution, version)
    loader = PluginLoader()
    if isinstance(module, ModuleType):
        loader.take(module)
    loader.open(loader.opened_by(point))
    record = loader.record(point)
    plugin = Plugin(point.name, name, distribution, version, record["status"], record["error"])
    if plugin.status != "active":
        raise PluginError(f"{plugin} is {plugin.status}: {plugin.error}")
    for hook, specs in record["hooks"].items():
        registry.add(hook, [loader.types[hook].from_json(data) for data in specs], plugin)
    return plugin
