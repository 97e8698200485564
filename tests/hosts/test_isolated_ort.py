"""IsolatedORT: an environment that holds onnxruntime and what it needs, no Drupe, measures what passes here made."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

from drupe.core.accelerators import Accelerator
from drupe.core.errors import EvaluationError
from drupe.core.hosts import OTHER_INTERPRETER
from drupe.core.registry import Registry
from drupe.core.runtimes import Runtime
from drupe.testing import RuntimeContract, tiny_onnx_mlp
from tests.hosts.support import built_in
from tests.plugins.metrics.sessions import configured, context, metric
from tests.support.workflows import drupe

pytest.importorskip("onnxruntime")


def _with_what_it_needs(name: str) -> set[str]:
    found = {name}
    for text in importlib.metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found |= _with_what_it_needs(requirement.name)
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment of its own, with this one's onnxruntime, numpy and little else linked into it."""
    folder = tmp_path_factory.mktemp("isolated") / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    for name in _with_what_it_needs("onnxruntime"):
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    return folder


@pytest.fixture
def told(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable by which the host tells the runtime where to open models."""
    where = {"python": str(environment / "bin" / "python"), "environment": {"PYTHONPATH": ""}}
    monkeypatch.setenv(OTHER_INTERPRETER, json.dumps(where))


@pytest.mark.usefixtures("told")
class TestIsolatedRuntime(RuntimeContract):
    name = "IsolatedORT"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Any:
        return tiny_onnx_mlp(tmp_path / "model")


@pytest.mark.usefixtures("told")
def test_the_session_gives_what_one_here_gives_and_tells_its_own_time(tmp_path: Path) -> None:
    model = tiny_onnx_mlp(tmp_path / "model")
    batch = {"x": np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)}
    results = []
    for name in ("onnx", "IsolatedORT"):
        runtime: Runtime = Registry.discover().create("drupe_runtimes", name)
        options = runtime.options(Accelerator(), {"threads": 1, "io_bind": True, "graph_optimization": "basic"})
        with runtime.open(model, Accelerator(), options) as session:
            results.append(session.forward(batch))
    here, there = results
    np.testing.assert_array_equal(there.outputs["logits"], here.outputs["logits"])
    assert here.device_seconds is None
    assert there.device_seconds is not None and there.device_seconds > 0


@pytest.mark.usefixtures("told")
def test_texts_go_there_and_come_back(tmp_path: Path) -> None:
    import onnx

    model = tiny_onnx_mlp(tmp_path / "model")
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 20]> '
        "g (string[n] a, string[n] b) => (string[n] c) { c = StringConcat(a, b) }"
    )
    onnx.save(graph, model.folder / "model.onnx")
    runtime: Runtime = Registry.discover().create("drupe_runtimes", "IsolatedORT")
    with runtime.open(model, Accelerator(), runtime.options(Accelerator(), {})) as session:
        given = {"a": np.array(["long ", ""], dtype=object), "b": np.array(["ü", "é"], dtype=object)}
        assert session.forward(given).outputs["c"].tolist() == ["long ü", "é"]


@pytest.mark.usefixtures("told")
def test_a_process_that_dies_is_one_clear_error(tmp_path: Path) -> None:
    runtime: Runtime = Registry.discover().create("drupe_runtimes", "IsolatedORT")
    model = tiny_onnx_mlp(tmp_path / "model")
    with runtime.open(model, Accelerator(), runtime.options(Accelerator(), {})) as session:
        session._session._process.kill()  # type: ignore[attr-defined]
        with pytest.raises(EvaluationError, match="ended: exit status -9"):
            session.forward({"x": np.ones((1, 8), np.float32)})


@pytest.mark.usefixtures("told")
def test_a_provider_that_is_not_there_is_told(tmp_path: Path) -> None:
    runtime: Runtime = Registry.discover().create("drupe_runtimes", "IsolatedORT")
    gpu = Accelerator("gpu", "CUDAExecutionProvider")
    with pytest.raises(EvaluationError, match=r"no CUDAExecutionProvider; it has .*CPUExecutionProvider"):
        runtime.open(tiny_onnx_mlp(tmp_path / "model"), gpu, runtime.options(gpu, {}))


def workflow(folder: Path, system: dict[str, Any], **changes: Any) -> Path:
    samples = "import numpy as np\n\n\ndef batches(**kwargs):\n    rng = np.random.default_rng(0)\n"
    samples += "    return [({'x': rng.normal(size=(1, 8)).astype('float32')}, 0) for _ in range(8)]\n"
    (folder / "data.py").write_text(samples)
    latency = {"name": "latency", "type": "latency", "sub_types": [{"name": "avg", "priority": 1}]}
    latency["user_config"] = {"repeat_test_num": 5, "warmup_num": 1}
    far = {
        "name": "far",
        "type": "discrepancy",
        "user_config": {"user_script": "data.py", "dataloader_func": "batches"},
    }
    document = {
        "input_model": {"type": "ONNXModel", "model_path": str(tiny_onnx_mlp(folder / "model").folder)},
        "systems": {"there": system},
        "evaluators": {"judge": {"metrics": [latency, far]}},
        "evaluator": "judge",
        "passes": {"q": {"type": "OnnxDynamicQuantization"}},
        "host": "there",
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
        **changes,
    }
    path = folder / "workflow.json"
    path.write_text(json.dumps(document))
    return path


def test_passes_run_here_and_models_are_measured_there(environment: Path, tmp_path: Path) -> None:
    python = environment / "bin" / "python"
    asked = subprocess.run([python, "-c", "import onnxruntime, drupe"], capture_output=True, env={}, check=False)
    assert b"No module named 'drupe'" in asked.stderr
    log = tmp_path / "path.txt"
    (tmp_path / "bin").mkdir()
    # The session's process gets the variables: Python runs this file when it starts.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        f"import os\nopen({str(log)!r}, 'a').write(os.environ['TOLD'] + ' ' + os.environ['PATH'] + '\\n')\n"
    )
    system = {
        "type": "IsolatedORT",
        "python_environment_path": str(environment / "bin"),
        "environment_variables": {"TOLD": "yes", "PYTHONPATH": str(tmp_path / "site")},
        "prepend_to_path": [str(tmp_path / "bin")],
        "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
        "threads": 1,
    }
    done = drupe("run", workflow(tmp_path, system), "--allow", "user-scripts", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "host: 'there' is now this machine, for passes (there only measures)" in done.stdout + done.stderr
    manifest = json.loads((tmp_path / "out" / "drupe.json").read_text())
    measured = manifest["targets"]["there"]["certification"]
    assert measured["latency-avg"]["value"] > 0
    assert 0 < measured["far-mean_error"]["value"] < 1
    last = log.read_text().splitlines()[-1].split(" ")
    assert last[0] == "yes"
    assert last[1].split(":")[:2] == [str(tmp_path / "bin"), str(environment / "bin")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"python_environment_path": "nowhere"}, "nowhere is not there"),
        ({"python_environment_path": None}, "systems.there.python_environment_path: not given"),
        ({"runtime": "onnx"}, 'systems.there.runtime: "onnx"; expected none, as systems of type IsolatedORT measure'),
        ({"requirements": ["onnxruntime"]}, "systems.there.requirements: unknown key 'requirements'"),
    ],
)
def test_a_wrong_system_is_told(environment: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    system = {"type": "IsolatedORT", "python_environment_path": str(environment), **change}
    done = drupe("run", workflow(tmp_path, system), "--allow", "user-scripts", folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr, done.stderr


def test_an_environment_without_onnxruntime_is_told_before_work(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    system = {"type": "IsolatedORT", "python_environment_path": str(tmp_path / "bare")}
    done = drupe("run", workflow(tmp_path, system), "--allow", "user-scripts", folder=tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "systems.there.python_environment_path: onnxruntime is not installed in the environment of" in line
    assert "-m pip install onnxruntime" in line


def test_a_model_that_is_no_graph_is_told_before_work(environment: Path, tmp_path: Path, tiny_llama_dir: Path) -> None:
    system = {"type": "IsolatedORT", "python_environment_path": str(environment)}
    model = {"type": "HfModel", "model_path": str(tiny_llama_dir), "task": "text-generation"}
    passes = {"m": {"type": "QuaRot"}}
    path = workflow(tmp_path, system, input_model=model, passes=passes)
    done = drupe("plan", path, "--allow", "user-scripts", folder=tmp_path)
    assert done.returncode == 2
    assert "the runtime 'IsolatedORT' does not serve hf models" in done.stderr, done.stderr


@pytest.fixture
def host(environment: Path, tmp_path: Path) -> Iterator[Any]:
    found = built_in("IsolatedORT", tmp_path / "state", python_environment_path=str(environment))
    yield found
    found.close()


def test_it_has_this_machines_versions_and_the_other_onnxruntime(host: Any, environment: Path) -> None:
    (site,) = (environment / "lib").glob("python*/site-packages")
    (old,) = site.glob("onnxruntime-*.dist-info")
    renamed = old.with_name("onnxruntime_acme-9.9.dist-info")
    renamed.mkdir()
    try:
        (renamed / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-acme\nVersion: 9.9\n")
        described = host.describe()
    finally:
        (renamed / "METADATA").unlink()
        renamed.rmdir()
    assert described.versions["onnxruntime-acme"] == "9.9"
    assert described.environment.endswith("onnxruntime-acme 9.9")
    assert described.versions["drupe"] == importlib.metadata.version("drupe")


@pytest.mark.full
@pytest.mark.slow
def test_another_version_of_onnxruntime_measures(tmp_path: Path) -> None:
    """An environment as a user makes it: python -m venv, pip install onnxruntime."""
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    command = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--no-input", "onnxruntime==1.26.0"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={"PATH": "/usr/bin:/bin"}
    )
    if done.returncode:
        pytest.skip(f"onnxruntime can't be installed here: {done.stderr.splitlines()[-1:]}")
    system = {"type": "IsolatedORT", "python_environment_path": str(folder), "threads": 1}
    ran = drupe("run", workflow(tmp_path, system), "--allow", "user-scripts", folder=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    manifest = json.loads((tmp_path / "out" / "drupe.json").read_text())
    assert "latency-avg" in manifest["targets"]["there"]["certification"]


@pytest.mark.usefixtures("told")
def test_the_memory_of_the_other_process_counts(tmp_path: Path) -> None:
    model = tiny_onnx_mlp(tmp_path / "model", hidden=200_000)
    runtime: Runtime = Registry.discover().create("drupe_runtimes", "IsolatedORT")
    made = metric("peak_memory")
    config = configured(made, repeat_test_num=2, warmup_num=0)
    surroundings = context(tmp_path)
    surroundings.model_sessions = lambda: runtime.open(model, Accelerator(), runtime.options(Accelerator(), {}))
    rows = list(made.measure(model, None, (), config, surroundings).values())
    weights = sum(path.stat().st_size for path in model.folder.iterdir())
    assert weights > 8e6
    assert made.aggregate(rows, "peak", config) >= made.aggregate(rows, "open", config) > weights
