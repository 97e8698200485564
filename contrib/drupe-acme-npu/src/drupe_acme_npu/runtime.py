"""Runs compiled programs on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from drupe import Accelerator, ConfigError, EvaluationError, Model, Result, Runtime, Session

from drupe_acme_npu.program import Program
from drupe_acme_npu.simulator import CLOCK_MHZ, OPERATIONS, execute

__all__ = ["AcmeRuntime", "AcmeSession"]


class AcmeRuntime(Runtime):
    """Options: clock_mhz, at most the device's own. threads is accepted, since every runtime gets it."""

    def options(self, accelerator: Accelerator, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Runtime.options."""
        unknown = sorted(set(options) - {"threads", "clock_mhz"})
        if unknown:
            raise ConfigError(f"acme: unknown runtime option {', '.join(unknown)}; known: clock_mhz")
        clock = options.get("clock_mhz", CLOCK_MHZ)
        if not 0 < clock <= CLOCK_MHZ:
            raise ConfigError(f"acme: clock_mhz is {clock}; the device runs at 1 to {CLOCK_MHZ}")
        return {"clock_mhz": clock}

    def open(self, model: Model, accelerator: Accelerator, options: Mapping[str, Any]) -> Session:
        """See Runtime.open. Raises EvaluationError for a program with operations that this device lacks."""
        program = Program.load(model.folder)
        lacking = sorted({i.op for i in program.instructions} - set(OPERATIONS))
        if lacking:
            raise EvaluationError(f"this device has no {', '.join(lacking)}; compile the model for its table")
        return AcmeSession(program, self.options(accelerator, options)["clock_mhz"])


class AcmeSession(Session):
    """A program on the device."""

    def __init__(self, program: Program, clock_mhz: float) -> None:
        self._program = program
        self._clock_mhz = clock_mhz

    def forward(self, batch: Mapping[str, np.ndarray]) -> Result:
        """See Session.forward. The device knows its time and energy; the way to it is not counted."""
        try:
            outputs, cost = execute(self._program, batch)
        except (KeyError, ValueError) as error:
            raise EvaluationError(f"the Acme NPU refused the batch: {error}") from error
        return Result(
            outputs,
            device_seconds=cost.cycles / (self._clock_mhz * 1e6),
            counters={"cycles": float(cost.cycles), "energy": cost.joules},
        )

    def input_shapes(self) -> Mapping[str, tuple[tuple[int | str, ...], str]]:
        """See Session.input_shapes."""
        return {tensor.name: (tensor.shape, tensor.dtype) for tensor in self._program.inputs}
