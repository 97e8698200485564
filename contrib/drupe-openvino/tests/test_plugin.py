"""What the package contributes can be found, loaded, and costs nothing to name."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys

import pytest
from drupe import Accelerator

from drupe_openvino import plugin
from drupe_openvino.devices import OpenVinoDevice, device_name

SPECS = [
    *plugin.drupe_accelerators(),
    *plugin.drupe_model_kinds(),
    *plugin.drupe_runtimes(),
    *plugin.drupe_passes(),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_target_exists(spec) -> None:  # type: ignore[no-untyped-def]
    module, _, attribute = spec.target.partition(":")
    assert isinstance(getattr(importlib.import_module(module), attribute), type)


def test_the_entry_point_is_installed() -> None:
    points = importlib.metadata.entry_points(group="drupe", name="openvino")
    assert [point.value for point in points] == ["drupe_openvino.plugin"]


def test_neither_the_plugin_nor_its_targets_import_a_framework() -> None:
    modules = sorted({spec.target.partition(":")[0] for spec in SPECS} | {"drupe_openvino.plugin"})
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"openvino", "nncf", "torch", "transformers", "onnx"}


def test_nothing_is_reported_to_the_maker_of_openvino() -> None:
    code = (
        "import sys\nfrom drupe_openvino.libraries import openvino, nncf\n"
        "ov = openvino(); nncf()\nimport openvino.tools.ovc\n"
        "print([name for name, m in sys.modules.items() if name.startswith('openvino_telemetry') and m is not None])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_processor_is_among_the_devices() -> None:
    found = OpenVinoDevice(plugin.drupe_accelerators()[0]).detect()
    assert any(device["provider"] == "CPU" and device["name"] for device in found)


@pytest.mark.parametrize(
    ("accelerator", "name"),
    [
        (Accelerator("openvino"), "CPU"),
        (Accelerator("openvino", "GPU"), "GPU"),
        (Accelerator("npu", "OpenVINOExecutionProvider"), "NPU"),
    ],
)
def test_accelerators_are_named_as_openvino_names_them(accelerator: Accelerator, name: str) -> None:
    assert device_name(accelerator) == name
