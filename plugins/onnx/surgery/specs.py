"""What a surgeon declares: the hook `drupe_surgeons` returns these, so that any plugin can add surgeons."""

from __future__ import annotations

from dataclasses import dataclass

from drupe.core.specs import Spec

__all__ = ["SurgeonSpec"]


@dataclass(frozen=True, kw_only=True)
class SurgeonSpec(Spec):
    """A surgeon. Its target is a `drupe.plugins.onnx.surgery.surgeon:Surgeon`."""
