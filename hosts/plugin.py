"""Registers the built-in hosts."""

from __future__ import annotations

from drupe.core.hookspecs import hookimpl
from drupe.core.specs import HostSpec


@hookimpl
def drupe_hosts() -> list[HostSpec]:
    """Contribute the hosts."""
    return [
        HostSpec(
            name="LocalSystem",
            target="drupe.hosts.local:LocalSystem",
            summary="This machine, in warm worker processes.",
            aliases=("local", "local_system"),
        ),
        HostSpec(
            name="PythonEnvironment",
            target="drupe.hosts.environment:PythonEnvironment",
            summary="Another Python environment of this machine, existing or made from requirements.",
            environment_field="requirements",
        ),
        HostSpec(
            name="IsolatedORT",
            target="drupe.hosts.isolated_ort:IsolatedORT",
            summary="Measures with ONNX Runtime of another Python environment, which needs nothing else.",
            runtime="IsolatedORT",
        ),
        HostSpec(
            name="SSH",
            target="drupe.hosts.ssh:SSH",
            summary="Another machine, reached with the OpenSSH client.",
        ),
        HostSpec(
            name="Slurm",
            target="drupe.hosts.slurm:Slurm",
            summary="A Slurm cluster that shares this machine's file system.",
        ),
        HostSpec(
            name="Docker",
            target="drupe.hosts.docker:Docker",
            summary="A container of an image for each job, on this machine's engine.",
            aliases=("docker_system",),
            requires=("docker>=7",),
        ),
        HostSpec(
            name="Ray",
            target="drupe.hosts.ray_cluster:Ray",
            summary="A Ray cluster, existing or started on this machine.",
            requires=("ray>=2.40",),
        ),
    ]
