"""What the tests of hosts share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from drupe.core.hosts import Host
from drupe.core.registry import Registry

__all__ = ["built_in", "needs_program"]


def built_in(name: str, state_dir: Path, **config: object) -> Host:
    """Return a built-in host as the engine makes it."""
    registry = Registry.discover({"autoload": False})
    entry = registry.get("drupe_hosts", name)
    factory = registry.resolve(entry)
    host: Host = factory(entry.spec, factory.Config.model_validate(config), state_dir=state_dir)
    return host


def needs_program(*names: str, package: str) -> pytest.MarkDecorator:
    """Skip where one of the programs is absent, naming the system's package that has it."""
    missing = [
        name for name in names if shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/bin") is None
    ]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed (package {package})")
