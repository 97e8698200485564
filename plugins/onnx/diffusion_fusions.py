"""Fusions of diffusion models: what ONNX Runtime runs on GPUs only, and what its code needs of NumPy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from drupe.core.accelerators import Accelerator

__all__ = ["CERTAIN", "GPU_ONLY", "made_of", "no_kernel", "single_numbers"]

GPU_ONLY = {
    "enable_group_norm": "GroupNorm", "enable_skip_group_norm": "SkipGroupNorm",
    "enable_bias_splitgelu": "BiasSplitGelu", "enable_bias_add": "BiasAdd", "enable_nhwc_conv": "NhwcConv",
    "enable_packed_qkv": "MultiHeadAttention of packed queries, keys and values",
    "enable_packed_kv": "MultiHeadAttention of packed keys and values",
}  # fmt: skip
"""Fusions of diffusion models that ONNX Runtime has no kernel for on a CPU → what they make."""
CERTAIN = {
    "unet": ("enable_group_norm", "enable_skip_group_norm", "enable_packed_qkv", "enable_packed_kv"),
    "vae": ("enable_group_norm", "enable_skip_group_norm"),
}
"""Family → those that find something in every model of it."""
_PACKED = {1: GPU_ONLY["enable_packed_qkv"], 2: GPU_ONLY["enable_packed_kv"]}
"""Inputs of a MultiHeadAttention → how they are packed."""


def made_of(proto: Any) -> set[str]:
    """Return the operators of a graph, and how its attention is packed."""
    found = {node.op_type for node in proto.graph.node}
    return found | {
        _PACKED.get(len(node.input), "") for node in proto.graph.node if node.op_type == "MultiHeadAttention"
    }


def no_kernel(pass_name: str, fusion: str, kind: str, accelerator: Accelerator) -> str:
    """Return what is told of a fusion whose operator, `kind`, an accelerator has not."""
    return (
        f"{pass_name}: optimization_options.{fusion}: {kind} is what ONNX Runtime runs on GPUs only; set it to false "
        f"for {accelerator.execution_provider or accelerator.device}, or give the system of a GPU"
    )


@contextmanager
def single_numbers() -> Iterator[None]:
    """Let int() take constants of shape (1,), as onnxruntime's fusions of UNets need it; NumPy 2.4 no longer does."""
    import numpy as np

    class Constant(np.ndarray):
        def __int__(self) -> int:
            return int(self.reshape(-1)[0]) if self.size == 1 else int(np.asarray(self))

    # onnxruntime imports its modules by their bare names.
    known = [sys.modules.get(name) for name in ("onnx_model", "onnxruntime.transformers.onnx_model")]
    classes = {module.OnnxModel for module in known if module is not None}
    originals = {owner: owner.get_constant_value for owner in classes}

    def replacement(original: Callable[..., Any]) -> Callable[..., Any]:
        def constant(self: Any, name: str) -> Any:
            value = original(self, name)
            return value.view(Constant) if isinstance(value, np.ndarray) and value.shape == (1,) else value

        return constant

    for owner, original in originals.items():
        owner.get_constant_value = replacement(original)
    try:
        yield
    finally:
        for owner, original in originals.items():
            owner.get_constant_value = original
