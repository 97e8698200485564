"""Which values are searched: marked ones, in every form, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drupe.core.config import Choice, FloatRange, IntRange, Ordered
from drupe.core.study import StudySettings
from drupe.core.workflow.findings import Findings
from drupe.core.workflow.markers import candidates, find_markers, is_marker, marker_of, normalised, range_of, replaced
from drupe.core.workflow.model import Workflow
from drupe.core.workflow.read import Examination
from tests.core.workflow.plugins import base_document, faults

Look = Callable[..., Examination]
Read = Callable[..., Workflow]


def tune(**config: Any) -> dict[str, Any]:
    return {"tune": {"type": "LoRA", "train_data_config": "tone", **config}}


def searched(workflow: Workflow, name: str = "tune") -> dict[str, Any]:
    config = workflow.passes[name].alternatives[0].config
    return {".".join(path): range_of(marker) for path, marker in find_markers(config)}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"search": [4, 8]}, Choice(4, 8)),
        ({"search": [4, 8], "ordered": True}, Ordered(4, 8)),
        ({"search": {"low": 4, "high": 64, "log": True}}, IntRange(4, 64, log=True)),
        ({"search": {"low": 4, "high": 64, "step": 4}}, IntRange(4, 64, step=4)),
        ({"search": True}, IntRange(4, 64, log=True)),
        ("SEARCHABLE_VALUES", IntRange(4, 64, log=True)),
        ([4, 8], Choice(4, 8)),
    ],
)
def test_forms_of_a_searched_parameter(read: Read, value: Any, expected: Any) -> None:
    workflow = read(base_document(passes=tune(r=value)))
    assert searched(workflow) == {"r": expected}
    assert workflow.search == StudySettings()


def test_a_range_of_numbers_is_a_float_range(read: Read) -> None:
    workflow = read(base_document(passes=tune(alpha={"search": {"low": 1e-5, "high": 1e-3, "log": True}})))
    assert searched(workflow) == {"alpha": FloatRange(1e-5, 1e-3, log=True)}


def test_values_inside_a_mapping_are_searched_as_well(read: Read) -> None:
    workflow = read(base_document(passes=tune(training_args={"learning_rate": "SEARCHABLE_VALUES"})))
    assert searched(workflow) == {"training_args.learning_rate": Ordered(1e-5, 1e-4)}


def test_default_value_means_the_default(read: Read) -> None:
    workflow = read(base_document(passes=tune(r="DEFAULT_VALUE")))
    assert "r" not in workflow.passes["tune"].alternatives[0].config and workflow.search is None


def test_a_list_where_a_list_is_a_value_is_no_search(read: Read) -> None:
    workflow = read(base_document(passes=tune(target_modules=["q_proj", "v_proj"])))
    assert searched(workflow) == {} and workflow.search is None


def test_a_mapping_with_a_key_search_among_others_is_a_value(read: Read) -> None:
    options = {"model": {}, "search": {"max_length": 4}}
    passes = {
        "b": {"type": "ModelBuilder", "extra_options": {"config": options, "only": {"search": {"max_length": 4}}}}
    }
    assert searched(read(base_document(passes=passes)), "b") == {}


def test_nothing_marked_is_not_searched_and_told(read: Read) -> None:
    workflow = read(base_document(search_strategy=True))
    assert workflow.search == StudySettings()
    assert workflow.unmarked == ("tune.r", "tune.rounds", "tune.training_args.learning_rate", "build.precision")


def test_alternatives_and_flows_are_searched(read: Read) -> None:
    passes = {**tune(), "b": [{"type": "ModelBuilder"}, {"type": "OnnxConversion"}]}
    assert read(base_document(passes=passes)).search == StudySettings()
    flows = read(base_document(pass_flows=[["tune", "build"], ["tune", "merge", "build"]], search_strategy=False))
    assert flows.search == StudySettings() and len(flows.flows) == 2


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"r": {"search": []}}, "passes.tune.r.search: an empty list"),
        ({"r": {"search": [4, 4]}}, "passes.tune.r.search: 4 is listed twice"),
        ({"r": {"search": [4, "many"]}}, 'passes.tune.r: search value "many"; expected a whole number'),
        ({"r": ["few", 4]}, 'passes.tune.r: "few"; expected a whole number'),
        ({"r": {"search": {"low": 0, "high": 8}}}, "passes.tune.r: 0; expected a number at least 1"),
        ({"r": {"search": {"low": 4}}}, "passes.tune.r.search: 'high' is not given"),
        ({"r": {"search": {"low": 8, "high": 4}}}, "low 8 is not below high 4"),
        ({"r": {"search": {"low": 4, "hihg": 8}}}, "did you mean 'high'?"),
        ({"r": {"search": {"low": 4, "high": "8"}}}, 'passes.tune.r.search.high: "8"; expected a number'),
        ({"r": {"search": {"low": 4, "high": 8, "step": 9}}}, "a step between 0 and 4"),
        ({"r": {"search": 4}}, "passes.tune.r.search: 4; expected a list of values"),
        ({"r": {"search": [4], "ordered": 1}}, "passes.tune.r.ordered: 1; expected true or false"),
        ({"alpha": {"search": True}}, "passes.tune.alpha: no range is declared for this parameter"),
        ({"alpha": {"search": {"low": 0, "high": 1, "log": True}}}, "a number above 0 where log is true"),
        ({"r": {"search": [4, 8], "when": {"build.precison": ["int4"]}}}, "when.build.precison: is not searched"),
        ({"r": {"search": [4, 8], "when": []}}, "passes.tune.r.when: []; expected a mapping"),
        ({"r": {"search": [4, 8], "when": {"r": [4]}}}, "passes.tune.r.when.r: is not searched"),
        ({"init": {"search": ["gaussian", "gausian"]}}, "did you mean 'gaussian'?"),
        ({"train_data_config": {"search": ["tone", "tune"]}}, "no data config is named 'tune'"),
    ],
)
def test_a_wrong_search_is_told(look: Look, config: dict[str, Any], expected: str) -> None:
    result = look(base_document(passes=tune(**config)))
    assert any(expected in text for text in faults(result)), result.faults


def test_a_condition_may_name_a_searched_value_of_any_pass(look: Look) -> None:
    passes = {
        **tune(r={"search": [4, 8], "when": {"build.precision": ["int4"]}}, alpha={"search": [1, 2], "when": {"r": 4}}),
        "build": {"type": "ModelBuilder", "precision": {"search": ["int4", "int8"]}},
    }
    assert look(base_document(passes=passes)).faults == ()


def test_marked_values_with_the_search_turned_off_are_a_fault(look: Look) -> None:
    result = look(base_document(passes=tune(r=[4, 8]), search_strategy=False))
    assert faults(result) == [
        "passes.tune.r: is marked to be searched, and search_strategy is false; expected one value; "
        "or leave search_strategy out"
    ]


def test_values_that_go_together_in_some_combination_are_no_fault(look: Look, registry: Any) -> None:
    from pydantic import model_validator

    from drupe.core.config import PassConfig
    from drupe.core.passes import Pass
    from drupe.core.registry import Plugin
    from drupe.core.specs import PassSpec
    from tests.core.workflow import plugins

    class Paired(Pass):
        class Config(PassConfig):
            method: str = "a"
            bits: int = 4

            @model_validator(mode="after")
            def _goes(self) -> Paired.Config:
                if (self.method, self.bits) in (("a", 4), ("c", 8)):
                    raise ValueError("method a needs 8 bits, method c 4")
                return self

    plugins.Paired = Paired  # type: ignore[attr-defined]
    spec = PassSpec(name="Paired", target="tests.core.workflow.plugins:Paired")
    registry.add("drupe_passes", [spec], Plugin("p", "p", "p", "1"))
    searched_values = {"type": "Paired", "method": {"search": ["a", "b"]}, "bits": {"search": [4, 8]}}
    assert look(base_document(passes={"p": searched_values})).faults == ()
    alone = {"type": "Paired", "method": "a", "bits": 4}
    assert faults(look(base_document(passes={"p": alone}))) == ["passes.p: method a needs 8 bits, method c 4"]


def test_a_data_config_inside_a_pass_gets_a_name(read: Read) -> None:
    inner = {"type": "HuggingfaceContainer", "load_dataset_config": {"data_name": "x"}}
    workflow = read(base_document(passes={"tune": {"type": "LoRA", "train_data_config": inner}}))
    assert workflow.passes["tune"].alternatives[0].config["train_data_config"] == "tune_train_data_config"
    assert workflow.data["tune_train_data_config"].config == {"load_dataset_config": {"data_name": "x"}}


ranges = st.one_of(
    st.lists(st.integers(), min_size=1, max_size=5, unique=True).map(lambda v: Choice(*v)),
    st.lists(st.text(), min_size=1, max_size=5, unique=True).map(lambda v: Ordered(*v)),
    st.tuples(st.integers(1, 50), st.integers(51, 99), st.booleans()).map(lambda t: IntRange(*t)),
    st.tuples(st.floats(0.1, 1), st.floats(2, 9), st.booleans()).map(lambda t: FloatRange(*t)),
)


@given(ranges)
def test_any_range_survives_being_written_and_read(over: Any) -> None:
    findings = Findings()
    marker = normalised(marker_of(over), None, "p", findings)
    assert findings.faults == [] and marker is not None
    assert range_of(marker) == over
    assert normalised(marker, None, "p", findings) == marker


@given(st.recursive(st.integers() | st.text(max_size=3), lambda v: st.dictionaries(st.text(max_size=4), v, max_size=4)))
def test_a_config_without_markers_is_left_as_it_is(config: Any) -> None:
    if isinstance(config, dict) and not list(find_markers(config)):
        assert replaced(config, {}) == config


@given(st.dictionaries(st.sampled_from("abc"), ranges, min_size=1))
def test_every_marker_is_found_and_replaced(over: dict[str, Any]) -> None:
    config = {"x": {name: marker_of(item) for name, item in over.items()}, "kept": [1]}
    found = dict(find_markers(config))
    assert set(found) == {("x", name) for name in over}
    values = {path: candidates(marker)[0] for path, marker in found.items()}
    plain = replaced(config, values)
    assert plain["kept"] == [1] and not any(is_marker(value) for value in plain["x"].values())
    assert plain["x"] == {path[1]: value for path, value in values.items()}
