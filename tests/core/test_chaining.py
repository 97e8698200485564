"""A chain that does not fit: the message names what would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drupe.core.errors import ConfigError, Fault
from drupe.core.plan import build_plan
from drupe.core.registry import get_registry
from drupe.core.workflow.read import read_workflow
from drupe.testing import tiny_causal_lm

CUT, GPTQ, LORA, PEEPHOLE = {"type": "SliceGPT"}, {"type": "Gptq"}, {"type": "LoRA"}, {"type": "OnnxPeepholeOptimizer"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_causal_lm(folder)
    return folder


def fault_of(folder: Path, model: Path, *passes: dict[str, Any]) -> Fault:
    path = folder / "w.json"
    document = {
        "input_model": {"type": "HfModel", "model_path": str(model)},
        "passes": {f"p{number}": one for number, one in enumerate(passes)},
    }
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError) as raised:
        build_plan(read_workflow(path, get_registry()), get_registry())
    [fault] = raised.value.faults
    return fault


def test_passes_that_make_the_kind_are_named(tmp_path: Path, model: Path) -> None:
    fault = fault_of(tmp_path, model, PEEPHOLE)
    assert fault.found == "OnnxPeepholeOptimizer takes genai or onnx models and would be given hf"
    assert fault.hint.startswith("put a pass before it that makes genai or onnx of hf: ModelBuilder, OnnxConversion, ")


def test_where_no_pass_makes_the_kind_it_says_what_can_follow_instead(tmp_path: Path, model: Path) -> None:
    fault = fault_of(tmp_path, model, CUT, GPTQ)
    assert (fault.path, fault.found) == ("passes.p1", "Gptq takes hf models and would be given sliced")
    assert fault.hint.startswith("no installed pass makes hf of sliced; what goes on from sliced models: DoRA, ")
    assert "LoRA" in fault.hint and "OnnxConversion" in fault.hint


def test_a_pass_that_fits_earlier_is_sent_there(tmp_path: Path, model: Path) -> None:
    built = {"type": "ModelBuilder", "precision": "int4"}
    assert fault_of(tmp_path, model, built, GPTQ).hint == "put it before p0"
    # Before SliceGPT it would make a model that SliceGPT refuses: it is not sent there.
    assert "before p0" not in fault_of(tmp_path, model, CUT, GPTQ).hint
