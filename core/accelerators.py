"""An accelerator: the device that a model is optimized for and the execution provider that drives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drupe.core.specs import AcceleratorSpec

__all__ = ["Accelerator", "AcceleratorDevice"]


@dataclass(frozen=True)
class Accelerator:
    """device: "cpu", "gpu", "npu" or a plugin's own. execution_provider: as ONNX Runtime names them, or None.

    options: what the workflow says besides: "provider_options", "memory"; part of measurement keys.
    """

    device: str = "cpu"
    execution_provider: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def provider_options(self) -> dict[str, Any]:
        """What the execution provider is opened with, by its own names."""
        return dict(self.options.get("provider_options") or {})

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "device": self.device,
            "execution_provider": self.execution_provider,
            "options": dict(self.options),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Accelerator:
        """Build an accelerator from what `to_json` gave."""
        return cls(data["device"], data.get("execution_provider"), data.get("options", {}))


class AcceleratorDevice:
    """What an AcceleratorSpec's target is: knows whether such a device is in this machine."""

    def __init__(self, spec: AcceleratorSpec) -> None:
        self.spec = spec

    def detect(self) -> Sequence[Mapping[str, Any]]:
        """Return the devices present, [{"device": spec name, "name": …, …}, …]. Light: no framework is imported."""
        raise NotImplementedError
