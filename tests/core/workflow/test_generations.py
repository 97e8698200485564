"""Forms of the first generations, and parts of a file that nothing uses: each is read as it was meant, and told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drupe.core.workflow.read import Examination
from tests.core.workflow.plugins import base_document

Look = Callable[..., Examination]


def faults(found: Examination) -> list[str]:
    return [str(fault) for fault in found.of_kind("fault")]


def told(found: Examination) -> dict[str, str]:
    return {notice.path: notice.now for notice in found.notices}


def one_value(**metric: Any) -> dict[str, Any]:
    """An evaluator of the first generation: a metric of one value, with its goal and rank beside it."""
    goal = {"type": "threshold", "value": 0.8}
    entry = {"name": "accuracy", "type": "accuracy", "data_config": "tone", "priority_rank": 1, "goal": goal, **metric}
    return {"judge": {"metrics": [entry]}}


def test_a_metric_of_one_value(look: Look) -> None:
    found = look(base_document(evaluators=one_value(sub_type="accuracy_score")))
    assert faults(found) == [] and found.workflow is not None
    judge = found.workflow.evaluators["judge"]
    assert [goal.metric for goal in judge.goals] == ["accuracy-accuracy_score"]
    assert [(o.metric, o.priority) for o in judge.objectives] == [("accuracy-accuracy_score", 1)]
    assert "sub_types" in told(found)["evaluators.judge.metrics.0"]


def test_a_metric_of_one_value_without_its_name(look: Look) -> None:
    found = look(base_document(evaluators=one_value()))
    assert faults(found) == [] and found.workflow is not None
    assert found.workflow.evaluators["judge"].metrics[0].sub_types == ("accuracy_score",)


def test_older_names_and_options_of_an_accuracy(look: Look) -> None:
    config = {"task": "binary", "multiclass": False, "reorder": None}
    found = look(base_document(evaluators=one_value(sub_type="auc", metric_config=config)))
    place = "evaluators.judge.metrics.0.sub_types.0"
    assert told(found)[f"{place}.name"] == "auroc"
    for key in ("multiclass", "reorder"):
        assert told(found)[f"{place}.metric_config.{key}"] == "left out"


def test_what_is_wrong_in_a_metric_of_one_value_is_a_fault(look: Look) -> None:
    found = look(base_document(evaluators=one_value(sub_type="accuracy_scor")))
    assert any("accuracy has no sub-type 'accuracy_scor'" in text for text in faults(found))


def test_the_system_beside_the_metrics_is_the_target(look: Look) -> None:
    document = base_document()
    document["evaluators"]["judge"]["target"] = "here"
    found = look(document)
    assert faults(found) == [] and found.workflow is not None and found.workflow.targets == ("here",)
    assert told(found)["evaluators.judge.target"] == "the workflow's target"
    found = look({**document, "target": "there"})
    assert any(text.startswith('evaluators.judge.target: "here", and the workflow\'s target') for text in faults(found))


def test_evaluation_only_leaves_the_passes_out(look: Look) -> None:
    found = look(base_document(evaluation_only=True))
    assert faults(found) == [] and found.workflow is not None
    assert found.workflow.flows == ((),) and told(found)["evaluation_only"] == "a workflow without passes"
    assert look(base_document(evaluation_only=False)).workflow.passes  # type: ignore[union-attr]


def test_verbose_and_data_config_of_the_first_files(look: Look) -> None:
    document = base_document(verbose=True, data_config={"tone": {"type": "HuggingfaceContainer"}})
    del document["data_configs"]
    found = look(document)
    assert faults(found) == [] and found.workflow is not None and list(found.workflow.data) == ["tone"]
    assert told(found)["verbose"] == "without effect" and told(found)["data_config"] == "data_configs"


def test_passes_that_no_flow_names_are_not_looked_at(look: Look) -> None:
    passes = {**base_document()["passes"], "spare": {"type": "NoSuchPass", "user_script": "nowhere.py"}}
    used = [name for name in passes if name != "spare"]
    found = look(base_document(passes=passes, pass_flows=[used]))
    assert faults(found) == [] and found.of_kind("needs") == () and found.of_kind("missing") == ()
    assert told(found)["passes.spare"] == "left out"
    wrong = look(base_document(passes=passes, pass_flows=[[*used, "spar"]]))
    assert any("no pass is named 'spar'" in text and "did you mean 'spare'?" in text for text in faults(wrong))


def test_data_that_nothing_names_is_left_out(look: Look) -> None:
    data = [*base_document()["data_configs"], {"name": "spare", "type": "NoSuchContainer"}]
    found = look(base_document(data_configs=data))
    assert faults(found) == [] and found.workflow is not None and list(found.workflow.data) == ["tone"]
    assert told(found) == {"data_configs.spare": "left out"}


def test_what_is_wrong_behind_data_that_is_left_out_is_told_where_it_stands(look: Look) -> None:
    scripted = {"name": "tone", "type": "HuggingfaceContainer", "user_script": "gone.py"}
    found = look(base_document(data_configs=[{"name": "spare"}, scripted, {"type": "HuggingfaceContainer"}, None]))
    assert [fault.path for fault in found.of_kind("fault")] == ["data_configs.2.name", "data_configs.3"]
    assert {fault.path for fault in found.of_kind("needs")} >= {"data_configs.1.user_script"}


def test_systems_that_nothing_names_are_left_out(look: Look) -> None:
    systems = {**base_document()["systems"], "spare": {"type": "NoSuchSystem"}}
    found = look(base_document(systems=systems))
    assert faults(found) == [] and told(found) == {"systems.spare": "left out"}
    used = look(base_document(systems=systems, target="spare"))
    assert any("no system is named 'NoSuchSystem'" in text for text in faults(used))


def test_a_workspace_that_nothing_is_in_is_told(look: Look) -> None:
    client = {"subscription_id": "s", "resource_group": "g", "workspace_name": "w"}
    assert told(look(base_document(azureml_client=client)))["azureml_client"] == "left out"


def test_place_holders_in_lists_are_to_be_filled_in(look: Look) -> None:
    found = look(base_document(pass_flows=[["<place_holder>"]]))
    assert faults(found) == []
    assert [(fault.path, fault.hint) for fault in found.of_kind("needs")] == [("pass_flows.0", "fill it in")]


def test_the_number_of_samples_of_a_search(look: Look) -> None:
    found = look(base_document(search_strategy={"search_algorithm": "tpe", "num_samples": 3}))
    assert faults(found) == [] and found.workflow is not None and found.workflow.search is not None
    assert found.workflow.search.max_trials == 3
    wrong = look(base_document(search_strategy={"search_algorithm": "tpe", "search_algorithm_config": 3}))
    assert any(text.startswith("search_strategy.search_algorithm_config: 3; expected") for text in faults(wrong))


def test_accelerators_that_are_no_list_are_a_fault_and_no_crash(look: Look) -> None:
    systems = {"here": {"type": "LocalSystem", "accelerators": 17.5}}
    found = look(base_document(systems=systems, engine={"execution_providers": ["CPUExecutionProvider"]}))
    assert any(text.startswith("systems.here.accelerators: 17.5; expected a list") for text in faults(found))


def test_machines_with_a_name_of_their_own(look: Look) -> None:
    found = look(base_document(systems={"here": {"type": "SurfaceProSystem1796"}}))
    assert faults(found) == [] and found.workflow is not None
    assert found.workflow.systems["here"].type == "LocalSystem"
    assert found.workflow.systems["here"].accelerators[0].device == "gpu"
