"""Compiles ONNX models for the Acme NPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from drupe import Accelerator, ConfigError, Model, ModelInfo, Ordered, Pass, PassConfig, PassContext, searchable
from pydantic import Field

from drupe_acme_npu.program import Instruction, Program, Tensor
from drupe_acme_npu.simulator import OPERATIONS, TABLE_VERSION

__all__ = ["AcmeCompile"]


class CompileConfig(PassConfig):
    """How the model is laid out on the device."""

    weight_bits: Literal[8, 16] = searchable(8, Ordered(8, 16), doc="Bits of a weight on the device.")
    batch_size: int = Field(1, ge=1, description="What an open batch axis is fixed to: the device knows no open axes.")


class AcmeCompile(Pass):
    """Translate the graph into instructions and round its weights to integers, one scale a tensor.

    1. An operation that the device lacks is refused by name, all of them at once.
    2. Gemm becomes MatMul and Add; Flatten becomes Reshape; Identity and Dropout vanish.
    """

    Config = CompileConfig

    def plan(self, info: ModelInfo, config: CompileConfig, accelerator: Accelerator) -> ModelInfo:
        """See Pass.plan: a quantized graph holds operations that the device lacks."""
        planned = super().plan(info, config, accelerator)
        if info.attributes.get("quantization"):
            raise ConfigError(
                f"{self.spec.name} rounds the weights itself and needs a float model; "
                f"leave out the pass that made it {info.attributes['quantization']}"
            )
        return planned.with_(quantization=f"int{config.weight_bits}")

    def fingerprint(self, context: PassContext) -> str:
        """See Pass.fingerprint: a new table may schedule otherwise, and no distribution's version tells of it."""
        return f"acme table {TABLE_VERSION}"

    def run(self, model: Model, config: CompileConfig, context: PassContext) -> Model:
        """See Pass.run."""
        import onnx

        names = [name for name in model.files if name.endswith(".onnx")]
        if len(names) != 1:
            raise ConfigError(f"the onnx model should hold one .onnx file; it holds: {', '.join(names) or 'none'}")
        proto = onnx.load(model.folder / names[0])
        program = _Translation(proto.graph, config).program()
        program.save(context.output_dir)
        gone = [name for name in model.files if name.endswith((".onnx", ".data"))]
        quantization = f"int{config.weight_bits}"
        return model.derive(
            kind="acme", add_dir=context.output_dir, remove=gone, attributes={"quantization": quantization}
        )


class _Translation:
    """One graph on its way."""

    def __init__(self, graph: Any, config: CompileConfig) -> None:
        from onnx import numpy_helper

        self._graph, self._config = graph, config
        self._constants: dict[str, np.ndarray] = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        self._instructions: list[Instruction] = []
        self._same: dict[str, str] = {}

    def program(self) -> Program:
        """Return the program. Raises ConfigError naming every node that the device can't run."""
        from onnx import helper, numpy_helper

        unknown: list[str] = []
        for node in self._graph.node:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                self._constants[node.output[0]] = numpy_helper.to_array(attributes["value"])
            elif not self._translate(node, attributes):
                unknown.append(f"{node.op_type} ({node.name or node.output[0]})")
        if unknown:
            raise ConfigError(
                f"the Acme NPU can't run {', '.join(unknown)}; it has: {', '.join(sorted(OPERATIONS))}, Gemm, Flatten"
            )
        used = {name for instruction in self._instructions for name in instruction.inputs}
        weights, scales = {}, {}
        for name in sorted(used & set(self._constants)):
            weights[name], scales[name] = _rounded(self._constants[name], self._config.weight_bits)
        initial = set(self._constants)
        return Program(
            weight_bits=self._config.weight_bits,
            inputs=tuple(self._tensor(v) for v in self._graph.input if v.name not in initial),
            outputs=tuple(self._tensor(v) for v in self._graph.output),
            instructions=tuple(self._instructions),
            weights=weights,
            scales=scales,
        )

    def _translate(self, node: Any, attributes: dict[str, Any]) -> bool:
        inputs = [self._same.get(name, name) for name in node.input if name]
        output = node.output[0]
        match node.op_type:
            case "Identity" | "Dropout":
                self._same[output] = inputs[0]
            case "Gemm":
                self._gemm(inputs, output, attributes)
            case "Flatten" if attributes.get("axis", 1) == 1:
                self._add("Reshape", inputs, output, shape=[self._config.batch_size, -1])
            case "Reshape":
                shape = [int(n) for n in self._constants[inputs[1]]]
                self._add("Reshape", inputs[:1], output, shape=shape)
            case "Transpose":
                self._add("Transpose", inputs, output, perm=[int(n) for n in attributes["perm"]])
            case "Softmax":
                self._add("Softmax", inputs, output, axis=int(attributes.get("axis", -1)))
            case op if op in OPERATIONS:
                self._add(op, inputs, output)
            case _:
                return False
        return True

    def _gemm(self, inputs: Sequence[str], output: str, attributes: dict[str, Any]) -> None:
        a, b = inputs[0], inputs[1]
        weight = self._constants[b] * float(attributes.get("alpha", 1.0))
        self._constants[f"{output}.weight"] = weight.T if attributes.get("transB") else weight
        if attributes.get("transA"):
            self._add("Transpose", [a], f"{output}.a", perm=[1, 0])
            a = f"{output}.a"
        product = f"{output}.product" if len(inputs) > 2 else output
        self._add("MatMul", [a, f"{output}.weight"], product)
        if len(inputs) > 2:
            self._constants[f"{output}.bias"] = self._constants[inputs[2]] * float(attributes.get("beta", 1.0))
            self._add("Add", [product, f"{output}.bias"], output)

    def _add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        self._instructions.append(Instruction(op, tuple(inputs), output, attributes))

    def _tensor(self, value: Any) -> Tensor:
        from onnx import helper

        shape = []
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                shape.append(int(dim.dim_value))
            elif axis == 0:
                shape.append(self._config.batch_size)
            else:
                raise ConfigError(
                    f"axis {axis} of {value.name} is open ({dim.dim_param or '?'}); the device knows no open axes but "
                    "the batch: fix it with DynamicToFixedShape"
                )
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        return Tensor(self._same.get(value.name, value.name), tuple(shape), np.dtype(dtype).name)


def _rounded(weight: np.ndarray, bits: int) -> tuple[np.ndarray, float]:
    """Return integers and what one step is worth."""
    top = 2 ** (bits - 1) - 1
    largest = float(np.abs(weight).max(initial=0.0))
    scale = largest / top if largest else 1.0
    return np.round(weight / scale).astype(np.int8 if bits == 8 else np.int16), scale
