"""What a system lacks for its part of a workflow, told before work starts: devices by their numbers, distributions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from drupe.core.accelerators import Accelerator
from drupe.core.cli.plan import plan as plan_command
from drupe.core.cli.validate import validate
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.engine import Engine
from drupe.core.errors import ConfigError
from drupe.core.hosts import HostDescription
from drupe.core.model import Model
from drupe.core.passes import Pass
from drupe.core.placing import requirement_needs
from drupe.core.plan import build_plan
from drupe.core.preflight import _device_faults, _unmet_by_results
from drupe.core.registry import get_registry
from drupe.core.requirements import installed_builds, installed_version, unmet
from drupe.core.specs import PassSpec
from drupe.core.store import Store
from drupe.core.workflow.read import examine
from drupe.testing import make_context, tiny_onnx_mlp
from tests.support.workflows import drupe, toy_document, write_workflow


def read(folder: Path, provider: Any) -> Accelerator:
    """The accelerator as a workflow file gives it."""
    document = {
        "input_model": {"type": "ONNXModel", "model_path": "m.onnx"},
        "systems": {
            "box": {"type": "LocalSystem", "accelerators": [{"device": "gpu", "execution_providers": [provider]}]}
        },
        "target": "box",
        "passes": {"quantize": {"type": "OnnxDynamicQuantization"}},
    }
    found = examine(write_workflow(folder, document), get_registry())
    assert found.workflow is not None
    return found.workflow.systems["box"].accelerators[0]


@pytest.mark.parametrize(("number", "there"), [(0, True), (1, True), (2, False), ("3", False)])
def test_a_device_that_the_host_lacks_is_told(tmp_path: Path, number: Any, there: bool) -> None:
    accelerator = read(tmp_path, ["CUDAExecutionProvider", {"device_id": number}])
    assert accelerator.provider_options == {"device_id": number}
    host = HostDescription({}, [{"device": "cpu"}, {"device": "gpu"}, {"device": "gpu"}])
    faults = [str(fault) for fault in _device_faults("systems.box", host, [accelerator])]
    wanted = f"systems.box.accelerators.0.execution_providers: device_id {number}; there are the gpus 0 to 1"
    assert faults == ([] if there else [wanted])


def test_no_gpu_at_all_is_told(tmp_path: Path) -> None:
    accelerator = read(tmp_path, "CUDAExecutionProvider")
    assert accelerator.provider_options == {}
    (fault,) = _device_faults("systems.box", HostDescription({}, [{"device": "cpu"}]), [accelerator])
    assert "systems.box.accelerators.0.device: no gpu is found there" in str(fault)


@pytest.mark.skipif(installed_version("onnxoptimizer") is not None, reason="onnxoptimizer is installed here")
def test_what_a_config_alone_needs_is_told_before_work(tmp_path: Path) -> None:
    """The pass itself needs no onnxoptimizer; this setting of it does."""
    tiny_onnx_mlp(tmp_path / "model")
    document = {
        "input_model": {"type": "ONNXModel", "model_path": str(tmp_path / "model")},
        "passes": {"clean": {"type": "OnnxPeepholeOptimizer", "onnxoptimizer_optimize": True}},
        "cache_dir": str(tmp_path / "cache"),
        "output_dir": str(tmp_path / "out"),
    }
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert "OnnxPeepholeOptimizer, as passes.clean sets it, needs onnxoptimizer>=0.3.13; there is none" in line
    assert "pip install 'onnxoptimizer>=0.3.13' there" in line
    assert not list((tmp_path / "cache").rglob("*.json"))


def needs_of(folder: Path, systems: dict[str, Any], host: str, settings: dict[str, Any]) -> list[str]:
    document = {
        "input_model": {"type": "ONNXModel", "model_path": "m.onnx"},
        "systems": systems,
        "host": host,
        "passes": {"clean": {"type": "OnnxPeepholeOptimizer", **settings}},
    }
    registry = get_registry()
    workflow = examine(write_workflow(folder, document), registry).workflow
    assert workflow is not None
    return [str(fault) for fault in requirement_needs(workflow, registry)]


@pytest.mark.skipif(installed_version("onnxoptimizer") is not None, reason="onnxoptimizer is installed here")
def test_what_a_config_needs_is_told_of_systems_that_need_not_be_asked(tmp_path: Path) -> None:
    """Of this environment and of one that is not there; not of one that is, whatever its name begins with."""
    systems = {
        "here": {"type": "LocalSystem"},
        "old": {"type": "PythonEnvironment", "python_environment_path": sys.prefix},
        "older": {"type": "PythonEnvironment", "python_environment_path": str(tmp_path / "gone")},
    }
    wanted = {"onnxoptimizer_optimize": True}
    for host in ("here", "older"):
        told = f"passes.clean: OnnxPeepholeOptimizer, on {host}, needs onnxoptimizer>=0.3.13; there is none; "
        (need,) = needs_of(tmp_path, systems, host, wanted)
        assert need == told + "pip install 'onnxoptimizer>=0.3.13' there"
    assert needs_of(tmp_path, systems, "old", wanted) == []
    assert needs_of(tmp_path, systems, "here", {}) == []


def test_a_pass_that_can_not_tell_what_it_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Any, config: Any, accelerator: Any) -> Sequence[str]:
        raise KeyError("lost")

    monkeypatch.setattr("drupe.plugins.onnx.peephole.OnnxPeepholeOptimizer.requirements", fails)
    (told,) = needs_of(tmp_path, {"here": {"type": "LocalSystem"}}, "here", {})
    assert told.startswith("passes.clean: OnnxPeepholeOptimizer of plugin onnx")
    assert "can't tell what it needs: KeyError: 'lost'; install another version of drupe, or leave the pass out" in told


def test_what_else_is_wrong_is_shown_beside_a_pass_that_can_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, config: Any, accelerator: Any) -> Sequence[str]:
        raise KeyError("lost")

    monkeypatch.setattr("drupe.plugins.onnx.peephole.OnnxPeepholeOptimizer.requirements", fails)
    fuse = {"type": "OnnxPeepholeOptimizer"}
    passes = {
        "clean": fuse,
        "again": fuse,
        "put": {"type": "GraphSurgeries", "surgeries": [{"surgeon": "GemmToMatMulAdd"}], "input_int32": True},
    }
    document = {"input_model": {"type": "ONNXModel", "model_path": "gone.onnx"}, "passes": passes, "output_dir": "out"}
    shown = CliRunner().invoke(validate, [str(write_workflow(tmp_path, document))])
    assert shown.exit_code == 2 and "input_int32" in shown.output
    del passes["put"]
    file = write_workflow(tmp_path, document)
    shown = CliRunner().invoke(validate, [str(file)])
    assert shown.exit_code == 2
    for name in ("clean", "again"):
        assert f"passes.{name}: OnnxPeepholeOptimizer of plugin onnx" in shown.output
    # What is needed besides, the model's file, is still told.
    assert "gone.onnx" in shown.output and "needs (1)" in shown.output
    planned = CliRunner().invoke(plan_command, [str(file)])
    assert planned.exit_code == 2 and planned.output.count("can't tell what it needs") == 2


def test_what_a_searched_config_needs_is_told_when_its_job_starts(tmp_path: Path) -> None:
    class Needy(Pass):
        def requirements(self, config: Any, accelerator: Accelerator) -> Sequence[str]:
            return ("not-there-at-all>=2",)

        def run(self, model: Model, config: Any, context: PassContext) -> Model:
            raise AssertionError("it must not begin")

    needy = Needy(PassSpec(name="Needy", target="here:Needy", summary="Needs what is not there."))
    with pytest.raises(ConfigError, match="Needy, as it is set, needs not-there-at-all>=2; there is none"):
        needy(tiny_onnx_mlp(tmp_path / "model"), PassConfig(), make_context(tmp_path / "job"))


def test_what_opening_a_result_needs_is_told_before_it_is_made(tmp_path: Path) -> None:
    document = toy_document(tmp_path)
    document["passes"]["append"]["needs"] = "not-there-at-all>=2"
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "systems.here: measuring what the passes make, by the runtime" in done.stderr
    assert "needs not-there-at-all>=2; there is none; pip install 'not-there-at-all>=2' there" in done.stderr
    assert not list((tmp_path / "cache").rglob("*.json"))
    document.pop("evaluator")
    assert drupe("run", write_workflow(tmp_path, document), folder=tmp_path).returncode == 0


def test_what_the_runtime_needs_is_told_before_a_model_is_made(tmp_path: Path) -> None:
    tiny_onnx_mlp(tmp_path / "model")
    document = {
        "input_model": {"type": "ONNXModel", "model_path": str(tmp_path / "model")},
        "passes": {"fix": {"type": "DynamicToFixedShape", "dim_param": ["batch"], "dim_value": [1]}},
    }
    registry = get_registry()
    workflow = examine(write_workflow(tmp_path, document), registry).workflow
    assert workflow is not None
    engine, plan = Engine(workflow, registry, Store(tmp_path / "store")), build_plan(workflow, registry)
    (lacks,) = _unmet_by_results(engine, workflow.host, {"onnx": "1.20.0"}.get, plan).values()
    assert lacks[0] == "measuring what the passes make, by the runtime onnx, needs onnxruntime>=1.22; there is none"
    assert _unmet_by_results(engine, workflow.host, {"onnxruntime-gpu": "1.23.0"}.get, plan) == {}
    engine.close()


def test_requirements_are_compared_with_what_is_there() -> None:
    there = {"torch": "2.7.1", "onnx-ir": "0.1.6", "onnxruntime-gpu": "1.23.0"}.get
    texts = [
        "onnxruntime>=1.22",
        "onnxruntime>=1.24",
        "onnxruntime-genai",
        "torch>=2.7",
        "torch>=2.8",
        "onnx_ir>=0.1",
        "absent",
        "absent; sys_platform == 'nowhere'",
        "no requirement!",
        "absent | torch>=2",
        "absent | torch>=3",
        "absent | nowhere",
    ]
    lacking = {"torch>=2.8": "2.7.1", "absent": "none", "absent | torch>=3": "2.7.1", "absent | nowhere": "none"}
    lacking |= {"onnxruntime>=1.24": "1.23.0", "onnxruntime-genai": "none"}
    assert unmet(texts, there) == lacking


def test_a_pass_that_belongs_on_the_target_runs_there_unless_it_has_a_host(tmp_path: Path) -> None:
    npu = {"type": "LocalSystem", "accelerators": [{"device": "npu", "execution_providers": ["QNNExecutionProvider"]}]}
    document = {
        "input_model": {"type": "ONNXModel", "model_path": "m.onnx"},
        "systems": {"here": {"type": "LocalSystem"}, "one": npu, "two": npu},
        "host": "here",
        "target": ["one", "two"],
        "passes": {
            "fix": {"type": "DynamicToFixedShape", "dim_param": ["n"], "dim_value": [1]},
            "there": {"type": "EPContextBinaryGenerator"},
        },
    }
    found = examine(write_workflow(tmp_path, document), get_registry())
    assert found.workflow is not None
    plan = build_plan(found.workflow, get_registry())
    hosts = {target: [step.host for step in plan.chain({}, target)] for target in ("one", "two")}
    assert hosts == {"one": ["here", "one"], "two": ["here", "two"]}
    document["passes"]["there"]["host"] = "here"  # type: ignore[index]
    found = examine(write_workflow(tmp_path, document), get_registry())
    assert found.workflow is not None
    plan = build_plan(found.workflow, get_registry())
    assert [step.host for step in plan.chain({}, "one")] == ["here", "here"]


def test_what_is_installed_is_told_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step records name the build that worked."""
    monkeypatch.setattr("drupe.core.requirements.installed_version", {"onnxruntime-gpu": "1.23.0", "onnx": "1.20"}.get)
    assert installed_builds("onnxruntime") == {"onnxruntime-gpu": "1.23.0"}
    assert installed_builds("onnx") == {"onnx": "1.20"} and installed_builds("torch") == {}
