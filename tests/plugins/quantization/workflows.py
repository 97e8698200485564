"""What is found in a workflow file of one pass before work starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drupe.core.registry import get_registry
from drupe.core.workflow.read import Examination, examine


def examined(folder: Path, kind: str, config: dict[str, Any]) -> Examination:
    """Read a workflow whose pass p is of that type."""
    document = {
        "input_model": {"type": "HfModel", "model_path": "x"},
        "passes": {"p": {"type": kind, **config}},
        "output_dir": "out",
    }
    (folder / "workflow.json").write_text(json.dumps(document))
    return examine(folder / "workflow.json", get_registry())


def assert_idle(folder: Path, kind: str, config: dict[str, Any], idle: list[str]) -> None:
    """These keys, in this order, and no others are told to have no effect; nothing is wrong."""
    found = examined(folder, kind, config)
    assert not [fault for fault in found.faults if fault.kind != "needs"]
    told = [str(notice) for notice in found.notices]
    assert len(told) == len(idle), told
    assert all(f"{name} has no effect" in line for name, line in zip(idle, told, strict=True)), told
