"""What a workflow without faults becomes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError
from drupe.core.registry import Registry
from drupe.core.study import Goal, Objective
from drupe.core.workflow.model import Workflow
from drupe.core.workflow.read import TOP_LEVEL, read_workflow
from tests.core.workflow.plugins import base_document

Read = Callable[..., Workflow]


def test_the_parts_of_a_workflow(read: Read, tmp_path: Path) -> None:
    workflow = read(base_document(cache_dir="c", output_dir="/out", seed=3, evaluate_input_model=True))
    assert (workflow.name, workflow.host, workflow.targets) == ("workflow", "here", ("here",))
    assert (workflow.cache_dir, workflow.output_dir) == (tmp_path / "c", Path("/out"))
    assert workflow.flows == (("tune", "merge", "build"),)
    assert workflow.evaluators["judge"].goals == (Goal("accuracy-accuracy_score", "threshold", 0.8, "higher", 0.95),)
    assert workflow.evaluators["judge"].objectives == (Objective("accuracy-accuracy_score", "higher", 1),)
    assert workflow.options == {"evaluate_input_model": True} and workflow.seed == 3
    assert workflow.search is None and workflow.notices == () and workflow.needs == ()


def test_yaml_and_json_read_alike(tmp_path: Path, registry: Registry) -> None:
    from dataclasses import replace

    import yaml

    document = base_document()
    (tmp_path / "w.json").write_text(json.dumps(document))
    (tmp_path / "w.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    found = [read_workflow(tmp_path / name, registry) for name in ("w.json", "w.yaml")]
    assert found[0] == replace(found[1], path=found[0].path)


def test_the_command_line_overrides_folders(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "w.json"
    path.write_text(json.dumps(base_document(output_dir="a")))
    assert read_workflow(path, registry, overrides={"output_dir": "/b"}).output_dir == Path("/b")


def test_relative_paths_resolve_against_the_workflow_wherever_it_is_read(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "w.json").write_text(json.dumps(base_document()))
    monkeypatch.chdir(tmp_path)
    assert read_workflow(Path("inner/w.json"), registry).cache_dir == tmp_path / "inner" / "cache"


def test_priorities_below_one_are_no_objectives(read: Read) -> None:
    sub_types = [
        {"name": "avg", "priority": -1},
        {"name": "p90", "priority": 2},
    ]
    evaluators = {"judge": {"metrics": [{"name": "speed", "type": "latency", "sub_types": sub_types}]}}
    judge = read(base_document(evaluators=evaluators)).evaluators["judge"]
    assert judge.objectives == (Objective("speed-p90", "lower", 2),)
    assert judge.metrics[0].sub_types == ("avg", "p90")


def test_a_metric_without_sub_types_gives_its_default(read: Read) -> None:
    judge = read(base_document(evaluators={"judge": {"metrics": [{"type": "latency"}]}})).evaluators["judge"]
    assert judge.metrics[0].name == "latency" and judge.metrics[0].sub_types == ("avg",)


def test_options_of_sub_types_and_user_config_reach_the_metric(read: Read) -> None:
    entry = {
        "name": "accuracy",
        "type": "accuracy",
        "user_config": {"batch_size": 4},
        "sub_types": [{"name": "f1_score", "metric_config": {"average": "macro"}}],
    }
    judge = read(base_document(evaluators={"judge": {"metrics": [entry]}})).evaluators["judge"]
    assert judge.metrics[0].config == {"batch_size": 4, "metric_config": {"f1_score": {"average": "macro"}}}


@pytest.mark.parametrize(
    ("accelerators", "expected"),
    [
        (None, [Accelerator()]),
        ([{"device": "gpu"}], [Accelerator("gpu", "CUDAExecutionProvider")]),
        ([{"execution_providers": ["CUDAExecutionProvider"]}], [Accelerator("gpu", "CUDAExecutionProvider")]),
        ([{"execution_providers": ["CPUExecutionProvider"]}], [Accelerator("cpu", "CPUExecutionProvider")]),
        (
            [{"device": "gpu", "execution_providers": [["DmlExecutionProvider", {"device_id": 1}]], "memory": "8GB"}],
            [Accelerator("gpu", "DmlExecutionProvider", {"memory": "8GB", "provider_options": {"device_id": 1}})],
        ),
    ],
)
def test_accelerators(read: Read, accelerators: Any, expected: list[Accelerator]) -> None:
    system = {"type": "LocalSystem", **({"accelerators": accelerators} if accelerators else {})}
    workflow = read(base_document(systems={"here": system}))
    assert list(workflow.systems["here"].accelerators) == expected


def test_a_target_of_several_accelerators_is_several_targets(read: Read) -> None:
    gpu = {"device": "gpu", "execution_providers": ["CUDAExecutionProvider", "DmlExecutionProvider"]}
    workflow = read(base_document(systems={"here": {"type": "LocalSystem", "accelerators": [gpu]}}))
    assert workflow.targets == ("here-gpu-cuda", "here-gpu-dml")
    assert [workflow.systems[t].accelerators[0].execution_provider for t in workflow.targets] == [
        "CUDAExecutionProvider",
        "DmlExecutionProvider",
    ]


@pytest.mark.parametrize(
    ("document", "host", "targets"),
    [
        ({"systems": None, "host": None, "target": None}, "local_system", ("local_system",)),
        ({"host": None}, "here", ("here",)),
        ({"target": None}, "here", ("here",)),
    ],
)
def test_host_and_target_that_are_not_named(read: Read, document: Any, host: str, targets: Any) -> None:
    workflow = read(base_document(**document))
    assert (workflow.host, workflow.targets) == (host, targets)
    assert workflow.systems[host].type == "LocalSystem"


def test_several_targets(read: Read) -> None:
    systems = {
        name: {"type": "LocalSystem", "accelerators": [{"device": d}]} for name, d in (("a", "cpu"), ("b", "gpu"))
    }
    assert read(base_document(systems=systems, host="a", target=["a", "b"])).targets == ("a", "b")


def test_the_document_is_the_upgraded_file(read: Read) -> None:
    workflow = read(base_document(passes={"p": {"type": "GenAIModelExporter", "config": {"precision": "int8"}}}))
    assert workflow.document["passes"] == {"p": {"type": "ModelBuilder", "precision": "int8"}}
    assert set(workflow.document) <= set(TOP_LEVEL)


def test_the_evaluator_of_the_last_pass_judges_where_none_is_named(read: Read) -> None:
    passes = {"b": {"type": "ModelBuilder", "evaluator": "judge"}}
    assert read(base_document(evaluator=None, passes=passes)).evaluator == "judge"
    assert read(base_document(evaluator=None)).evaluator is None


def test_what_a_metric_says_of_its_values_is_told(read: Read) -> None:
    size = {"name": "size", "type": "size_on_disk", "user_config": {"unit": "MB"}}
    workflow = read(base_document(evaluators={"judge": {"metrics": [size]}}))
    assert [str(n) for n in workflow.notices] == ["evaluators.judge.metrics.0: unit has no effect: sizes are in bytes"]


def test_every_top_level_key_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "workflow.md").read_text(encoding="utf-8")
    assert [key for key in TOP_LEVEL if f"`{key}`" not in text] == []


def test_the_command_line_overrides_the_folders_of_older_files(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "w.json"
    path.write_text(json.dumps(base_document(engine={"output_dir": "a", "cache_dir": "c"})))
    workflow = read_workflow(path, registry, overrides={"output_dir": "/b", "cache_dir": "/d"})
    assert (workflow.output_dir, workflow.cache_dir) == (Path("/b"), Path("/d"))


def test_a_pass_that_no_flow_names_asks_for_nothing(tmp_path: Path, registry: Registry) -> None:
    document = base_document()
    name = next(iter(document["passes"]))
    document["passes"]["other"] = {"type": "OpenVINOConversion", "output_model": "m", "bits": {"search": [1, 2]}}
    path = tmp_path / "w.json"
    path.write_text(json.dumps({**document, "pass_flows": [[name]]}))
    workflow = read_workflow(path, registry)
    assert list(workflow.passes) == [name]
    path.write_text(json.dumps({**document, "pass_flows": [[name, "other"]]}))
    with pytest.raises(ConfigError, match="OpenVINOConversion"):
        read_workflow(path, registry)
