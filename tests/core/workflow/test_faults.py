"""What is wrong in a workflow is told all at once: path, what was found, what was expected, the nearest name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drupe.core.errors import ConfigError
from drupe.core.workflow.model import Workflow
from drupe.core.workflow.read import Examination
from tests.core.workflow.plugins import base_document, faults

Look = Callable[..., Examination]


def tune(**config: Any) -> dict[str, Any]:
    return {"tune": {"type": "LoRA", "train_data_config": "tone", **config}}


def metric(**changes: Any) -> dict[str, Any]:
    entry = {"name": "accuracy", "type": "accuracy", "data_config": "tone", **changes}
    return {"judge": {"metrics": [{key: value for key, value in entry.items() if value is not None}]}}


def sub_type(**changes: Any) -> dict[str, Any]:
    return metric(sub_types=[{"name": "accuracy_score", **changes}])


TONE = {
    **sub_type(priority=1),
    "other": {"metrics": [{"name": "size", "type": "size_on_disk", "sub_types": [{"name": "bytes", "priority": 1}]}]},
}


def margin(value: Any, **more: Any) -> dict[str, Any]:
    fidelity = {"indifference": value, **more}
    return {"search_strategy": {"multi_fidelity": fidelity}, "evaluators": TONE, "evaluator": "judge"}


def searched(when: dict[str, Any]) -> dict[str, Any]:
    two = [{"type": "LoRA", "train_data_config": "tone", "r": {"search": [4, 8]}}, {"type": "MergeAdapterWeights"}]
    return {"passes": {"tune": two, "b": {"type": "ModelBuilder", "precision": {"search": ["int4"], "when": when}}}}


CASES: list[tuple[str, dict[str, Any], str]] = [
    (
        "condition on itself only",
        {
            "passes": {
                "b": {"type": "ModelBuilder", "precision": {"search": ["int4"], "when": {"b.precision": ["int4"]}}}
            }
        },
        "when.b.precision: is not searched; expected a parameter that is searched",
    ),
    (
        "condition that never holds",
        searched({"tune.r": [16]}),
        "when.tune.r: 16 is never a value of tune.r; expected one of: 4, 8",
    ),
    ("no such alternative", searched({"tune": ["Merge"]}), '"Merge" is never a value of tune; expected one of: "LoRA"'),
    (
        "misspelt order",
        {"passes": tune(r={"search": [4, 8], "orderd": True})},
        "has the keys search, ordered, when; did you mean 'ordered'?",
    ),
    (
        "a share in percent",
        {"evaluators": sub_type(goal={"type": "threshold", "value": 85})},
        "goal.value: 85; expected a number from 0 to 1, as the metric is a share; 85 % is 0.85",
    ),
    (
        "an extreme is certified",
        {
            "evaluators": metric(
                type="latency",
                name="speed",
                sub_types=[{"name": "max", "goal": {"type": "threshold", "value": 5, "confidence": 0.9}}],
            )
        },
        "goal.confidence: 0.9 on speed-max, an extreme, which nothing can bound; expected a quantile, such as p99",
    ),
    ("a loss in percent", {"evaluators": sub_type(goal={"type": "max-degradation", "value": 2})}, "2 % is 0.02"),
    ("margin below 0", margin(-0.01), "multi_fidelity.indifference: -0.01; expected a difference of at least 0"),
    ("margin as a text", margin("1%"), 'multi_fidelity.indifference: "1%"; expected a difference of at least 0'),
    ("margin of a front", margin(0.01, keep="front"), "0.01 beside keep: front"),
    (
        "margin of nothing",
        {**margin(0.01), "evaluator": "other"},
        "multi_fidelity.indifference: no objective of the evaluator is measured sample by sample",
    ),
    ("unknown top-level key", {"pases": {}}, "pases: unknown key 'pases'"),
    ("nearest top-level key", {"pases": {}}, "did you mean 'passes'?"),
    ("no input model", {"input_model": None}, "input_model: not given; expected the model to start from"),
    (
        "no passes, and nothing to measure",
        {"passes": None, "evaluator": None},
        "passes: not given; expected at least one pass, or an evaluator that measures the input model as it is",
    ),
    ("passes as a list", {"passes": []}, "passes: []; expected a mapping of name to pass"),
    ("misspelt pass", {"passes": {"m": {"type": "MergeAdapterWeigths"}}}, "did you mean 'MergeAdapterWeights'?"),
    ("misspelt public pass", {"passes": {"m": {"type": "GraphSurgerys"}}}, "did you mean 'GraphSurgeries'?"),
    ("pass without type", {"passes": {"m": {"precision": "int4"}}}, "passes.m.type: not given"),
    ("pass that is a text", {"passes": {"m": "ModelBuilder"}}, 'passes.m: "ModelBuilder"; expected a mapping'),
    ("name with a dot", {"passes": {"a.b": {"type": "ModelBuilder"}}}, "a name without dots"),
    ("misspelt parameter", {"passes": tune(droput=0.1)}, "passes.tune.droput: unknown key 'droput'"),
    ("nearest parameter", {"passes": tune(droput=0.1)}, "did you mean 'dropout'?"),
    ("wrong type", {"passes": tune(r="many")}, 'passes.tune.r: "many"; expected a whole number'),
    ("a share is no whole number", {"passes": tune(r=1.5)}, "passes.tune.r: 1.5; expected a whole number"),
    ("out of range", {"passes": tune(r=0)}, "passes.tune.r: 0; expected a number at least 1"),
    ("nested", {"passes": tune(training_args={"learning_rate": -1})}, "passes.tune.training_args.learning_rate: -1"),
    (
        "nested misspelt",
        {"passes": tune(training_args={"learning_rat": 1})},
        "passes.tune.training_args.learning_rat: unknown key 'learning_rat'; expected one of: learning_rate, eval",
    ),
    ("no such choice", {"passes": tune(init="gausian")}, "did you mean 'gaussian'?"),
    ("union", {"passes": tune(target_modules=3)}, "passes.tune.target_modules: 3; expected a text or a list"),
    ("required", {"passes": {"tune": {"type": "LoRA"}}}, "passes.tune.train_data_config: not given"),
    ("misspelt data", {"passes": tune(train_data_config="tome")}, "no data config is named 'tome'"),
    ("misspelt host", {"passes": {"b": {"type": "ModelBuilder", "host": "her"}}}, "did you mean 'here'?"),
    ("pass evaluator", {"passes": {"b": {"type": "ModelBuilder", "evaluator": "jduge"}}}, "did you mean 'judge'?"),
    ("no alternatives", {"passes": {"b": []}}, "passes.b: an empty list"),
    ("alternative", {"passes": {"b": [{"type": "ModelBuilder"}, {"type": "ModelBuilder", "x": 1}]}}, "passes.b.1.x"),
    ("flow", {"pass_flows": [["tune", "biuld"]]}, "pass_flows.0.1: no pass is named 'biuld'"),
    ("flow twice", {"pass_flows": [["tune"], ["tune"]]}, "pass_flows.1: the same flow is given twice"),
    ("pass twice", {"pass_flows": [["tune", "tune"]]}, "'tune' is in this flow twice"),
    ("flows", {"pass_flows": ["tune"]}, 'pass_flows.0: "tune"; expected a list of pass names'),
    ("unknown system", {"target": "there"}, "target: no system is named 'there'; expected one of: here"),
    ("targets twice", {"target": ["here", "here"]}, "target.1: 'here' is listed twice"),
    ("no target", {"target": []}, "target: an empty list"),
    ("host", {"host": 3}, "host: 3; expected one of: here"),
    ("system type", {"systems": {"here": {"type": "LocalSistem"}}}, "did you mean 'LocalSystem'?"),
    ("system key", {"systems": {"here": {"type": "LocalSystem", "worker": 1}}}, "did you mean 'workers'?"),
    (
        "device",
        {"systems": {"here": {"type": "LocalSystem", "accelerators": [{"device": "gpuu"}]}}},
        "systems.here.accelerators.0.device: no device is named 'gpuu'",
    ),
    (
        "provider",
        {
            "systems": {
                "here": {
                    "type": "LocalSystem",
                    "accelerators": [{"device": "gpu", "execution_providers": ["CUDAExecutionProvidr"]}],
                }
            }
        },
        "did you mean 'CUDAExecutionProvider'?",
    ),
    ("runtime", {"systems": {"here": {"type": "LocalSystem", "runtime": "gena"}}}, "did you mean 'genai'?"),
    ("data type", {"data_configs": [{"name": "tone", "type": "HugingfaceContainer"}]}, "did you mean 'HuggingfaceCont"),
    ("data name", {"data_configs": [{"type": "HuggingfaceContainer"}]}, "data_configs.0.name: not given"),
    ("data twice", {"data_configs": [{"name": "tone", "type": "HuggingfaceContainer"}] * 2}, "of two data configs"),
    (
        "what the container finds",
        {
            "data_configs": [
                {"name": "tone", "type": "HuggingfaceContainer", "load_dataset_config": {"data_name": "wrong"}}
            ]
        },
        "data_configs.tone.load_dataset_config.data_name: no such data",
    ),
    ("evaluator", {"evaluator": "jugde"}, "evaluator: no evaluator is named 'jugde'; expected one of: judge; did you"),
    ("evaluator key", {"evaluators": {"judge": {"metric": []}}}, "evaluators.judge.metric: unknown key"),
    ("metric type", {"evaluators": metric(type="acuracy")}, "did you mean 'accuracy'?"),
    ("metric data", {"evaluators": metric(data_config="tonne")}, "evaluators.judge.metrics.0.data_config"),
    ("metric config", {"evaluators": metric(user_config={"batchsize": 1})}, "did you mean 'batch_size'?"),
    (
        "metric config by its place",
        {"evaluators": metric(user_config={"batchsize": 1})},
        "evaluators.judge.metrics.0.user_config.batchsize: unknown key 'batchsize'",
    ),
    (
        "metric config beside user_config",
        {"evaluators": metric(batch_size="x", user_config={"method": "score"})},
        'evaluators.judge.metrics.0.batch_size: "x"; expected a whole number',
    ),
    (
        "metric config twice",
        {"evaluators": metric(batch_size=2, user_config={"batch_size": 4})},
        "evaluators.judge.metrics.0.user_config.batch_size: 4, and 2 beside user_config; expected one of them",
    ),
    (
        "options of an evaluator twice",
        {"evaluators": {"judge": {"type": "accuracy", "type_args": {"batch_size": 4}, "batch_size": 2}}},
        "evaluators.judge.type_args.batch_size: 4, and 2 beside type_args; expected one of them",
    ),
    (
        "options of a sub-type",
        {"evaluators": sub_type(metric_config=3)},
        "evaluators.judge.metrics.0.sub_types.0.metric_config: 3; expected a mapping of options",
    ),
    (
        "options that are none, beside those of a sub-type",
        {
            "evaluators": metric(
                user_config={"metric_config": 3}, sub_types=[{"name": "f1_score", "metric_config": {"a": 1}}]
            )
        },
        "evaluators.judge.metrics.0.user_config.metric_config: 3; expected a mapping",
    ),
    ("priority 0", {"evaluators": sub_type(priority=0)}, "priority: 0; expected 1 for what matters most, 2, …, or -1"),
    (
        "an evaluator's type as a metric's",
        {"evaluators": metric(type="OnnxEvaluator")},
        "OnnxEvaluator is a type of evaluator, and stands beside its metrics",
    ),
    (
        "options of an evaluator that lists metrics",
        {"evaluators": {"judge": {"type": "onnxevaluator", "batch_size": 1}}},
        "evaluators.judge.batch_size: unknown key 'batch_size'; expected one of: metrics, type",
    ),
    (
        "the same pass twice",
        {"passes": {"b": [{"type": "ModelBuilder"}, {"type": "modelbuilder", "precision": "int4"}]}},
        "passes.b.1: the same pass as passes.b.0; expected each alternative once",
    ),
    ("metric key", {"evaluators": metric(usr_config={})}, "evaluators.judge.metrics.0.usr_config: unknown key"),
    ("sub-type", {"evaluators": metric(sub_types=[{"name": "f1_scor"}])}, "did you mean 'f1_score'?"),
    ("sub-type key", {"evaluators": sub_type(gaol={})}, "did you mean 'goal'?"),
    ("priority", {"evaluators": sub_type(priority="high")}, 'priority: "high"; expected a whole number'),
    ("direction", {"evaluators": sub_type(higher_is_better=False)}, "expected true, as higher is better here"),
    ("goal", {"evaluators": sub_type(goal=0.8)}, "goal: 0.8; expected a mapping with type and value"),
    ("goal type", {"evaluators": sub_type(goal={"type": "treshold", "value": 1})}, "did you mean 'threshold'?"),
    ("goal value", {"evaluators": sub_type(goal={"type": "threshold"})}, "goal.value: not given"),
    ("goal key", {"evaluators": sub_type(goal={"type": "threshold", "value": 1, "confidnce": 1})}, "'confidence'"),
    (
        "confidence",
        {"evaluators": sub_type(goal={"type": "threshold", "value": 1, "confidence": 95})},
        "goal.confidence: 95; expected a number from 0.5 to below 1",
    ),
    (
        "negative improvement",
        {"evaluators": sub_type(goal={"type": "max-degradation", "value": -1})},
        "expected a number of at least 0",
    ),
    ("baseline", {"baseline": "merg"}, "baseline: no pass is named 'merg'"),
    ("seed", {"seed": "x"}, 'seed: "x"; expected a whole number of at least 0'),
    ("flag", {"evaluate_input_model": "yes"}, 'evaluate_input_model: "yes"; expected true or false'),
    ("log level", {"log_severity_level": 7}, "0 (everything) to 4"),
    ("search", {"search_strategy": "tpe"}, 'search_strategy: "tpe"; expected true, false or a mapping'),
    ("search key", {"search_strategy": {"max_trails": 3}}, "did you mean 'max_trials'?"),
    ("search value", {"search_strategy": {"max_trials": 0}}, "expected a whole number of at least 1"),
    ("racing", {"search_strategy": {"multi_fidelity": 3}}, "search_strategy.multi_fidelity: 3; expected true, false"),
    ("racing key", {"search_strategy": {"multi_fidelity": {"frist": 8}}}, "did you mean 'first'?"),
    ("racing value", {"search_strategy": {"multi_fidelity": {"growth": 1}}}, "expected a number above 1"),
    (
        "sampler",
        {"search_strategy": {"sampler": "tpee"}},
        "no sampler is named 'tpee'; expected one of: auto, brute-force, random, tpe",
    ),
    ("plugin rules", {"plugins": {"alow": []}}, "did you mean 'allow'?"),
    ("data root", {"auto_optimizer_config": {}}, "auto_optimizer_config: passes chosen for you"),
]


@pytest.mark.parametrize(("document", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_one_fault_one_clear_message(look: Look, document: dict[str, Any], expected: str) -> None:
    result = look(base_document(**document))
    assert any(expected in text for text in [*faults(result), *faults(result, "missing")]), result.faults


def test_the_base_document_has_no_fault(look: Look) -> None:
    result = look(base_document())
    assert result.faults == () and result.workflow is not None


def test_every_fault_of_a_file_is_told_at_once(look: Look) -> None:
    result = look(
        base_document(
            passes={**tune(r="x", droput=1), "b": {"type": "ModelBilder"}},
            evaluators=sub_type(goal={"type": "threshold", "value": "high"}),
            target="there",
            extra=1,
        )
    )
    paths = [fault.path for fault in result.of_kind("fault")]
    assert paths == [
        "extra",
        "target",
        "evaluators.judge.metrics.0.sub_types.0.goal.value",
        "passes.tune.r",
        "passes.tune.droput",
        "passes.b.type",
    ]


def test_read_workflow_raises_with_all_of_them(read: Callable[..., Workflow]) -> None:
    with pytest.raises(ConfigError) as raised:
        read(base_document(passes={**tune(r="x"), "q": {"type": "GraphSurgeries"}}))
    assert [fault.kind for fault in raised.value.faults] == ["fault", "missing"]
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("document", "path", "provider"),
    [
        ({"passes": {"q": {"type": "QuarkQuantization"}}}, "passes.q.type", "AMD's Quark"),
        ({"input_model": {"type": "diffusersmodel", "model_path": "x"}}, "input_model.type", "not yet"),
        ({"evaluators": {"judge": {"type": "LMEvaluator", "tasks": ["a"]}}}, "evaluators.judge.type", "built-in"),
        ({"input_model": {"type": "OpenVINOModel", "model_path": "x"}}, "input_model.type", "contrib: drupe-openvino"),
    ],
)
def test_what_is_known_but_not_installed_is_missing(
    look: Look, document: dict[str, Any], path: str, provider: str
) -> None:
    result = look(base_document(**document))
    assert faults(result) == []
    missing = result.of_kind("missing")
    assert [fault.path for fault in missing] == [path]
    assert provider in missing[0].hint


def test_absent_files_secrets_and_consents_are_needs(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DRUPE_TEST_TOKEN", raising=False)
    document = base_document(
        input_model={"type": "HfModel", "model_path": "m", "load_kwargs": {"trust_remote_code": True}, "pickled": True},
        passes=tune(template="t.txt", token="DRUPE_TEST_TOKEN"),
        evaluators=metric(user_config={"user_script": "s.py"}),
    )
    needs = {fault.path: fault for fault in look(document).of_kind("needs")}
    assert set(needs) == {
        "input_model.load_kwargs.trust_remote_code",
        "input_model",
        "passes.tune.template",
        "passes.tune.token",
        "evaluators.judge.metrics.0.user_config.user_script",
    }
    assert str(tmp_path / "t.txt") in needs["passes.tune.template"].hint
    assert "--allow remote-code" in needs["input_model.load_kwargs.trust_remote_code"].hint
    assert "--allow pickle" in needs["input_model"].hint
    (tmp_path / "t.txt").touch()
    (tmp_path / "s.py").touch()
    monkeypatch.setenv("DRUPE_TEST_TOKEN", "x")
    allowed = look(document, allow=("remote-code", "user-scripts", "pickle"))
    assert allowed.faults == () and allowed.workflow is not None and allowed.workflow.needs == ()


def test_one_script_that_serves_many_places_is_asked_for_once(look: Look) -> None:
    script = {"user_script": "s.py"}
    evaluators = {
        "judge": {
            "metrics": [
                {"name": name, "type": "accuracy", "data_config": "tone", "user_config": script} for name in ("a", "b")
            ]
        }
    }
    assert len(look(base_document(evaluators=evaluators)).of_kind("needs")) == 2


def test_a_source_says_what_is_needed_of_the_model(look: Look) -> None:
    result = look(base_document(input_model={"type": "ONNXModel", "model_path": "a.onnx"}, passes={}))
    assert faults(result, "needs") == ["input_model.model_path: a.onnx is not there; expected a file"]


def test_a_value_to_be_filled_in_is_needed_and_no_fault(look: Look) -> None:
    system = {
        "type": "LocalSystem",
        "accelerators": [{"device": "<place_holder>", "execution_providers": "<place_holder>"}],
    }
    result = look(
        base_document(
            input_model={"type": "HfModel", "model_path": "<place_holder>"},
            systems={"here": system},
            passes=tune(train_data_config="<place_holder>", r="<place_holder>"),
        )
    )
    assert faults(result) == []
    assert [fault.path for fault in result.of_kind("needs")] == [
        "input_model.model_path",
        "systems.here.accelerators.0.device",
        "systems.here.accelerators.0.execution_providers",
        "passes.tune.train_data_config",
        "passes.tune.r",
    ]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ({"train": 120, "selection": 60, "certification": "rest", "seed": 7}, None),
        ({"train": 0.5, "selection": 0.25, "certification": 0.25}, None),
        ({"train": 0.8, "selection": 0.4}, "the shares add up to 1.2"),
        ({"train": "rest", "selection": "rest"}, '"rest" is given twice'),
        ({"train": -1}, "split.train: -1"),
        ({"train": True}, "split.train: true"),
        ({"trian": 5}, "did you mean 'train'?"),
        ({"seed": 1}, "no part is given"),
        ({"train": 1, "seed": "x"}, "split.seed"),
        ({"train": 1.0}, '{"train": 1.0} leaves nothing for selection and certification; expected parts to measure on'),
        ({"selection": 0, "certification": 0}, "leaves nothing for selection and certification"),
        ({"selection": 0.5}, None),
    ],
)
def test_splits(look: Look, split: dict[str, Any], expected: str | None) -> None:
    result = look(base_document(data_configs=[{"name": "tone", "type": "HuggingfaceContainer", "split": split}]))
    if expected is None:
        assert result.faults == () and result.workflow and result.workflow.data["tone"].split == split
    else:
        assert any(expected in text for text in faults(result)), result.faults


@pytest.mark.parametrize("split", [{"selection": 0.5}, {"selection": "rest"}, {"train": 0.5, "certification": 0.5}])
def test_a_search_that_certifies_needs_both_parts(look: Look, split: dict[str, Any]) -> None:
    data = [{"name": "tone", "type": "HuggingfaceContainer", "split": split}]
    lacking = "selection" if "certification" in split else "certification"
    result = look(base_document(data_configs=data, passes=tune(r={"search": [4, 8]})))
    (text,) = faults(result)
    assert text.startswith("data_configs.tone.split: ")
    assert f"leaves nothing for {lacking}; expected parts to measure on" in text
    assert "one part selects and another certifies" in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"search_strategy": {"finalists": 2}, "evaluators": sub_type(priority=1)},
            "finalists: 2 is now without effect",
        ),
        (
            {"search_strategy": {"stop_when_goals_met": True}, "evaluators": sub_type(priority=1)},
            "search_strategy.stop_when_goals_met: true is now without effect (the evaluator sets no goal)",
        ),
        (
            {"search_strategy": {"multi_fidelity": True}, "evaluator": None},
            "search_strategy.multi_fidelity: what is asked for is now without effect",
        ),
        ({"baseline": "merge"}, "baseline: 'merge' is now without effect (no goal compares with a baseline)"),
        ({"evaluator": None}, "evaluators: judge is now left out (no evaluator is named by the key evaluator)"),
        ({"evaluators": {"judge": {"metrics": []}}}, "evaluators.judge: an evaluator without metrics is now without"),
    ],
)
def test_what_has_no_effect_is_told(look: Look, changes: dict[str, Any], told: str) -> None:
    passes = {"passes": {**tune(r={"search": [4, 8]}), "merge": {"type": "MergeAdapterWeights"}}}
    result = look(base_document(**{**passes, **changes}))
    assert result.faults == ()
    assert any(told in str(notice) for notice in result.notices), result.notices


def test_a_plugin_that_cannot_be_loaded_is_told_where_it_is_asked_for(tmp_path: Path) -> None:
    import json

    from drupe.core.registry import Plugin
    from drupe.core.specs import PassSpec
    from drupe.core.workflow.read import examine
    from tests.core.workflow.plugins import make_registry

    registry = make_registry()
    registry.add("drupe_passes", [PassSpec(name="Broken", target="no_such_module:X")], Plugin("b", "b", "b-dist", "2"))
    path = tmp_path / "w.json"
    path.write_text(json.dumps(base_document(passes={"x": {"type": "Broken"}})))
    [text] = faults(examine(path, registry))
    assert text.startswith("passes.x.type: Broken of plugin b (b-dist 2) can't be loaded")
    assert "no_such_module" in text
    path.write_text(json.dumps(base_document()))
    assert examine(path, registry).faults == ()


def test_of_equal_priorities_the_order_of_the_file_decides_and_that_is_told(look: Look) -> None:
    two = [{"name": name, "priority": 2} for name in ("f1_score", "accuracy_score")]
    result = look(base_document(evaluators=metric(sub_types=two)))
    assert faults(result) == []
    assert [str(notice) for notice in result.notices] == [
        "evaluators.judge: priority 2 of accuracy-f1_score and accuracy-accuracy_score is now in the order of the "
        "file: accuracy-f1_score decides first (give each its own number to say otherwise)"
    ]
    assert result.workflow is not None
    objectives = result.workflow.evaluators["judge"].objectives
    assert [objective.metric for objective in objectives] == ["accuracy-f1_score", "accuracy-accuracy_score"]


def test_alternatives_that_differ_in_what_is_searched_are_two(look: Look) -> None:
    ways = [{"type": "ModelBuilder", "precision": {"search": [*values]}} for values in (["int4", "int8"], ["int4"])]
    assert faults(look(base_document(passes={"b": ways}))) == []


def test_options_of_an_evaluator_with_a_type_may_stand_in_type_args(look: Look) -> None:
    judge = {"type": "accuracy", "type_args": {"batch_size": 4}, "sub_types": [{"name": "f1_score", "priority": 1}]}
    result = look(base_document(evaluators={"judge": judge}))
    assert faults(result) == [] and result.workflow is not None
    (entry,) = result.workflow.evaluators["judge"].metrics
    assert (entry.name, dict(entry.config), entry.sub_types) == ("accuracy", {"batch_size": 4}, ("f1_score",))
