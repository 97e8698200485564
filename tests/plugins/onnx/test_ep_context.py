"""EPContextBinaryGenerator: what is known before work, and real compilations by providers in environments of their own.

Qualcomm's package compiles for its chips on any x86 machine, and runs there what it compiled, as the chip would.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from drupe.core.accelerators import Accelerator
from drupe.core.cli.plan import plan as plan_command
from drupe.core.cli.validate import validate
from drupe.core.errors import ConfigError, EvaluationError, PassError
from drupe.core.model import ModelInfo
from drupe.core.registry import get_registry
from drupe.core.requirements import installed_version
from drupe.plugins.onnx import providers
from drupe.plugins.onnx.ep_context import EPContextConfig
from drupe.plugins.onnx.providers import ProviderAbsent, make_available
from drupe.testing import make_context, tiny_causal_lm
from tests.plugins.onnx.graphs import CPU, run_pass, saved
from tests.support.environments import environment_with
from tests.support.real_runs import noted_from
from tests.support.vision import digits
from tests.support.workflows import drupe, write_workflow

QNN = Accelerator("npu", "QNNExecutionProvider")
DENSE = """<ir_version: 10, opset_import: ["" : 17]>
dense (float[2, 16] x) => (float[2, 8] y) { h = MatMul (x, w)
 y = Relu (h) }"""
X = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 16)
WEIGHT = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)


def planned(kind: str, accelerator: Accelerator, attributes: dict[str, Any] | None = None, **config: Any) -> ModelInfo:
    subject = get_registry().create("drupe_passes", "EPContextBinaryGenerator")
    info: ModelInfo = subject.plan(ModelInfo(kind, attributes or {}), EPContextConfig(**config), accelerator)
    return info


@pytest.mark.parametrize(
    ("kind", "accelerator", "attributes", "config", "message"),
    [
        ("onnx", CPU, {}, {}, "CPUExecutionProvider runs graphs node by node and has nothing to compile; name one"),
        ("onnx", Accelerator("npu"), {}, {}, "none is named; name one that compiles in systems.X.accelerators"),
        ("onnx", QNN, {"ep_context": "QNNExecutionProvider"}, {}, "compiled already, for QNNExecutionProvider"),
        ("onnx", QNN, {}, {"weight_sharing": True}, "weight_sharing is for several graphs, and the model is one"),
        ("genai", QNN, {}, {"weight_sharing": True}, "weight_sharing is for several graphs, and the model is one"),
        ("composite", QNN, {}, {"run_options": {"a": 1}}, "run_options are for a pipeline; put StaticLLM before it"),
    ],
)
def test_what_can_not_be_compiled_is_refused_before_work(
    kind: str, accelerator: Accelerator, attributes: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(kind, accelerator, attributes, **config)


def test_a_plan_says_for_which_provider_the_result_is() -> None:
    assert planned("composite", QNN, weight_sharing=True).attributes["ep_context"] == "QNNExecutionProvider"
    with pytest.raises(ValidationError, match="leave embed_context false"):
        EPContextConfig(weight_sharing=True, embed_context=True)


def test_a_provider_that_is_not_here_is_told_with_its_package() -> None:
    with pytest.raises(ProviderAbsent, match=r"this onnxruntime has no VitisAIExecutionProvider; it has .*CPU"):
        make_available("VitisAIExecutionProvider", "npu")


def test_a_library_that_does_not_load_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libprovider.so"
    library.write_text("no library")
    monkeypatch.setattr(providers, "library_of", lambda _: str(library))
    with pytest.raises(
        ProviderAbsent, match=r"can't load the library of VitisAIExecutionProvider: .*; install versions"
    ):
        make_available("VitisAIExecutionProvider", "npu")


def broken_package(folder: Path, name: str, code: str) -> Path:
    """An installed distribution whose module fails as it is imported."""
    module = folder / name.replace("-", "_")
    module.mkdir(parents=True)
    (module / "__init__.py").write_text(code)
    told = folder / f"{module.name}-1.2.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    return folder


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        (
            "onnxruntime-vitisai",
            "raise ImportError('libvart.so: cannot open shared object file')",
            r"the package onnxruntime-vitisai 1.2, which brings VitisAIExecutionProvider, can't be imported "
            r"\(ImportError: libvart.so: cannot open .*\); mend it \(pip install --force-reinstall onnxruntime-vitisai",
        ),
        ("onnxruntime-vitisai", "import no_such_runtime", "ModuleNotFoundError: No module named 'no_such_runtime'"),
        ("onnxruntime-vitisai", "raise OSError('no driver')", "OSError: no driver"),
        ("onnxruntime-ep-strange", "1 / 0", "onnxruntime-ep-strange 1.2, which may bring VitisAIExecutionProvider"),
        # One that is known to bring another provider is none of this one's business.
        ("onnxruntime-migraphx", "1 / 0", "this onnxruntime has no VitisAIExecutionProvider"),
    ],
)
def test_a_package_that_can_t_be_imported_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str, message: str
) -> None:
    monkeypatch.syspath_prepend(broken_package(tmp_path, name, code))
    providers.library_of.cache_clear()
    with pytest.raises(ProviderAbsent, match=message):
        make_available("VitisAIExecutionProvider", "npu")
    # What works without it still does.
    assert providers.library_of("CPUExecutionProvider") is None
    providers.library_of.cache_clear()


def test_it_reaches_whoever_opens_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(broken_package(tmp_path / "site", "onnxruntime-vitisai", "import no_such_runtime"))
    providers.library_of.cache_clear()
    model = saved(tmp_path / "model", DENSE, {"w": WEIGHT}, check=False)
    runtime = get_registry().create("drupe_runtimes", "onnx")
    accelerator = Accelerator("npu", "VitisAIExecutionProvider")
    with pytest.raises(EvaluationError, match=r"can't be imported .*mend it"):
        runtime.open(model, accelerator, {})
    with pytest.raises(PassError, match=r"EPContextBinaryGenerator: the package onnxruntime-vitisai 1.2, which brings"):
        context = make_context(tmp_path / "job", accelerator=accelerator)
        run_pass("EPContextBinaryGenerator", model, tmp_path, context=context)
    genai = get_registry().create("drupe_runtimes", "genai")
    with pytest.raises(EvaluationError, match=r"can't be imported .*mend it"):
        genai.open(model, accelerator, {})
    providers.library_of.cache_clear()


def compiling(folder: Path, model: dict[str, Any], passes: dict[str, Any], target: dict[str, Any]) -> Path:
    document = {
        "input_model": model,
        "systems": {"here": {"type": "LocalSystem", "threads": 1}, "there": target},
        "passes": passes,
        "host": "here",
        "target": "there",
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
    }
    folder.mkdir(exist_ok=True)
    return write_workflow(folder, document)


def system(
    environment: Path | str, provider: str, device: str, options: dict[str, Any] | None = None
) -> dict[str, Any]:
    accelerator = {"device": device, "execution_providers": [[provider, options] if options else provider]}
    path = {"python_environment_path": str(environment)}
    return {"type": "PythonEnvironment", **path, "threads": 1, "accelerators": [accelerator]}


@pytest.mark.skipif(installed_version("onnxruntime-qnn") is not None, reason="the provider is here")
def test_a_workflow_says_which_package_its_target_lacks(tmp_path: Path) -> None:
    """Before it is run, by validate and plan, and where it is run in one message before any work."""
    saved(tmp_path / "model", DENSE, {"w": WEIGHT}, check=False)
    model = {"type": "ONNXModel", "model_path": str(tmp_path / "model"), "onnx_file_name": "model.onnx"}
    passes = {"compile": {"type": "EPContextBinaryGenerator"}}
    told = "passes.compile: EPContextBinaryGenerator, on there, needs onnxruntime-qnn>=1.23; there is none"
    absent = compiling(
        tmp_path / "absent", model, passes, system("/no/such/place", QNN.execution_provider or "", "npu")
    )
    valid, plan = (CliRunner().invoke(command, [str(absent)]) for command in (validate, plan_command))
    assert valid.exit_code == plan.exit_code == 0
    assert told in valid.output
    assert "compile (EPContextBinaryGenerator on there)" in plan.output
    assert told in plan.output
    there = compiling(tmp_path / "there", model, passes, system(sys.prefix, QNN.execution_provider or "", "npu"))
    done = drupe("run", there, folder=tmp_path)
    assert done.returncode == 1
    assert (
        "EPContextBinaryGenerator, as passes.compile sets it, needs onnxruntime-qnn>=1.23; there is none" in done.stderr
    )
    assert "pip install 'onnxruntime-qnn>=1.23' there" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "there").rglob("*_ctx.onnx")) == []


@pytest.fixture(scope="session")
def qnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment_with(tmp_path_factory.mktemp("qnn") / "environment", "onnxruntime-qnn~=2.7")


def python(environment: Path, script: str, *arguments: Path | str) -> Any:
    """Run a script that knows nothing of Drupe in an environment, and return what it prints as JSON."""
    command = [environment / "bin" / "python", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


RUN = """
import json, sys
import numpy as np, onnxruntime as ort, onnxruntime_qnn as qnn
ort.register_execution_provider_library("QNNExecutionProvider", qnn.get_library_path())
device = next(d for d in ort.get_ep_devices() if d.ep_name == "QNNExecutionProvider")
settings = ort.SessionOptions()
settings.add_provider_for_devices([device], {"backend_type": "htp"})
session = ort.InferenceSession(sys.argv[1], settings)
print(json.dumps(session.run(None, {session.get_inputs()[0].name: np.load(sys.argv[2])})[0].tolist()))
"""
SAY = """
import json, sys
import numpy as np, onnxruntime_genai as og, onnxruntime_qnn as qnn
og.register_execution_provider_library("QNNExecutionProvider", qnn.get_library_path())
model = og.Model(sys.argv[1])
said = []
for prompt in json.loads(sys.argv[2]):
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=128, do_sample=False, top_k=1)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.asarray(prompt, np.int32))
    said.append([])
    while len(said[-1]) < 12:
        generator.generate_next_token()
        said[-1].append(int(generator.get_next_tokens()[0]))
print(json.dumps(said))
"""


def answered(environment: Path, graph: Path, batch: np.ndarray) -> np.ndarray:
    """What ONNX Runtime with Qualcomm's provider makes of a batch for a graph of one input."""
    file = graph.parent.parent / "batch.npy"
    np.save(file, batch)
    return np.array(python(environment, RUN, graph, file))


def compiled_nodes(path: Path) -> list[Any]:
    graph = onnx.load(str(path), load_external_data=False).graph
    return [
        {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for node in graph.node
        if node.op_type == "EPContext"
    ]


@pytest.mark.slow
def test_a_graph_compiled_for_qualcomms_chips_answers_as_its_source(qnn: Path, tmp_path: Path) -> None:
    saved(tmp_path / "model", DENSE, {"w": WEIGHT}, check=False)
    model = {"type": "ONNXModel", "model_path": str(tmp_path / "model"), "onnx_file_name": "model.onnx"}
    options = {"htp_graph_finalization_optimization_mode": "3"}
    step = {"type": "EPContextBinaryGenerator", "embed_context": True, "provider_options": options}
    target = system(qnn, "QNNExecutionProvider", "npu", {"soc_model": "60"})
    done = drupe("run", compiling(tmp_path, model, {"compile": step}, target), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (graph,) = (tmp_path / "out").rglob("model_ctx.onnx")
    (node,) = compiled_nodes(graph)
    assert (node["source"], node["embed_mode"]) == (b"QNNExecutionProvider", 1)
    np.testing.assert_allclose(answered(qnn, graph, X), np.maximum(X @ WEIGHT, 0), atol=1e-2)


@pytest.mark.slow
@pytest.mark.real_run("EPContextBinaryGenerator")
def test_a_network_that_knows_digits_knows_them_when_compiled(
    qnn: Path, digits_resnet_dir: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForImageClassification

    pictures = digits(32, 3)[0][-20:]
    model = {"type": "HfModel", "model_path": str(digits_resnet_dir), "task": "image-classification"}
    passes = {
        "export": {"type": "OnnxConversion", "use_dynamo_exporter": False, "target_opset": 17},
        "fix": {"type": "DynamicToFixedShape", "dim_param": ["batch"], "dim_value": [len(pictures)]},
        "compile": {"type": "EPContextBinaryGenerator", "embed_context": True},
    }
    target = system(qnn, "QNNExecutionProvider", "npu", {"soc_model": "60"})
    done = drupe("run", compiling(tmp_path, model, passes, target), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    noted_from(tmp_path / "out" / "drupe.json")
    (graph,) = (tmp_path / "out").rglob("model_ctx.onnx")
    assert compiled_nodes(graph)
    source = AutoModelForImageClassification.from_pretrained(digits_resnet_dir).eval()
    with torch.inference_mode():
        expected = source(pixel_values=torch.from_numpy(pictures)).logits.numpy()
    found = answered(qnn, graph, pictures)
    assert (found.argmax(1) == expected.argmax(1)).all() and len(set(expected.argmax(1))) > 5
    np.testing.assert_allclose(found, expected, atol=0.05)


@pytest.mark.slow
def test_graphs_in_a_row_are_compiled_each_and_put_together(qnn: Path, tmp_path: Path) -> None:
    parts = [saved(tmp_path / "first", DENSE, {"w": WEIGHT}, check=False)]
    later = DENSE.replace("16] x", "8] y").replace("8] y) {", "8] z) {").replace("(x, w)", "(y, v)")
    parts.append(saved(tmp_path / "second", later.replace("y = Relu", "z = Relu"), {"v": WEIGHT[:8]}, check=False))
    components = [{"type": "ONNXModel", "model_path": str(part.folder / "model.onnx")} for part in parts]
    model = {"type": "CompositeModel", "model_components": components, "model_component_names": ["first", "second"]}
    passes = {"compile": {"type": "EPContextBinaryGenerator"}, "compose": {"type": "ComposeOnnxModels"}}
    done = drupe("run", compiling(tmp_path, model, passes, system(qnn, "QNNExecutionProvider", "npu")), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (graph,) = (tmp_path / "out").rglob("model.onnx")
    assert sorted(path.name for path in graph.parent.glob("*.bin")) == ["first_ctx_qnn.bin", "second_ctx_qnn.bin"]
    assert len(compiled_nodes(graph)) == 2
    expected = np.maximum(np.maximum(X @ WEIGHT, 0) @ WEIGHT[:8], 0)
    np.testing.assert_allclose(answered(qnn, graph, X), expected, atol=5e-2)


@pytest.mark.slow
def test_a_decoder_goes_the_way_of_the_public_workflows(qnn: Path, tmp_path: Path) -> None:
    """Cut, of fixed lengths, compiled and put together, it says in plain onnxruntime-genai what its source says."""
    source = tiny_causal_lm(tmp_path / "model", num_hidden_layers=4, initializer_range=0.3)
    lengths = {"surgeries": [{"surgeon": "AttentionMaskToSequenceLengths"}]}
    passes = {
        "cs": {"type": "CaptureSplitInfo", "num_splits": 2, "unique_embeds_lm_head_splits": True},
        "mb": {"type": "ModelBuilder", "precision": "fp32"},
        "gs": {"type": "GraphSurgeries", **lengths},
        "sp": {"type": "SplitModel"},
        "st": {"type": "StaticLLM", "batch_size": 1, "context_length": 16},
        "cb": {"type": "EPContextBinaryGenerator", "provider_options": {"soc_model": "60"}},
        "cp": {"type": "ComposeOnnxModels"},
    }
    model = {"type": "HfModel", "model_path": str(source.folder), "task": "text-generation"}
    target = system(qnn, "QNNExecutionProvider", "npu")
    done = drupe("run", compiling(tmp_path, model, passes, target), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (config,) = (tmp_path / "out").rglob("genai_config.json")
    (entries,) = json.loads(config.read_text())["model"]["decoder"]["pipeline"]
    assert list(entries) == ["embeddings", "context", "iterator", "lm_head"]
    assert len(compiled_nodes(config.parent / "context.onnx")) > 4
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 250, length).tolist() for length in (5, 20, 33)]
    whole = run_pass("ModelBuilder", source, tmp_path / "whole", precision="fp32")
    expected = python(qnn, SAY, whole.folder, json.dumps(prompts))
    assert python(qnn, SAY, config.parent, json.dumps(prompts)) == expected
    # Prompt and token graphs that share weights share the file with what was compiled of them.
    passes["cb"]["weight_sharing"] = True
    shared = drupe("run", compiling(tmp_path, model, passes, target), folder=tmp_path)
    assert shared.returncode == 0, shared.stdout + shared.stderr
    (config,) = (tmp_path / "out").rglob("genai_config.json")
    assert sorted(path.name for path in config.parent.glob("*.bin")) == [
        "context_0_ctx_qnn.bin",
        "context_1_ctx_qnn.bin",
    ]
    files = {
        group: {node.get("ep_cache_context", b"") for node in compiled_nodes(config.parent / f"{group}.onnx")} - {b""}
        for group in ("context", "iterator")
    }
    assert files["context"] == files["iterator"] == {b"context_0_ctx_qnn.bin", b"context_1_ctx_qnn.bin"}


@pytest.mark.slow
def test_what_openvino_compiles_for_a_processor_opens_or_is_no_success(tmp_path: Path) -> None:
    """The package's releases so far compile, and lack what reads the result again."""
    environment = environment_with(tmp_path / "environment", "onnxruntime-openvino~=1.24.1")
    saved(tmp_path / "model", DENSE, {"w": WEIGHT}, check=False)
    model = {"type": "ONNXModel", "model_path": str(tmp_path / "model"), "onnx_file_name": "model.onnx"}
    target = system(environment, "OpenVINOExecutionProvider", "cpu")
    passes = {"compile": {"type": "EPContextBinaryGenerator"}}
    done = drupe("run", compiling(tmp_path, model, passes, target), folder=tmp_path)
    assert "Traceback" not in done.stderr
    if done.returncode == 0:
        (graph,) = (tmp_path / "out").rglob("model_ctx.onnx")
        (node,) = compiled_nodes(graph)
        assert node["source"] == b"OpenVINOExecutionProvider"
    else:
        assert done.returncode == 1
        told = done.stdout + done.stderr
        assert "OpenVINOExecutionProvider compiled model for this processor and does not open it again" in told
        assert "lack the part of OpenVINO that reads what is compiled for a processor" in told
