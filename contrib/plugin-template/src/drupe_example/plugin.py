"""Tells Drupe what this package contributes. Imports nothing heavy: it is read whenever plugins are looked for."""

from __future__ import annotations

from drupe import PassSpec, hookimpl


@hookimpl
def drupe_passes() -> list[PassSpec]:
    """Contribute the passes."""
    return [
        PassSpec(
            name="ClipWeights",
            target="drupe_example.clip_weights:ClipWeights",
            summary="Limit the weights of an ONNX model to a range.",
            accepts={"onnx"},
            produces="onnx",
            requires=("onnx>=1.17",),
            key_packages=("onnx",),
        ),
    ]
