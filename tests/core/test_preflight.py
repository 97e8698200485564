"""Devices that a target is to have: told by their numbers before work starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drupe.core.accelerators import Accelerator
from drupe.core.hosts import HostDescription
from drupe.core.preflight import _device_faults
from drupe.core.registry import get_registry
from drupe.core.workflow.read import examine
from tests.support.workflows import write_workflow


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
