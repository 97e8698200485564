"""OptimumConversion: what is known before work, and a real export in an environment of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from pydantic import ValidationError

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.huggingface.earlier import earlier_config
from drupe.plugins.onnx.optimum_conversion import OptimumConversionConfig
from drupe.testing import tiny_causal_lm
from tests.plugins.onnx.test_past import generated, greedy
from tests.plugins.real_models import Sentences
from tests.support.environments import environment_with
from tests.support.real_runs import noted_from
from tests.support.workflows import drupe, write_workflow

CPU = Accelerator("cpu", "CPUExecutionProvider")
BOTH = ["decoder_model", "decoder_with_past_model"]


def planned(attributes: dict[str, Any], **config: Any) -> ModelInfo:
    subject = get_registry().create("drupe_passes", "OptimumConversion")
    info: ModelInfo = subject.plan(ModelInfo("hf", attributes), OptimumConversionConfig(**config), CPU)
    return info


@pytest.mark.parametrize(
    ("task", "config", "kind"),
    [
        ("text-generation", {}, "onnx"),
        ("text-generation", {"extra_args": {"legacy": True}}, "composite"),
        ("text-generation", {"components": BOTH, "extra_args": {"legacy": True}}, "composite"),
        ("text-generation", {"components": ["decoder_model"], "extra_args": {"legacy": True}}, "onnx"),
        ("text2text-generation", {}, "composite"),
        ("text2text-generation", {"extra_args": {"monolith": True}}, "onnx"),
        ("text-classification", {}, "onnx"),
    ],
)
def test_whether_the_result_is_one_graph_is_known_before(task: str, config: dict[str, Any], kind: str) -> None:
    assert planned({"task": task}, **config).kind == kind


def test_a_decoder_has_past_keys_and_values_unless_another_task_is_asked_for() -> None:
    assert planned({"task": "text-generation"}).attributes["task"] == "text-generation-with-past"
    asked = {"extra_args": {"task": "text-generation"}}
    assert planned({"task": "text-generation"}, **asked).attributes["task"] == "text-generation"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"extra_args": {"no_postprocess": True}}, "did you mean 'no_post_process'"),
        ({"extra_args": {"opset": 14}}, "give target_opset"),
        ({"extra_args": {"trust_remote_code": True}}, "input_model.load_kwargs"),
        ({"fp16": True}, "give device: cuda"),
        ({"components": []}, "at least 1"),
        ({"target_opset": 40}, "less than or equal to 20"),
    ],
)
def test_wrong_options_are_told(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OptimumConversionConfig(**config)


@pytest.mark.parametrize(
    ("attributes", "message"), [({"adapter": "adapter"}, "MergeAdapterWeights"), ({"quantization": "gptq"}, "gptq")]
)
def test_what_optimum_cannot_read_is_refused(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(attributes)


@pytest.mark.parametrize(
    ("config", "earlier"),
    [
        (
            {"rope_parameters": {"rope_theta": 300.0, "rope_type": "default"}, "dtype": "float32"},
            {"rope_theta": 300.0, "dtype": "float32", "torch_dtype": "float32"},
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0}},
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        ),
        (
            {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
            {"model_type": "gpt_neox", "rotary_emb_base": 1e4, "rotary_pct": 0.25},
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}},
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        ),
        (
            {"text_config": {"rope_parameters": {"rope_theta": 7.0}}, "rope_theta": 5.0},
            {"text_config": {"rope_theta": 7.0}, "rope_theta": 5.0},
        ),
    ],
)
def test_a_config_as_transformers_4_reads_it(config: dict[str, Any], earlier: dict[str, Any]) -> None:
    assert earlier_config(config) == earlier


def workflow(folder: Path, model: Path, host: str, system: dict[str, Any], **passes: Any) -> Path:
    convert = {"target_opset": 16, "components": BOTH, "extra_args": {"legacy": True, "no_post_process": True}}
    return write_workflow(
        folder,
        {
            "input_model": {"type": "HfModel", "model_path": str(model)},
            "systems": {"here": {"type": "LocalSystem", "in_process": True}, **({host: system} if system else {})},
            "passes": {
                "convert": {"type": "OptimumConversion", **convert, **({"host": host} if system else {})},
                "optimize": {"type": "OrtTransformersOptimization", "model_type": "gpt2"},
                "merge": {"type": "OptimumMerging"},
            },
            "host": "here",
            "target": "here",
            "cache_dir": str(folder / "cache"),
            "output_dir": str(folder / "out"),
        },
    )


def test_a_host_without_optimum_is_told_with_the_lines_that_help(tmp_path: Path) -> None:
    tiny_causal_lm(tmp_path / "model")
    done = drupe("run", workflow(tmp_path, tmp_path / "model", "", {}), folder=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    first, *lines = done.stderr.rstrip().splitlines()
    assert first.startswith("error: passes.convert: OptimumConversion needs optimum-onnx>=0.1 (there is none)")
    assert "transformers>=4.36,<4.58 (there is 5." in first
    added: dict[str, Any] = {}
    for line in lines:
        added |= json.loads(f"{{{line}}}")
    system = added["systems"]["convert_environment"]
    assert system["type"] == "PythonEnvironment"
    assert "optimum-onnx>=0.1" in system["requirements"]
    assert added["passes"]["convert"] == {"type": "OptimumConversion", "host": "convert_environment"}
    assert list(tmp_path.rglob("*.onnx")) == []


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with Optimum and its own transformers."""
    wanted = ["optimum-onnx>=0.1", "optimum~=2.1.0", "transformers<4.58", "tokenizers<0.23", "huggingface-hub<1.0"]
    folder = tmp_path_factory.mktemp("optimum") / "environment"
    # Optimum uses sentence-transformers where it finds it, and the one here is for transformers 5.
    return environment_with(folder, *wanted, hidden="sentence_transformers")


@pytest.mark.slow
def test_two_decoders_are_exported_there_and_merged_here(environment: Path, tmp_path: Path) -> None:
    """The export runs with transformers 4 and the passes after it with 5, on a model that 5 wrote."""
    source = tiny_causal_lm(tmp_path / "model", initializer_range=0.3, rope_theta=300.0)
    system = {"type": "PythonEnvironment", "python_environment_path": str(environment), "threads": 1}
    done = drupe("run", workflow(tmp_path, source.folder, "apart", system), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((tmp_path / "out" / "drupe.json").read_text())
    assert manifest
    (graph,) = (tmp_path / "out").rglob("decoder_model_merged.onnx")
    merged = Model.from_dir("onnx", graph.parent, {"onnx_file": graph.name})
    prompt = np.random.default_rng(0).integers(0, 250, (1, 9))
    assert greedy(merged, prompt, 24) == generated(source, prompt, 24)


@pytest.mark.slow
@pytest.mark.real_run("OptimumConversion")
def test_minilm_is_exported_there_and_says_what_it_said(
    environment: Path, minilm_dir: Path, sentences: Sentences, tmp_path: Path
) -> None:
    apart = {"type": "PythonEnvironment", "python_environment_path": str(environment), "threads": 1}
    file = write_workflow(
        tmp_path,
        {
            "input_model": {"type": "HfModel", "model_path": str(minilm_dir), "task": "feature-extraction"},
            "systems": {"here": {"type": "LocalSystem"}, "apart": apart},
            "passes": {"convert": {"type": "OptimumConversion", "host": "apart"}},
            "host": "here",
            "target": "here",
            "cache_dir": str(tmp_path / "cache"),
            "output_dir": str(tmp_path / "out"),
        },
    )
    done = drupe("run", file, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    noted_from(tmp_path / "out" / "drupe.json")
    (graph,) = (tmp_path / "out").rglob("*.onnx")
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    found = sentences.again(session.run(["last_hidden_state"], sentences.batch)[0])
    assert found.cosines(sentences).min() > 1 - 1e-9
