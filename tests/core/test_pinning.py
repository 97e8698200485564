"""What may move in references is replaced by what it means, once a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from drupe.core.errors import Fault
from drupe.core.pinning import Pins
from drupe.core.registry import Registry
from drupe.core.workflow.clients import told_once
from drupe.testing import isolated_registry, register

__all__ = ["isolated_registry"]

_SOURCE = """
from drupe import ModelSource, ModelSourceSpec, hookimpl

asked = []


class Movable(ModelSource):
    def pinned(self, reference, workflow_dir):
        asked.append(reference)
        if isinstance(reference, str):
            return reference.replace("@latest", f":{len(asked)}")
        return {**reference, "label": f"{len(asked)}"}


@hookimpl
def drupe_model_sources():
    return [ModelSourceSpec(name="movable", target="movable:Movable", schemes=("move",), resource_types=("moving",))]
"""


def test_a_reference_means_the_same_to_the_end_of_a_run(
    isolated_registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "movable.py").write_text(_SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    register(isolated_registry, "movable")
    pins = Pins(isolated_registry, tmp_path)
    typed = {"type": "Moving", "label": "latest", "client": {"name": "w"}}
    config = {"files": ["move://rows@latest", "rows.jsonl", "https://a/b"], "model": typed, "type": "other", "n": 3}
    first = pins.pinned(config)
    assert first == {
        "files": ["move://rows:1", "rows.jsonl", "https://a/b"],
        "model": {**typed, "label": "2"},
        "type": "other",
        "n": 3,
    }
    assert pins.pinned(config) == first and pins.pinned(typed) == first["model"]
    assert config["files"][0] == "move://rows@latest"  # type: ignore[index]
    # What only says how to reach it is no evidence.
    assert pins.moved() == [
        {"reference": "move://rows@latest", "means": "move://rows:1"},
        {"reference": {"type": "Moving", "label": "latest"}, "means": {"type": "Moving", "label": "2"}},
    ]
    assert Pins(isolated_registry, tmp_path).pinned("move://rows@latest") == "move://rows:3"


def test_a_fault_of_the_workflows_client_is_told_where_it_is_written() -> None:
    document = {
        "azureml_client": {"extra": 1},
        "systems": {"a": {}, "b": {}, "own": {"azureml_client": {"extra": 2}}},
    }
    faults = [
        Fault("systems.a.azureml_client.extra", "unknown key"),
        Fault("systems.b.azureml_client.extra", "unknown key"),
        Fault("systems.own.azureml_client.extra", "unknown key"),
        Fault("systems.a.aml_compute", "missing"),
        Fault("input_model.model_path", "azureml://m: azureml_client.extra: unknown key"),
        Fault("data_configs.0", "something else"),
    ]
    told = [fault.path for fault in told_once(faults, document)]
    assert told == [
        "azureml_client.extra", "systems.own.azureml_client.extra", "systems.a.aml_compute", "data_configs.0",
    ]  # fmt: skip
