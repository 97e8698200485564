"""Whether an Acme NPU is in this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drupe import AcceleratorDevice

from drupe_acme_npu.simulator import CLOCK_MHZ

__all__ = ["AcmeNpu"]


class AcmeNpu(AcceleratorDevice):
    """The simulated device is everywhere."""

    def detect(self) -> Sequence[Mapping[str, Any]]:
        """Return one entry."""
        return [{"device": self.spec.name, "name": "Acme NPU (simulated)", "clock_mhz": CLOCK_MHZ}]
