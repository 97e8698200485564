"""What the configs of several hosts share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pydantic import Field

from drupe.core.config import PluginConfig
from drupe.core.hosts import HostConfig, JobOptions

__all__ = ["ResourcesConfig", "WorkerConfig", "with_config"]


class ResourcesConfig(PluginConfig):
    """What a job of this system may use."""

    cpus: int | None = Field(None, ge=1, description="Cores; default: all.")
    gpus: float | None = Field(None, ge=0, description="GPUs; below 1, a part of one.")
    memory: int | None = Field(None, ge=1, description="Bytes of memory; a job that uses more is ended.")
    threads: int | None = Field(None, ge=1, description="Threads of numeric libraries; default: as many as cpus.")


class WorkerConfig(HostConfig):
    """What every host takes that runs the worker."""

    slots: int = Field(0, ge=0, description="How many jobs run at once; 0: as many as the search has workers.")
    threads: int | None = Field(None, ge=1, description="Threads of a job; default: all cores.")
    resources: ResourcesConfig | None = Field(None, description="What a job may use: cpus, gpus, memory, threads.")
    timeout: float | None = Field(None, gt=0, description="Seconds after which a job is ended.")
    environment: Mapping[str, str] = Field(default_factory=dict, description="Environment variables of the jobs.")
    launcher_processes: int = Field(1, ge=1, description="Processes that torchrun starts for a job without GPUs.")


def with_config(options: JobOptions, config: WorkerConfig) -> JobOptions:
    """Return a job's options with the system's time-out where the job has none."""
    return replace(options, timeout=options.timeout or config.timeout)
