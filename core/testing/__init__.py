"""The contract kit: what a plugin's own tests import, also as `drupe.testing`.

Contract classes hold the tests that every plugin of a kind must pass; an author subclasses one and overrides its
fixtures. The built-ins are tested by the same classes.
"""

# ruff: noqa: E402  (pytest must know of the modules whose asserts it explains before they are imported)
from __future__ import annotations

try:
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("drupe.testing needs pytest; pip install 'drupe[test]'", name="pytest") from error

pytest.register_assert_rewrite("drupe.core.testing")

from drupe.core.testing.hosts import HostContract, JobFolders
from drupe.core.testing.sites import install_plugin

__all__ = ["HostContract", "JobFolders", "install_plugin"]
