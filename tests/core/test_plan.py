"""A plan: the space of a workflow, and chains that are known to fit before any work."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drupe.core.config import Choice, IntRange
from drupe.core.errors import ConfigError
from drupe.core.plan import Plan, build_plan
from drupe.core.registry import Registry
from drupe.core.space import space_size
from drupe.core.study import Dimension, Space
from drupe.core.workflow.read import read_workflow
from tests.core.workflow.plugins import base_document, make_registry

Make = Callable[..., Plan]


@pytest.fixture
def registry() -> Registry:
    return make_registry()


@pytest.fixture
def plan(tmp_path: Path, registry: Registry) -> Make:
    def make(**changes: Any) -> Plan:
        path = tmp_path / "w.json"
        path.write_text(json.dumps(base_document(**changes)))
        return build_plan(read_workflow(path, registry), registry)

    return make


def tune(**config: Any) -> dict[str, Any]:
    return {"type": "LoRA", "train_data_config": "tone", **config}


def build(**config: Any) -> dict[str, Any]:
    return {"type": "ModelBuilder", **config}


def points(space: Space) -> Iterator[dict[str, Any]]:
    """Every point of a finite space, by trying out all combinations."""
    for choice in itertools.product(*((None, *d.over.values) for d in space.dimensions)):  # type: ignore[union-attr]
        point: dict[str, Any] = {}
        for dimension, value in zip(space.dimensions, choice, strict=True):
            if (value is not None) != space.active(dimension, point):
                break
            if value is not None:
                point[dimension.name] = value
        else:
            yield point


def test_a_chain_holds_configs_after_defaults(plan: Make) -> None:
    chain = plan().chain({}, "here")
    assert [(s.name, s.type, s.host, s.where) for s in chain] == [
        ("tune", "LoRA", "here", "passes.tune"),
        ("merge", "MergeAdapterWeights", "here", "passes.merge"),
        ("build", "ModelBuilder", "here", "passes.build"),
    ]
    assert chain[0].config["r"] == 8 and chain[0].config["alpha"] == 16
    assert json.dumps(dict(chain[0].config))


def test_marked_values_are_the_space_and_a_point_fills_them_in(plan: Make) -> None:
    made = plan(passes={"tune": tune(r={"search": [4, 16]}), "build": build(precision={"search": ["int4", "int8"]})})
    assert made.space == Space(
        (Dimension("tune.r", Choice(4, 16)), Dimension("build.precision", Choice("int4", "int8")))
    )
    chain = made.chain({"tune.r": 16, "build.precision": "int8"}, "here")
    assert (chain[0].config["r"], chain[1].config["precision"]) == (16, "int8")


def test_a_nested_value_keeps_its_path(plan: Make) -> None:
    made = plan(passes={"tune": tune(training_args={"learning_rate": {"search": [1e-5, 1e-3]}})})
    [dimension] = made.space.dimensions
    assert dimension.name == "tune.training_args.learning_rate"
    assert made.chain({dimension.name: 1e-3}, "here")[0].config["training_args"]["learning_rate"] == 1e-3


def test_alternatives_are_a_dimension_and_their_values_depend_on_it(plan: Make) -> None:
    made = plan(
        passes={
            "tune": [
                tune(r={"search": [4, 8]}),
                {**tune(), "type": "QLoRA", "double_quant": {"search": [True, False]}},
            ],
            "build": build(),
        }
    )
    assert [(d.name, dict(d.when)) for d in made.space.dimensions] == [
        ("tune", {}),
        ("tune.r", {"tune": [0]}),
        ("tune.double_quant", {"tune": [1]}),
    ]
    assert made.chain({"tune": 1, "tune.double_quant": True}, "here")[0].type == "QLoRA"
    assert space_size(made.space) == 4 == len(list(points(made.space)))


def test_the_same_parameter_of_two_alternatives_is_one_dimension_where_its_values_are_the_same(plan: Make) -> None:
    made = plan(passes={"tune": [tune(r={"search": [4, 8]}), {**tune(r={"search": [4, 8]}), "type": "QLoRA"}]})
    assert [(d.name, dict(d.when)) for d in made.space.dimensions] == [("tune", {}), ("tune.r", {"tune": [0, 1]})]
    assert made.chain({"tune": 1, "tune.r": 8}, "here")[0].config["r"] == 8


def test_the_same_parameter_of_two_alternatives_is_two_dimensions_where_its_values_differ(plan: Make) -> None:
    made = plan(passes={"tune": [tune(r={"search": [4, 8]}), {**tune(r={"search": [16]}), "type": "QLoRA"}]})
    assert [d.name for d in made.space.dimensions] == ["tune", "tune[0].r", "tune[1].r"]
    assert made.chain({"tune": 1, "tune[1].r": 16}, "here")[0].config["r"] == 16


def test_flows_are_a_dimension(plan: Make) -> None:
    made = plan(
        passes={"tune": tune(r={"search": [4, 8]}), "merge": {"type": "MergeAdapterWeights"}, "build": build()},
        pass_flows=[["merge", "build"], ["tune", "build"]],
    )
    assert [(d.name, dict(d.when)) for d in made.space.dimensions] == [("flow", {}), ("tune.r", {"flow": [1]})]
    assert [s.name for s in made.chain({"flow": 1, "tune.r": 4}, "here")] == ["tune", "build"]
    assert space_size(made.space) == 3


def test_conditions_of_the_file_and_of_the_pass(plan: Make) -> None:
    made = plan(
        passes={
            "tune": tune(
                r={"search": [4, 8], "when": {"build.precision": "int4"}},
                init={"search": ["gaussian", "pissa"]},
                rounds={"search": [1, 2]},
            ),
            "build": build(precision={"search": ["int4", "int8"]}),
        }
    )
    assert {d.name: dict(d.when) for d in made.space.dimensions} == {
        "tune.init": {},
        "build.precision": {},
        "tune.r": {"build.precision": ["int4"]},
        "tune.rounds": {"tune.init": ["pissa"]},
    }
    names = [d.name for d in made.space.dimensions]
    assert names.index("tune.r") > names.index("build.precision")
    assert made.chain({"tune.init": "gaussian", "build.precision": "int8"}, "here")[0].config["r"] == 16


def test_a_condition_may_name_an_alternative_by_type(plan: Make) -> None:
    made = plan(
        passes={
            "tune": [tune(), {**tune(), "type": "QLoRA"}],
            "b": build(precision={"search": ["int4"], "when": {"tune": ["qlora"]}}),
        }
    )
    assert dict(made.space.dimensions[-1].when) == {"tune": [1]}


def test_a_search_without_effect_is_a_fault(plan: Make) -> None:
    with pytest.raises(
        ConfigError, match=r"passes.tune.rounds: is searched, and has an effect only where init is pissa"
    ):
        plan(passes={"tune": tune(init="gaussian", rounds={"search": [1, 2]})})


def test_conditions_in_a_circle_are_a_fault(plan: Make) -> None:
    with pytest.raises(ConfigError, match="go in a circle"):
        plan(
            passes={
                "tune": tune(
                    r={"search": [4, 8], "when": {"tune.alpha": [1]}}, alpha={"search": [1, 2], "when": {"tune.r": [4]}}
                )
            }
        )


def test_a_pass_that_does_not_take_what_comes_before_it_is_told(plan: Make) -> None:
    with pytest.raises(
        ConfigError, match=r"passes.quantize: OnnxQuantization takes onnx models and would be given genai"
    ):
        plan(passes={"build": build(), "quantize": {"type": "OnnxQuantization"}}, evaluator=None)


def test_what_the_device_can_not_take_is_told(plan: Make) -> None:
    with pytest.raises(ConfigError, match=r"passes.build: ModelBuilder makes no fp16 models for the CPU"):
        plan(passes={"build": build(precision="fp16")})


def test_a_searched_value_that_fits_nowhere_is_told_with_its_path(plan: Make) -> None:
    with pytest.raises(ConfigError) as raised:
        plan(passes={"tune": tune(r=[4, 8]), "build": build(precision={"search": ["int4", "fp16"]})})
    [fault] = raised.value.faults
    assert fault.path == "passes.build.precision"
    assert "the value 'fp16' fits nowhere: ModelBuilder makes no fp16 models for the CPU" in fault.found


def test_an_alternative_that_fits_nowhere_is_told(plan: Make) -> None:
    with pytest.raises(ConfigError) as raised:
        plan(passes={"a": [{"type": "MergeAdapterWeights"}, {"type": "OnnxQuantization"}], "build": build()})
    [fault] = raised.value.faults
    assert fault.path == "passes.a" and "the alternative OnnxQuantization fits nowhere" in fault.found


def test_a_flow_that_fits_nowhere_is_told(plan: Make) -> None:
    with pytest.raises(ConfigError) as raised:
        plan(
            passes={"build": build(), "q": {"type": "OnnxQuantization"}},
            pass_flows=[["build"], ["q"]],
            evaluator=None,
        )
    [fault] = raised.value.faults
    assert fault.path == "pass_flows" and "the flow q fits nowhere" in fault.found


def test_values_that_fit_one_of_several_targets_are_no_fault(plan: Make) -> None:
    systems = {n: {"type": "LocalSystem", "accelerators": [{"device": n}]} for n in ("cpu", "gpu")}
    made = plan(
        systems=systems,
        host="cpu",
        target=["cpu", "gpu"],
        passes={"build": build(precision={"search": ["int4", "fp16"]})},
    )
    assert made.chain({"build.precision": "fp16"}, "gpu")
    with pytest.raises(ConfigError, match=r"no fp16 models for the CPU.*\(target cpu\)"):
        made.chain({"build.precision": "fp16"}, "cpu")


def test_values_that_fit_in_combination_are_no_fault(plan: Make) -> None:
    """OnnxConversion makes what OnnxQuantization takes, MergeAdapterWeights what ModelBuilder takes."""
    made = plan(
        passes={
            "first": [{"type": "MergeAdapterWeights"}, {"type": "OnnxConversion"}],
            "second": [build(), {"type": "OnnxQuantization"}],
        },
        evaluator=None,
    )
    assert made.chain({"first": 1, "second": 1}, "here")[-1].type == "OnnxQuantization"


def test_a_kind_that_no_runtime_can_measure_is_told(plan: Make) -> None:
    passes = {"c": {"type": "OnnxConversion"}}
    with pytest.raises(ConfigError, match=r"systems.here: no installed runtime serves onnx models on cpu"):
        plan(passes=passes)
    assert plan(passes=passes, evaluator=None).chain({}, "here")
    sizes = {"judge": {"metrics": [{"type": "size_on_disk"}]}}
    assert plan(passes=passes, evaluators=sizes).chain({}, "here")


def test_a_step_runs_where_it_says(plan: Make) -> None:
    systems = {"here": {"type": "LocalSystem"}, "there": {"type": "LocalSystem"}}
    made = plan(systems=systems, passes={"tune": {**tune(), "host": "there"}, "build": build()})
    assert [s.host for s in made.chain({}, "here")] == ["there", "here"]


def test_a_space_of_many_points_is_planned_without_listing_them(plan: Make) -> None:
    passes = {f"t{i}": tune(r={"search": list(range(1, 101))}) for i in range(12)}
    made = plan(passes=passes)
    assert space_size(made.space) == 100**12


def test_ranges_are_counted_by_their_steps(plan: Make) -> None:
    made = plan(passes={"tune": tune(r={"search": {"low": 4, "high": 64, "step": 4}})})
    assert made.space.dimensions[0].over == IntRange(4, 64, step=4) and space_size(made.space) == 16
    endless = plan(passes={"tune": tune(alpha={"search": {"low": 0.5, "high": 1.0}})})
    assert space_size(endless.space) is None


names = st.sampled_from("abcdef")


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    dimensions: list[Dimension] = []
    for name in draw(st.lists(names, unique=True, max_size=5)):
        over = Choice(*range(draw(st.integers(1, 3))))
        when = {}
        if dimensions and draw(st.booleans()):
            other = draw(st.sampled_from(dimensions))
            assert isinstance(other.over, Choice)
            when = {other.name: draw(st.lists(st.sampled_from(other.over.values), unique=True, max_size=3))}
        dimensions.append(Dimension(name, over, when))
    return Space(tuple(dimensions))


@given(spaces())
@settings(deadline=None)
def test_the_size_of_a_space_is_the_number_of_its_points(space: Space) -> None:
    assert space_size(space) == len(list(points(space)))


@pytest.mark.parametrize(("type_", "fits"), [("OnnxEvaluator", True), ("pytorchevaluator", False)])
def test_an_evaluator_of_one_framework_measures_its_models_only(plan: Make, type_: str, fits: bool) -> None:
    judge = {"type": type_, "metrics": [{"name": "size", "type": "size_on_disk"}]}
    if fits:
        assert plan(evaluators={"judge": judge}, passes={"b": build()}).chain({}, "here")
        return
    with pytest.raises(ConfigError) as raised:
        plan(evaluators={"judge": judge}, passes={"b": build()})
    (fault,) = raised.value.faults
    assert fault.path == "evaluators.judge.type"
    assert (
        fault.found == "PyTorchEvaluator measures hf and pytorch and distributed_hf models; the passes end with genai"
    )
    assert fault.hint.startswith("leave type out")
