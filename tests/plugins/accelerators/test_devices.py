"""Devices are found through what the operating system shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from drupe.core.registry import Registry
from drupe.core.specs import AcceleratorSpec
from drupe.plugins.accelerators.devices import Cpu, Gpu, Npu


def spec(name: str) -> AcceleratorSpec:
    return AcceleratorSpec(name=name, target="drupe.plugins.accelerators.devices:Cpu")


def test_the_processor_is_found_with_its_cores() -> None:
    (found,) = Cpu(spec("cpu")).detect()
    assert found["device"] == "cpu"
    assert found["name"]
    assert found["cores"] >= 1


def test_a_processor_without_cpuinfo_still_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cpu, "cpuinfo", tmp_path / "absent")
    (found,) = Cpu(spec("cpu")).detect()
    assert found["name"]


def test_an_nvidia_card_is_named_once_though_it_has_a_render_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tmp_path / "gpus" / "0000:01:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ: 12\n")
    node = tmp_path / "drm" / "renderD128" / "device"
    node.mkdir(parents=True)
    (node / "vendor").write_text("0x10de\n")
    (node / "device").write_text("0x2330\n")
    monkeypatch.setattr(Gpu, "nvidia", tmp_path / "gpus")
    monkeypatch.setattr(Gpu, "drm", tmp_path / "drm")
    assert [d["name"] for d in Gpu(spec("gpu")).detect()] == ["NVIDIA H100 80GB HBM3"]


def test_other_makes_are_named_by_vendor_and_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = tmp_path / "drm" / "renderD129" / "device"
    node.mkdir(parents=True)
    (node / "vendor").write_text("0x1002\n")
    (node / "device").write_text("0x744c\n")
    monkeypatch.setattr(Gpu, "nvidia", tmp_path / "absent")
    monkeypatch.setattr(Gpu, "drm", tmp_path / "drm")
    assert [d["name"] for d in Gpu(spec("gpu")).detect()] == ["AMD 0x744c"]


def test_an_npu_is_found_in_the_accel_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = tmp_path / "accel" / "accel0" / "device"
    node.mkdir(parents=True)
    (node / "vendor").write_text("0x8086\n")
    monkeypatch.setattr(Npu, "accel", tmp_path / "accel")
    assert [d["name"] for d in Npu(spec("npu")).detect()] == ["Intel NPU"]
    monkeypatch.setattr(Npu, "accel", tmp_path / "absent")
    assert Npu(spec("npu")).detect() == []


@pytest.mark.parametrize(
    ("device", "provider"),
    [
        ("cpu", "CPUExecutionProvider"),
        ("cpu", "OpenVINOExecutionProvider"),
        ("gpu", "DmlExecutionProvider"),
        ("gpu", "NvTensorRTRTXExecutionProvider"),
        ("gpu", "WebGpuExecutionProvider"),
        ("gpu", "CPUExecutionProvider"),
        ("npu", "QNNExecutionProvider"),
        ("npu", "VitisAIExecutionProvider"),
    ],
)
def test_the_providers_that_workflows_name_are_known(device: str, provider: str) -> None:
    entry = Registry.discover().get("drupe_accelerators", device)
    assert provider in entry.spec.providers  # type: ignore[attr-defined]
