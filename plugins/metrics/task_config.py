"""What benchmarks of named tasks take alike."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from drupe.core.metrics import MetricConfig

__all__ = ["TasksConfig"]


class TasksConfig(MetricConfig):
    """Tasks as a list of names, or as one text with commas, each once."""

    tasks: list[str] = Field(min_length=1, description="Tasks by the benchmark's names.")

    @field_validator("tasks", mode="before")
    @classmethod
    def _one_task(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        for name in value:
            if value.count(name) > 1:
                raise ValueError(f"{name} is listed twice; list each task once")
        return value
