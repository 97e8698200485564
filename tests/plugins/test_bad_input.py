"""What can be known to be wrong is said before work starts, with the place, what was found and the way out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from drupe.core.data import Sample
from drupe.core.errors import ConfigError, EvaluationError, PassError
from drupe.core.model import Model
from drupe.core.plan import build_plan
from drupe.core.registry import get_registry
from drupe.core.workflow.read import examine
from drupe.testing import make_context, tiny_causal_lm
from tests.plugins.onnx.graphs import CPU, run_pass, saved

ODD = """<ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
odd (float[n, 4] x) => (float[n, 4] y)
{
  ["first"] h = Relu (x)
  ["second"] y = acme.FancyRelu (h)
}"""
PLAIN = """<ir_version: 8, opset_import: ["" : 17]>
plain (float[n, 4] x) => (float[n, 4] y)
{
  y = Relu (x)
}"""


def faults(folder: Path, model: dict[str, Any], passes: dict[str, Any]) -> list[str]:
    """What `drupe validate` says of a workflow, before anything runs."""
    file = folder / "workflow.json"
    file.write_text(json.dumps({"input_model": model, "passes": passes, "output_dir": str(folder / "out")}))
    registry = get_registry()
    found = examine(file, registry)
    assert found.workflow is not None, found.faults
    try:
        build_plan(found.workflow, registry)
    except ConfigError as error:
        return [str(fault) for fault in error.faults]
    return []


# An operator that nothing runs


def test_an_operator_that_onnxruntime_lacks_is_named_with_its_node_before_work(tmp_path: Path) -> None:
    source = saved(tmp_path / "model", ODD, check=False)
    context = make_context(tmp_path / "job", accelerator=CPU)
    with pytest.raises(
        PassError, match=r"node 'second' has the operator acme:FancyRelu, which ONNX Runtime does not have"
    ):
        run_pass("OnnxDynamicQuantization", source, tmp_path, context=context)
    assert not list(context.output_dir.iterdir())
    runtime = get_registry().create("drupe_runtimes", "onnx")
    with pytest.raises(EvaluationError, match="node 'second' has the operator acme:FancyRelu"):
        runtime.open(source, CPU, {})


def test_operators_that_a_library_brings_are_left_to_it(tmp_path: Path) -> None:
    made = saved(tmp_path / "model", ODD, check=False)
    source = Model.from_dir("onnx", made.folder, {**made.attributes, "use_ort_extensions": True})
    result = run_pass("OnnxOpVersionConversion", source, tmp_path / "job", target_opset=17)
    assert [node.op_type for node in onnx.load(str(result.folder / "model.onnx")).graph.node] == ["Relu", "FancyRelu"]


@pytest.mark.parametrize(
    ("dynamo", "message"),
    [
        (True, r"the operator aten\._linalg_eigh \(node _linalg_eigh\) has no counterpart in ONNX"),
        (False, "the operator aten::linalg_eigvalsh has no counterpart in ONNX"),
    ],
)
def test_an_operator_that_can_not_be_exported_is_named(tmp_path: Path, dynamo: bool, message: str) -> None:
    script = "import torch\nclass N(torch.nn.Module):\n    def forward(self, x): return torch.linalg.eigvalsh(x)\n"
    (tmp_path / "script.py").write_text(script + "def load(path): return N()\n")
    shapes = {"input_names": ["x"], "input_shapes": [[4, 4]]}
    source = Model.from_dir(
        "pytorch", tmp_path, {"model_script": "script.py", "model_loader": "load", "io_config": shapes}
    )
    context = make_context(
        tmp_path.with_name(f"{tmp_path.name}-job"), accelerator=CPU, allow=frozenset({"user-scripts"})
    )
    with pytest.raises(PassError, match=message):
        run_pass("OnnxConversion", source, tmp_path, context=context, use_dynamo_exporter=dynamo)


# A graph that its format can't hold


def test_a_graph_of_more_than_two_gigabytes_is_refused_by_validate(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    with (tmp_path / "big" / "model.onnx").open("wb") as handle:
        handle.truncate(2_300_000_000)  # a hole, not bytes
    model = {"type": "ONNXModel", "model_path": "big/model.onnx"}
    found = faults(tmp_path, model, {"a": {"type": "OnnxOpVersionConversion"}})
    assert len(found) == 1
    assert "input_model" in found[0] and "has 2.3 GB" in found[0] and "save_as_external_data=True" in found[0]


# Calibration data that do not fit


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"z": np.zeros(4, np.float32)},
            "sample s0 of the calibration data has no input 'x'; it has none, the graph takes x",
        ),
        ({"x": np.zeros(5, np.float32)}, r"gives x the shape \[1, 5\]; the graph takes \['n', 4\]"),
    ],
)
def test_calibration_data_of_other_names_or_shapes_are_refused_before_a_graph_is_written(
    tmp_path: Path, inputs: dict[str, np.ndarray], message: str
) -> None:
    data = {"rows": [Sample("s0", inputs)]}
    context = make_context(tmp_path / "job", accelerator=CPU, data=data)
    with pytest.raises(ConfigError, match=message):
        run_pass("OnnxStaticQuantization", saved(tmp_path / "m", PLAIN), tmp_path, context=context, data_config="rows")
    assert not list(context.output_dir.iterdir())


# Passes that don't fit the target, or each other


@pytest.mark.parametrize(
    ("passes", "where", "message"),
    [
        ({"a": {"type": "ModelBuilder", "precision": "fp16"}}, "passes.a", "a fp16 model does not run on cpu"),
        ({"a": {"type": "ModelBuilder", "precision": "bf16"}}, "passes.a", "precisions that do: fp32, int4, int8"),
        (
            {"a": {"type": "Gptq", "group_size": 32}, "b": {"type": "OnnxConversion"}},
            "passes.b",
            "OnnxConversion exports float models; this one is quantized",
        ),
        (
            {"a": {"type": "Rtn", "group_size": 32}, "b": {"type": "AutoAWQQuantizer", "group_size": 32}},
            "passes.b",
            "AutoAWQQuantizer: the model is quantized already",
        ),
        (
            {"a": {"type": "Rtn", "group_size": 32}, "b": {"type": "QuaRot"}},
            "passes.b",
            "QuaRot goes before the quantizer",
        ),
        (
            {
                "a": {"type": "OnnxConversion"},
                "b": {"type": "OnnxBnb4Quantization"},
                "c": {"type": "OnnxKQuantQuantization"},
            },
            "passes.c",
            r"quantizes float graphs; this one is quantized already \(nf4\)",
        ),
        (
            {"a": {"type": "OnnxConversion"}, "b": {"type": "Gptq"}},
            "passes.b",
            "Gptq takes hf models and would be given onnx",
        ),
        ({"a": {"type": "SplitModel"}}, "passes.a", "SplitModel takes .* and would be given hf"),
        (
            {"a": {"type": "OnnxConversion"}, "b": {"type": "SplitModel"}},
            "passes.b",
            "put CaptureSplitInfo before the pass that makes the graph",
        ),
    ],
)
def test_chains_that_do_not_fit_are_refused_by_validate(
    tmp_path: Path, passes: dict[str, Any], where: str, message: str
) -> None:
    tiny_causal_lm(tmp_path / "model")
    found = faults(tmp_path, {"type": "HfModel", "model_path": "model"}, passes)
    assert len(found) == 1 and found[0].startswith(where), found
    assert re.search(message, found[0]), found


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "auto-round", "bits": 4, "group_size": 64}, "export it as auto_gptq or auto_awq"),
        ({"quant_method": "compressed-tensors"}, "export it as auto_gptq or auto_awq"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "gptq_v2"}, "builds garbage"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True, "sym": False}, "garbage on the CPU"),
    ],
)
def test_checkpoints_that_the_builder_reads_wrongly_are_refused_by_validate(
    tmp_path: Path, quantization: dict[str, Any], message: str
) -> None:
    folder = tiny_causal_lm(tmp_path / "model").folder
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    found = faults(tmp_path, {"type": "HfModel", "model_path": "model"}, {"a": {"type": "ModelBuilder"}})
    assert len(found) == 1 and message in found[0], found
