"""The schemes of compressed-tensors that vLLM runs, as far as they must be known before the library is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SCHEMES", "CompressionScheme"]


@dataclass(frozen=True)
class CompressionScheme:
    """weights: their type. group_size: columns that share a scale as the library has it, None where a row does.
    changeable: group_size may be another. bfloat16: transformers calculates its layers in it only. static: ranges of
    activations are found by calibration. asymmetric: weights have zero points."""

    weights: str
    group_size: int | None = None
    changeable: bool = False
    bfloat16: bool = False
    static: bool = False
    asymmetric: bool = False


SCHEMES: Mapping[str, CompressionScheme] = {
    "W4A16": CompressionScheme("int4", 128, changeable=True),
    "W4A16_ASYM": CompressionScheme("int4", 128, changeable=True, asymmetric=True),
    "W8A16": CompressionScheme("int8", 128, changeable=True),
    "W8A8": CompressionScheme("int8"),
    "W4A8": CompressionScheme("int4", 128, changeable=True),
    "W4AFP8": CompressionScheme("int4", 128, changeable=True),
    "FP8": CompressionScheme("float8", static=True),
    "FP8_DYNAMIC": CompressionScheme("float8"),
    "FP8_BLOCK": CompressionScheme("float8"),
    "NVFP4": CompressionScheme("float4", 16, bfloat16=True, static=True),
    "NVFP4A16": CompressionScheme("float4", 16, bfloat16=True),
    "MXFP4": CompressionScheme("float4", 32, bfloat16=True),
    "MXFP4A16": CompressionScheme("float4", 32, bfloat16=True),
    "MXFP8": CompressionScheme("float8", 32, bfloat16=True),
}
"""Name → what it is. Of the library's presets, those without a kernel in vLLM (W2A16, W3A16, …) go through a recipe."""
