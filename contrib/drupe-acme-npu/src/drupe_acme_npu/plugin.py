"""What this package contributes. Light: what does the work is imported when it is used."""

from __future__ import annotations

from collections.abc import Sequence

from drupe import AcceleratorSpec, HostSpec, MetricSpec, ModelKindSpec, PassSpec, RuntimeSpec, hookimpl


@hookimpl
def drupe_accelerators() -> Sequence[AcceleratorSpec]:
    """Contribute the device."""
    return [
        AcceleratorSpec(
            name="acme_npu",
            target="drupe_acme_npu.devices:AcmeNpu",
            summary="The Acme NPU.",
            providers=("AcmeExecutionProvider",),
        )
    ]


@hookimpl
def drupe_model_kinds() -> Sequence[ModelKindSpec]:
    """Contribute the kind that the compiler makes."""
    return [ModelKindSpec(name="acme", target="drupe_acme_npu.kind:AcmeKind", summary="A compiled Acme program.")]


@hookimpl
def drupe_passes() -> Sequence[PassSpec]:
    """Contribute the compiler."""
    return [
        PassSpec(
            name="AcmeCompile",
            target="drupe_acme_npu.compiler:AcmeCompile",
            summary="Compile an ONNX model for the Acme NPU.",
            accepts=frozenset({"onnx"}),
            produces="acme",
            accelerators=frozenset({"acme_npu"}),
            precisions=frozenset({"int8", "int16"}),
            requires=("onnx>=1.17",),
            key_packages=("onnx",),
        )
    ]


@hookimpl
def drupe_runtimes() -> Sequence[RuntimeSpec]:
    """Contribute the runtime."""
    return [
        RuntimeSpec(
            name="acme",
            target="drupe_acme_npu.runtime:AcmeRuntime",
            summary="Runs compiled programs.",
            kinds=frozenset({"acme"}),
            accelerators=frozenset({"acme_npu"}),
            providers=frozenset({"AcmeExecutionProvider"}),
            capabilities=frozenset({"forward"}),
        )
    ]


@hookimpl
def drupe_hosts() -> Sequence[HostSpec]:
    """Contribute the board as a place where jobs run."""
    return [HostSpec(name="AcmeBoard", target="drupe_acme_npu.host:AcmeBoard", summary="A board with an Acme NPU.")]


@hookimpl
def drupe_metrics() -> Sequence[MetricSpec]:
    """Contribute energy, which only a device that counts it can give."""
    return [
        MetricSpec(
            name="energy",
            target="drupe_acme_npu.energy:Energy",
            summary="Joules per sample.",
            needs="forward",
            timed=True,
        )
    ]
