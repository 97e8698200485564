"""A workflow, read: what the rest of Drupe sees of a workflow file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drupe.core.accelerators import Accelerator
from drupe.core.errors import Fault
from drupe.core.study import Goal, Objective, StudySettings

__all__ = ["DataEntry", "Evaluator", "MetricEntry", "Notice", "PassAlternative", "PassEntry", "System", "Workflow"]


@dataclass(frozen=True)
class Notice:
    """An older spelling that was upgraded while reading: where, what it was, what it is now. Or, with nothing in
    `now`, what a plugin has to say of the values it was given, such as that one has no effect."""

    path: str
    found: str
    now: str
    why: str = ""

    def __str__(self) -> str:
        text = f"{self.path}: {self.found} is now {self.now}" if self.now else f"{self.path}: {self.found}"
        return f"{text} ({self.why})" if self.why else text


@dataclass(frozen=True)
class System:
    """An entry of `systems`. type: the registered host name. config: the host's own fields. accelerators: what a
    target of this system is optimized for. runtime, runtime_options: which runtime measures there, and how.
    measures_only: whether passes do not run there."""

    name: str
    type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    accelerators: tuple[Accelerator, ...] = (Accelerator(),)
    runtime: str | None = None
    runtime_options: Mapping[str, Any] = field(default_factory=dict)
    measures_only: bool = False


@dataclass(frozen=True)
class DataEntry:
    """An entry of `data_configs`. config: the container's own fields, flat or in Olive's four groups, as its Config
    takes them."""

    name: str
    type: str
    config: Mapping[str, Any]
    split: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricEntry:
    """A metric of an evaluator. type: the registered metric. sub_types: which of its values are wanted."""

    name: str
    type: str
    sub_types: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None


@dataclass(frozen=True)
class Evaluator:
    """An entry of `evaluators`. Metric names in goals and objectives read "name-sub_type".

    type, kinds: that of an evaluator for the models of one framework, and the model kinds that it measures; none: any.
    """

    name: str
    metrics: tuple[MetricEntry, ...]
    goals: tuple[Goal, ...] = ()
    objectives: tuple[Objective, ...] = ()
    type: str | None = None
    kinds: tuple[str, ...] = ()

    def entry_name(self, metric: str) -> str:
        """Return the name of the metric that "name-sub_type" is a value of; either may hold a hyphen itself."""
        names = [entry.name for entry in self.metrics if metric.startswith(f"{entry.name}-")]
        return max(names, key=len) if names else metric.rpartition("-")[0]


@dataclass(frozen=True)
class PassAlternative:
    """One way to do a pass. config: as written, search markers ({"search": …}) normalised and still in place. where:
    its path in the file. host: a system's name."""

    type: str
    config: Mapping[str, Any]
    where: str
    host: str | None = None


@dataclass(frozen=True)
class PassEntry:
    """An entry of `passes`. More than one alternative makes the choice a dimension of the search."""

    name: str
    alternatives: tuple[PassAlternative, ...]
    evaluator: str | None = None


@dataclass(frozen=True)
class Workflow:
    """A workflow, upgraded and validated. document: the upgraded file, as the manifest shows it. options: top-level
    keys that steer the run (no_artifacts, evaluate_input_model, clean_cache, packaging_config, …)."""

    path: Path
    name: str
    input_model: Mapping[str, Any]
    model_kind: str
    systems: Mapping[str, System]
    data: Mapping[str, DataEntry]
    evaluators: Mapping[str, Evaluator]
    passes: Mapping[str, PassEntry]
    flows: tuple[tuple[str, ...], ...]
    evaluator: str | None
    host: str
    targets: tuple[str, ...]
    search: StudySettings | None
    cache_dir: Path
    output_dir: Path
    baseline: str | None = None
    seed: int = 0
    plugins: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    document: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    needs: tuple[Fault, ...] = ()
    unmarked: tuple[str, ...] = ()
    """Searchable values that the workflow did not mark, "pass.param": `search_strategy: true` tells of them."""
    store_url: str | None = None
    """The shared store that cache_dir is in front of, where the workflow names a URL."""

    @property
    def folder(self) -> Path:
        """The folder that relative paths resolve against."""
        return self.path.parent
