"""The device, simulated: it computes what the hardware would, and takes time and energy from a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from drupe_acme_npu.program import Instruction, Program

__all__ = ["CLOCK_MHZ", "OPERATIONS", "TABLE_VERSION", "Cost", "execute"]

CLOCK_MHZ = 400
TABLE_VERSION = "2026-03"

_START_CYCLES = 120
"""Cycles that any instruction costs before it does anything."""
_BYTES_PER_CYCLE = 32
_MACS_PER_CYCLE = {8: 512, 16: 128}
_ELEMENTS_PER_CYCLE = 64
_PICOJOULES_PER_MAC = {8: 0.4, 16: 1.3}
_PICOJOULES_PER_BYTE = 6.0
_IDLE_WATTS = 0.02


@dataclass(frozen=True)
class Cost:
    """What a run took of the device."""

    cycles: int
    joules: float


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    shifted = np.exp(x - x.max(axis, keepdims=True))
    result: np.ndarray = shifted / shifted.sum(axis, keepdims=True)
    return result


OPERATIONS: Mapping[str, Callable[[list[np.ndarray], Mapping[str, Any]], np.ndarray]] = {
    "MatMul": lambda x, a: x[0] @ x[1],
    "Add": lambda x, a: x[0] + x[1],
    "Sub": lambda x, a: x[0] - x[1],
    "Mul": lambda x, a: x[0] * x[1],
    "Relu": lambda x, a: np.maximum(x[0], 0),
    "Sigmoid": lambda x, a: 1 / (1 + np.exp(-x[0])),
    "Tanh": lambda x, a: np.tanh(x[0]),
    "Softmax": lambda x, a: _softmax(x[0], a.get("axis", -1)),
    "Reshape": lambda x, a: x[0].reshape(a["shape"]),
    "Transpose": lambda x, a: x[0].transpose(a["perm"]),
}
"""What the hardware has."""


def execute(program: Program, inputs: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Cost]:
    """Run a program. Activations are float16 between instructions, as on the device.

    Raises ValueError for an operation that the device lacks, or an input of another shape.
    """
    values: dict[str, np.ndarray] = {
        name: weight.astype(np.float32) * program.scales[name] for name, weight in program.weights.items()
    }
    for tensor in program.inputs:
        shape = inputs[tensor.name].shape
        if shape != tensor.shape:
            raise ValueError(f"input {tensor.name} has shape {shape}; the program was compiled for {tensor.shape}")
        values[tensor.name] = inputs[tensor.name].astype(np.float16).astype(np.float32)
    cycles, joules = 0, 0.0
    for instruction in program.instructions:
        if instruction.op not in OPERATIONS:
            raise ValueError(f"the device has no operation {instruction.op}; it has: {', '.join(sorted(OPERATIONS))}")
        operands = [values[name] for name in instruction.inputs]
        result = OPERATIONS[instruction.op](operands, instruction.attributes)
        values[instruction.output] = result.astype(np.float16).astype(np.float32)
        cost = _cost(program, instruction, operands, result)
        cycles += cost.cycles
        joules += cost.joules
    joules += _IDLE_WATTS * cycles / (CLOCK_MHZ * 1e6)
    return {tensor.name: values[tensor.name].astype(tensor.dtype) for tensor in program.outputs}, Cost(cycles, joules)


def _cost(program: Program, instruction: Instruction, operands: list[np.ndarray], result: np.ndarray) -> Cost:
    bits = program.weight_bits
    sizes = [
        operand.size * (bits // 8 if name in program.weights else 2)
        for name, operand in zip(instruction.inputs, operands, strict=True)
    ]
    moved = sum(sizes) + result.size * 2
    if instruction.op == "MatMul":
        macs = result.size * operands[0].shape[-1]
        compute, joules = macs / _MACS_PER_CYCLE[bits], macs * _PICOJOULES_PER_MAC[bits] * 1e-12
    else:
        compute, joules = result.size / _ELEMENTS_PER_CYCLE, 0.0
    # Transfers run beside the arithmetic, so the slower of the two counts.
    cycles = _START_CYCLES + math.ceil(max(compute, moved / _BYTES_PER_CYCLE))
    return Cost(cycles, joules + moved * _PICOJOULES_PER_BYTE * 1e-12)
