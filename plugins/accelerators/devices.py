"""Finds the devices of this machine through what the operating system shows; imports no framework."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from drupe.core.accelerators import AcceleratorDevice

__all__ = ["Cpu", "Gpu", "Npu"]

_PCI_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel", "0x1d17": "Zhaoxin"}


class Cpu(AcceleratorDevice):
    """The processor that this process may use."""

    cpuinfo: ClassVar[Path] = Path("/proc/cpuinfo")

    def detect(self) -> Sequence[Mapping[str, Any]]:
        """Return one entry: the processor's name and the cores this process may run on."""
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
        return [{"device": self.spec.name, "name": self._name(), "cores": cores}]

    def _name(self) -> str:
        try:
            for line in self.cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
        except OSError:
            pass
        return platform.processor() or platform.machine()


class Gpu(AcceleratorDevice):
    """Graphics cards that the kernel's drivers show."""

    nvidia: ClassVar[Path] = Path("/proc/driver/nvidia/gpus")
    drm: ClassVar[Path] = Path("/sys/class/drm")

    def detect(self) -> Sequence[Mapping[str, Any]]:
        """Return one entry per card; NVIDIA's under their product name, others under vendor and PCI device."""
        return [*self._nvidia(), *self._others()]

    def _nvidia(self) -> Iterator[Mapping[str, Any]]:
        for card in sorted(self.nvidia.glob("*/information")):
            fields = dict(_fields(card))
            name = fields.get("Model", "NVIDIA")
            yield {"device": self.spec.name, "name": name, "vendor": "NVIDIA", "bus": card.parent.name}

    def _others(self) -> Iterator[Mapping[str, Any]]:
        for card in sorted(self.drm.glob("renderD*/device/vendor")):
            vendor = _PCI_VENDORS.get(_text(card), "")
            # The proprietary driver's cards were named above; the same cards also have a render node.
            if vendor and not (vendor == "NVIDIA" and self.nvidia.is_dir()):
                name = f"{vendor} {_text(card.with_name('device'))}"
                yield {"device": self.spec.name, "name": name, "vendor": vendor}


class Npu(AcceleratorDevice):
    """Neural processing units: the kernel's accel class."""

    accel: ClassVar[Path] = Path("/sys/class/accel")

    def detect(self) -> Sequence[Mapping[str, Any]]:
        """Return one entry per unit."""
        found = []
        for node in sorted(self.accel.glob("accel*/device/vendor")):
            vendor = _PCI_VENDORS.get(_text(node), _text(node))
            found.append({"device": self.spec.name, "name": f"{vendor} NPU", "vendor": vendor})
        return found


def _fields(path: Path) -> Iterator[tuple[str, str]]:
    for line in _text(path).splitlines():
        key, _, value = line.partition(":")
        yield key.strip(), value.strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
