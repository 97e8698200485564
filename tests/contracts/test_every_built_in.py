"""Everything that Drupe contributes, under the contract of its kind, as `drupe plugins check` runs it.

What is declared is checked of all; the passes and runtimes that work with their defaults alone also run on tiny models
(slow). Those that need more are tested in the modules beside this one and with their own tests.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from drupe.core.hosts import OTHER_INTERPRETER
from drupe.core.registry import Registry
from drupe.core.testing.check import contract_of

_registry = Registry.discover({"autoload": False})
_entries = [entry for entry in _registry.entries if entry.plugin.distribution == "drupe"]


_RUN_WITH_DEFAULTS = ("ModelBuilder", "OnnxConversion", "OnnxDynamicQuantization")
"""Passes that a tiny model and their defaults are enough for; the others have contract tests of their own."""


def _title(prefix: str, hook: str, name: str) -> str:
    return f"{prefix}_{hook.removeprefix('drupe_')}_{name}".replace("-", "_")


for _entry in _entries:
    _declared = contract_of(_registry, _entry, run=False)
    globals()[_title("TestDeclared", _entry.hook, _entry.spec.name)] = _declared
    if _entry.hook == "drupe_runtimes" or _entry.spec.name in _RUN_WITH_DEFAULTS:
        _running = type("Running", (contract_of(_registry, _entry, run=True),), {})
        globals()[_title("TestRunning", _entry.hook, _entry.spec.name)] = pytest.mark.slow(_running)


@pytest.fixture(scope="module", autouse=True)
def _a_named_interpreter() -> Iterator[None]:
    """Runtimes that a host of their own names open models in the Python that it tells: this one here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(OTHER_INTERPRETER, json.dumps({"python": sys.executable, "environment": {}}))
        yield


def test_there_is_something_of_every_kind() -> None:
    contributed = {entry.hook for entry in _entries}
    assert contributed >= {
        "drupe_passes", "drupe_data_containers", "drupe_hosts", "drupe_accelerators", "drupe_runtimes",
        "drupe_metrics", "drupe_model_kinds", "drupe_model_sources", "drupe_studies", "drupe_samplers",
    }  # fmt: skip
