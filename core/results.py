"""What a run leaves behind: candidates, verdicts, the manifest `drupe.json` and `candidates.csv`.

The manifest is rewritten as trials finish, by rename, so that a run that is killed leaves what it knew.
"""

from __future__ import annotations

import csv
import io
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drupe.core import pictures
from drupe.core.executor import StepResult
from drupe.core.job import write_json
from drupe.core.metrics import Measurement

__all__ = ["MANIFEST", "Candidate", "RunResult", "TargetResult", "write_candidates", "write_manifest"]

MANIFEST = "drupe.json"
SCHEMA = 1


@dataclass(frozen=True)
class Candidate:
    """One trial's model and what is known of it. state: complete | failed | pruned."""

    number: int
    point: Mapping[str, Any]
    state: str
    model: str | None = None
    chain: Sequence[Mapping[str, Any]] = ()
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    metric_errors: Mapping[str, str] = field(default_factory=dict)
    violations: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    cost: float = 0.0
    saved: float = 0.0
    lost_because: str | None = None

    @property
    def feasible(self) -> bool:
        """Whether every goal is met by the point estimates."""
        return self.state == "complete" and all(value <= 0 for value in self.violations.values())

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "number": self.number,
            "point": dict(self.point),
            "state": self.state,
            "feasible": self.feasible,
            "model": self.model,
            "chain": [dict(step) for step in self.chain],
            "measurements": {name: m.to_json() for name, m in self.measurements.items()},
            "metric_errors": dict(self.metric_errors),
            "violations": {k: (v if v != float("inf") else None) for k, v in self.violations.items()},
            "error": self.error,
            "seconds": {"spent": round(self.cost, 3), "saved": round(self.saved, 3)},
            "lost_because": self.lost_because,
        }


@dataclass
class TargetResult:
    """What came out for one target. status: "met" | "certified" | "undecided" | "infeasible" | "failed" | "running" |
    "stopped": a host kept it from its end."""

    target: str
    status: str = "running"
    winner: int | None = None
    model_dir: str | None = None
    candidates: list[Candidate] = field(default_factory=list)
    verdicts: list[Mapping[str, Any]] = field(default_factory=list)
    certified: Mapping[str, Measurement] = field(default_factory=dict)
    baseline: Mapping[str, Measurement] = field(default_factory=dict)
    message: str = ""
    generate: Mapping[str, Any] = field(default_factory=dict)
    started_from: Mapping[str, Any] = field(default_factory=dict)
    """The target whose best points were tried first, and how many."""
    warnings: list[str] = field(default_factory=list)
    """Shared data, and results that are hard to believe."""
    explanation: Mapping[str, Any] = field(default_factory=dict)
    """What the study says of itself: front, the goal that binds, nearest relaxations, importance of parameters."""
    sample_evaluations: Mapping[str, Any] = field(default_factory=dict)
    """Multi-fidelity: how many were taken, and how many measuring everything would have taken."""
    artifact: Mapping[str, Any] | None = None
    """Kind, files by digest and attributes of the model that was handed over."""
    set_aside: list[Mapping[str, Any]] = field(default_factory=list)
    """Trials that a host failed, with the host and its error: the next run of the same command takes them up."""
    left_out: list[Mapping[str, Any]] = field(default_factory=list)
    """Why combinations of values were not tried, each reason with an example and how many points were drawn."""
    search: Mapping[str, Any] = field(default_factory=dict)
    """What the trials of this run took: workers, seconds, and how many of these timed metrics had a machine alone."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "status": self.status,
            "winner": self.winner,
            "model": self.model_dir,
            "message": self.message,
            "verdicts": [dict(verdict) for verdict in self.verdicts],
            "certification": {name: m.to_json(rows=True) for name, m in self.certified.items()},
            "baseline": {name: m.to_json() for name, m in self.baseline.items()},
            "generate": dict(self.generate),
            **({"started_from": dict(self.started_from)} if self.started_from else {}),
            "search": dict(self.search),
            **({"set_aside": [dict(one) for one in self.set_aside]} if self.set_aside else {}),
            **({"left_out": [dict(one) for one in self.left_out]} if self.left_out else {}),
            "warnings": list(self.warnings),
            **({"explanation": dict(self.explanation)} if self.explanation else {}),
            **({"sample_evaluations": dict(self.sample_evaluations)} if self.sample_evaluations else {}),
            "artifact": dict(self.artifact) if self.artifact else None,
            "candidates": [candidate.to_json() for candidate in self.candidates],
        }


@dataclass
class RunResult:
    """What came out of a run. exit_code as the command line returns it."""

    output_dir: Path
    targets: dict[str, TargetResult] = field(default_factory=dict)
    exit_code: int = 0
    seconds: float = 0.0


def chain_json(steps: Sequence[StepResult], configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the steps of a chain as the manifest shows them."""
    return [
        {
            "pass": step.name,
            "type": step.type,
            "config": dict(config),
            "key": step.key,
            "model": step.model.digest if step.model else None,
            "host": step.host,
            "seconds": round(step.seconds, 3),
            "peak_memory": step.peak_memory,
            "versions": dict(step.versions),
            "report": pictures.shown(step),
        }
        for step, config in zip(steps, configs, strict=True)
    ]


def write_manifest(result: RunResult, *, document: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Write drupe.json: the workflow as run, versions, every candidate, the verdicts, the winner per target."""
    import drupe

    path = result.output_dir / MANIFEST
    write_json(
        path,
        {
            "schema": SCHEMA,
            "drupe": drupe.__version__,
            "python": platform.python_version(),
            "exit_code": result.exit_code,
            "seconds": round(result.seconds, 3),
            **facts,
            "workflow": _without_password(document),
            "targets": {name: target.to_json() for name, target in result.targets.items()},
        },
    )
    return path


def _without_password(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a workflow whose study storage shows no password."""
    strategy = document.get("search_strategy")
    if not isinstance(strategy, Mapping) or not isinstance(strategy.get("storage"), str):
        return dict(document)
    shown = re.sub(r"(?<=://)([^/@:]*):[^/]*@", r"\1:***@", strategy["storage"])
    return {**document, "search_strategy": {**strategy, "storage": shown}}


def write_candidates(result: RunResult) -> Path:
    """Write candidates.csv: a row per candidate, its parameters and measurements in columns."""
    rows: list[dict[str, Any]] = []
    for name, target in result.targets.items():
        for c in target.candidates:
            row: dict[str, Any] = {
                "target": name,
                "number": c.number,
                "state": c.state,
                "feasible": c.feasible,
                "winner": c.number == target.winner,
            }
            row |= dict(c.point)
            for metric, m in c.measurements.items():
                row[metric] = m.value
                if m.interval:
                    row[f"{metric} low"], row[f"{metric} high"] = m.interval
            row |= {"seconds": round(c.cost, 3), "saved": round(c.saved, 3), "model": c.model, "error": c.error}
            rows.append(row)
    columns: dict[str, None] = {}
    for row in rows:
        columns |= dict.fromkeys(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns) or ["target"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = result.output_dir / "candidates.csv"
    temporary = path.with_suffix(".csv.part")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    temporary.replace(path)
    return path
