"""Keys of Olive's passes over graphs that change nothing here: whoever reads a workflow is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drupe.core.registry import get_registry
from drupe.core.workflow.read import examine


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        (
            {"type": "OrtSessionParamsTuning"},
            {"device": "cpu", "disable_force_evaluate_ep_param": True, "enable_profiling": False},
        ),
        ({"type": "OrtTransformersOptimization"}, {"num_key_value_heads": 4}),
        ({"type": "MoEExpertsDistributor", "world_size": 2}, {"parallel_jobs": 4}),
        ({"type": "OnnxDiscrepancyCheck", "reference_model_path": "model"}, {"report_output_dir": "reports"}),
    ],
)
def test_keys_without_effect_are_told_and_left_out(
    tmp_path: Path, config: dict[str, Any], keys: dict[str, Any]
) -> None:
    (tmp_path / "model").mkdir()
    document = {
        "input_model": {"type": "HfModel", "model_path": "model"},
        "passes": {"convert": {"type": "OnnxConversion"}, "p": {**config, **keys}},
    }
    (tmp_path / "workflow.json").write_text(json.dumps(document), encoding="utf-8")
    found = examine(tmp_path / "workflow.json", get_registry())
    assert {n.path: n.now for n in found.notices} == {f"passes.p.{key}": "left out" for key in keys}
    assert not [fault for fault in found.faults if fault.path.startswith("passes.p")]
