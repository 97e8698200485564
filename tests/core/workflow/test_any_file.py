"""Whatever stands in a file, reading and planning end in findings, never in a crash."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drupe.core.errors import ConfigError
from drupe.core.plan import build_plan
from drupe.core.workflow.read import examine
from tests.core.workflow.plugins import base_document, make_registry

OLDER = {
    "input_model": {
        "type": "PyTorchModel",
        "config": {"hf_config": {"model_name": "m", "dataset": {"data_name": "d"}}},
    },
    "systems": {"s": {"type": "LocalSystem", "config": {"accelerators": ["gpu"]}}},
    "data_configs": {
        "d": {
            "type": "HuggingfaceContainer",
            "user_script": "s.py",
            "components": {"load_dataset": {"type": "t", "params": {"a": 1}}},
            "params_config": {"data_name": "x", "component_kwargs": {"pre_process_data": {"dataset_type": "pair"}}},
            "post_process_data_config": {"type": "p"},
        }
    },
    "evaluators": {"e": {"metrics": [{"type": "accuracy", "data_config": "d", "sub_types": [{"name": "f1_score"}]}]}},
    "passes": {
        "t": {"type": "LoRA", "config": {"lora_r": 8, "train_data_config": "d", "training_args": {}}},
        "b": [{"type": "GenAIModelExporter", "precision": ["int4", "int8"]}, {"type": "OnnxConversion"}],
    },
    "pass_flows": [["t", "b"], ["b"]],
    "engine": {
        "execution_providers": ["CUDAExecutionProvider"],
        "target": {"type": "LocalSystem"},
        "search_strategy": {"search_algorithm": "exhaustive", "search_algorithm_config": {"num_samples": 2}},
    },
}
JUNK: list[Any] = [
    None, True, 3, 1.5, "x", "", [], {}, [1], [[]], {"a": 1}, {"search": [1, 2]}, {"search": True}, {"type": "x"},
    "<place_holder>", ["x"], [{"name": "x"}], {"config": {}}, {"config": 3}, {"search": {"low": 1}},
]  # fmt: skip
REGISTRY = make_registry()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, item in inner for place in places(item, (*path, key))]


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    document = copy.deepcopy(draw(st.sampled_from([OLDER, base_document()])))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(document) or [("passes",)]))
        owner: Any = document
        for key in path[:-1]:
            owner = owner[key]
        junk = copy.deepcopy(draw(st.sampled_from(JUNK)))
        what = draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "remove" and isinstance(owner, dict):
            owner.pop(path[-1], None)
        elif what == "add" and isinstance(owner, dict):
            owner["extra"] = junk
        else:
            owner[path[-1]] = junk
    return document


@given(damaged())
@settings(deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_told_and_never_crashes(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_text(json.dumps(document))
    found = examine(path, REGISTRY)
    assert found.workflow is not None
    if not found.of_kind("fault") and not found.of_kind("missing"):
        try:
            build_plan(found.workflow, REGISTRY)
        except ConfigError as error:
            assert str(error)


@pytest.mark.parametrize("left", ["<place_holder>", {"type": "<place_holder>", "model_path": "m"}])
def test_a_model_that_is_left_open_is_told_when_chains_are_planned(tmp_path: Path, left: Any) -> None:
    path = tmp_path / "open.json"
    path.write_text(json.dumps({"input_model": left, "passes": {"c": {"type": "OnnxConversion"}}}))
    found = examine(path, REGISTRY)
    assert found.workflow is not None
    with pytest.raises(ConfigError, match="a place holder"):
        build_plan(found.workflow, REGISTRY)


def test_a_pass_that_is_left_open_is_told_when_chains_are_planned(tmp_path: Path) -> None:
    path = tmp_path / "open.json"
    model = {"type": "HfModel", "model_path": "some/model"}
    path.write_text(json.dumps({"input_model": model, "passes": {"c": {"type": "<place_holder>"}}}))
    found = examine(path, REGISTRY)
    assert found.workflow is not None
    with pytest.raises(ConfigError, match=r"passes\.c\.type: a place holder"):
        build_plan(found.workflow, REGISTRY)


@pytest.mark.parametrize("inner", [True, {"low": 1}])
def test_a_faulty_range_inside_what_is_nearly_one_is_told(tmp_path: Path, inner: Any) -> None:
    document = base_document()
    document["passes"]["build"]["precision"] = {"search": inner, "extra": {"search": {"low": 1}}}
    path = tmp_path / "nearly.json"
    path.write_text(json.dumps(document))
    assert any(fault.path.startswith("passes.build.precision") for fault in examine(path, REGISTRY).faults)
