"""The devices that OpenVINO drives, and which of them an accelerator means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drupe import Accelerator, AcceleratorDevice

__all__ = ["OpenVinoDevice", "device_name"]


class OpenVinoDevice(AcceleratorDevice):
    """Asks OpenVINO itself which devices are here."""

    def detect(self) -> Sequence[Mapping[str, Any]]:
        """Return one entry per device, under OpenVINO's name for it ("CPU", "GPU.0", "NPU")."""
        from drupe_openvino.libraries import openvino

        core = openvino().Core()
        return [
            {"device": self.spec.name, "provider": name, "name": core.get_property(name, "FULL_DEVICE_NAME")}
            for name in core.available_devices
        ]


def device_name(accelerator: Accelerator) -> str:
    """Return OpenVINO's name of an accelerator's device.

    On the device `openvino` the provider is that name. Elsewhere (cpu, gpu, npu) it is the device's own name.
    """
    if accelerator.device == "openvino":
        return accelerator.execution_provider or "CPU"
    return accelerator.device.upper()
