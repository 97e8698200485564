"""What of a search space a target can be given."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drupe.core.counting import count_combinations
from drupe.core.plan import Plan, build_plan
from drupe.core.registry import Registry
from drupe.core.space import every_point, space_size
from drupe.core.target_space import target_space
from drupe.core.workflow.read import read_workflow
from drupe.testing import install_plugin
from tests.core.workflow.plugins import base_document, make_registry
from tests.support.workflows import drupe, manifest, toy_document, write_workflow

Make = Callable[..., Plan]


@pytest.fixture
def registry() -> Registry:
    return make_registry()


@pytest.fixture
def plan(tmp_path: Path, registry: Registry) -> Make:
    def make(**changes: Any) -> Plan:
        systems = {n: {"type": "LocalSystem", "accelerators": [{"device": n}]} for n in ("cpu", "gpu")}
        path = tmp_path / "w.json"
        document = base_document(**{"systems": systems, "host": "cpu", "target": ["cpu", "gpu"], **changes})
        path.write_text(json.dumps(document))
        return build_plan(read_workflow(path, registry), registry)

    return make


def test_a_value_that_a_target_can_not_take_is_left_out_there_only(plan: Make) -> None:
    passes = {"build": {"type": "ModelBuilder", "precision": {"search": ["int4", "fp16"]}}}
    made = plan(passes=passes)
    space, left = target_space(made, "cpu")
    assert [list(d.over.values) for d in space.dimensions] == [["int4"]]  # type: ignore[union-attr]
    assert [str(one) for one in left] == [
        "the value 'fp16' is left out for the target cpu: "
        "ModelBuilder makes no fp16 models for the CPU; take int4 or int8"
    ]
    assert target_space(made, "gpu") == (made.space, ())


def test_what_only_matters_for_a_flow_that_is_left_out_is_gone_with_it(plan: Make) -> None:
    made = plan(
        passes={
            "tune": {"type": "LoRA", "train_data_config": "tone", "r": {"search": [4, 8]}},
            "build": {"type": "ModelBuilder", "precision": "fp16"},
            "small": {"type": "ModelBuilder", "precision": "int4"},
        },
        pass_flows=[["tune", "build"], ["small"]],
    )
    space, left = target_space(made, "cpu")
    assert [(d.name, list(d.over.values)) for d in space.dimensions] == [("flow", [1])]  # type: ignore[union-attr]
    assert [one.what for one in left] == ["the flow tune → build"]
    assert [d.name for d in target_space(made, "gpu")[0].dimensions] == ["flow", "tune.r"]


def test_with_one_target_the_space_is_as_it_is(plan: Make) -> None:
    made = plan(passes={"build": {"type": "ModelBuilder", "precision": {"search": ["int4", "int8"]}}}, target="cpu")
    assert target_space(made, "cpu") == (made.space, ())


LOUD = """
from drupe import Model, ModelKindSpec, Pass, PassSpec, RuntimeSpec, hookimpl


@hookimpl
def drupe_passes():
    return [PassSpec(name="Shout", target="loud.plugin:Shout", accepts={"text"}, produces="loud")]


@hookimpl
def drupe_runtimes():
    return [
        RuntimeSpec(
            name="loud", target="drupe_toy.measuring:ToyRuntime", kinds={"loud"}, accelerators={"cpu"},
            capabilities={"forward"},
        )
    ]


class Shout(Pass):
    def run(self, model, config, context):
        (context.output_dir / "text.txt").write_text((model.folder / "text.txt").read_text().upper())
        return Model.from_dir("loud", context.output_dir)
"""


def test_no_trial_is_spent_on_what_a_target_can_not_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trials a target: with the flow that nothing can measure on the NPU in the way, one of them would be lost."""
    files = {"loud/__init__.py": "", "loud/plugin.py": LOUD}
    site = install_plugin(tmp_path / "site", "loud", files, plugins={"loud": "loud.plugin"})
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    document = toy_document(
        tmp_path,
        systems={
            "here": {"type": "LocalSystem", "in_process": True},
            "there": {"type": "LocalSystem", "in_process": True, "accelerators": [{"device": "npu"}]},
        },
        passes={
            "append": {"type": "Append", "times": {"search": [1, 2], "ordered": True}},
            "shout": {"type": "Shout"},
        },
        pass_flows=[["append", "shout"], ["append"]],
        search_strategy={"max_trials": 2, "seed": 1, "sampler": "brute-force"},
        target=["here", "there"],
    )
    path = write_workflow(tmp_path, document)
    done = drupe("run", path, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    told = "the flow append → shout is left out for the target there: no installed runtime serves loud models on npu"
    assert f"notice: {told}" in done.stdout
    found = manifest(tmp_path)
    assert any(told in notice for notice in found["notices"])
    for target in ("here", "there"):
        assert [c["state"] for c in found["targets"][target]["candidates"]] == ["complete", "complete"]
    assert {c["point"]["flow"] for c in found["targets"]["there"]["candidates"]} == {1}
    shown = drupe("plan", path, folder=tmp_path)
    assert told in shown.stdout
    rehearsed = drupe("rehearse", path, folder=tmp_path)
    assert rehearsed.returncode == 0, rehearsed.stdout + rehearsed.stderr


def test_combinations_are_counted_for_each_target(plan: Make) -> None:
    """With a stepped range; of a space too large to count, or without end, what is refused is told all the same."""
    build = {"type": "ModelBuilder", "precision": {"search": ["int4", "int8", "fp16"]}}
    tune = {"type": "LoRA", "train_data_config": "tone", "r": {"search": {"low": 4, "high": 16, "step": 4}}}
    made = plan(passes={"tune": tune, "build": build})
    assert len(list(every_point(made.space))) == space_size(made.space) == 12
    cpu, gpu = (count_combinations(made, name) for name in ("cpu", "gpu"))
    assert (cpu.points, cpu.fit, gpu.points, gpu.fit) == (8, 8, 12, 12)
    endless = {**tune, "alpha": {"search": {"low": 1.0, "high": 2.0}}}
    loose = count_combinations(plan(passes={"tune": endless, "build": build}), "gpu")
    assert (loose.points, loose.fit, loose.most_trials, loose.refused) == (None, None, None, ())


SPEAKS = """
from drupe import ConfigError, Model, Pass, PassConfig, PassSpec, hookimpl


@hookimpl
def drupe_passes():
    return [
        PassSpec(name="Shout", target="speaks.plugin:Shout", accepts={"text"}),
        PassSpec(name="Calm", target="speaks.plugin:Calm"),
    ]


class OnConfig(PassConfig):
    on: bool = False


class Speaks(Pass):
    Config = OnConfig

    def run(self, model, config, context):
        text = (model.folder / "text.txt").read_text() + type(self).__name__[0] * (1 + config.on)
        (context.output_dir / "text.txt").write_text(text)
        return Model.from_dir(self.plan(model.info, config, context.accelerator).kind, context.output_dir)


class Shout(Speaks):
    def plan(self, info, config, accelerator):
        return info.with_(kind="loud" if config.on else "text")


class Calm(Speaks):
    def plan(self, info, config, accelerator):
        return info.with_(kind="text" if config.on else info.kind)
"""


@pytest.mark.parametrize(("budget", "sampler"), [(3, "brute-force"), (9, "tpe")])
def test_a_combination_that_no_runtime_serves_is_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int, sampler: str
) -> None:
    """Each value fits beside another one; only what is shouted and never calmed can't be measured."""
    files = {"speaks/__init__.py": "", "speaks/plugin.py": SPEAKS}
    site = install_plugin(tmp_path / "site", "speaks", files, plugins={"speaks": "speaks.plugin"})
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    passes = {
        "shout": {"type": "Shout", "on": {"search": [True, False]}},
        "calm": {"type": "Calm", "on": {"search": [False, True]}},
    }
    strategy = {"max_trials": budget, "sampler": sampler}
    path = write_workflow(tmp_path, toy_document(tmp_path, passes=passes, search_strategy=strategy))
    planned = drupe("plan", path, folder=tmp_path).stdout
    assert "points  4, of which 3 fit\nrefused 1, such as shout.on=True, calm.on=False: no ins" in planned
    assert "\ntrials  3\n" in planned
    done = drupe("run", path, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    target = manifest(tmp_path)["targets"]["here"]
    assert [(c["number"], c["state"]) for c in target["candidates"]] == [(n, "complete") for n in range(3)]
    (left,) = target["left_out"]
    assert left["example"] == {"shout.on": True, "calm.on": False}
    assert left["points"] == 1
    assert "serves loud models on cpu" in left["why"]
    told = "combinations such as shout.on=True, calm.on=False are left out for the target here and count as no trial"
    assert done.stdout.count(f"notice: {told}") == 1
    ended = "the search for here ended after 3 of 9 trials: no other combination of values fits"
    assert (f"notice: {ended}" in done.stdout) is (budget == 9)
    assert drupe("run", path, folder=tmp_path).returncode == 0
    assert len(manifest(tmp_path)["targets"]["here"]["candidates"]) == 3
