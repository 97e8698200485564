"""Which runtime measures a model: the one that a system names holds for the kinds that it serves."""

from __future__ import annotations

import pytest

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError
from drupe.core.registry import Registry
from drupe.core.serving import find_runtime, serving

CPU = Accelerator()


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover({"autoload": False})


def test_a_named_runtime_and_its_options_hold_for_the_kinds_that_it_serves(registry: Registry) -> None:
    options = {"graph_optimization": "all"}
    entry, given = serving(registry, "onnx", CPU, "IsolatedORT", options)
    assert (entry.spec.name, given) == ("IsolatedORT", options)
    # The source model, which goals compare with, may be of another kind.
    entry, given = serving(registry, "hf", CPU, "IsolatedORT", options)
    assert (entry.spec.name, given) == ("hf", {})


def test_a_runtime_that_serves_by_name_only_does_not_stand_beside_others(registry: Registry) -> None:
    assert find_runtime(registry, "onnx", CPU).spec.name == "onnx"
    with pytest.raises(ConfigError, match="the runtime 'IsolatedORT' does not serve hf models"):
        find_runtime(registry, "hf", CPU, "IsolatedORT")
