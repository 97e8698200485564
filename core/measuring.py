"""Measures models: looks measurements up by key, and runs the missing ones as jobs on the target.

Timed metrics run in a job of their own that holds the machine alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from drupe.core.accelerators import Accelerator
from drupe.core.engine import Engine
from drupe.core.executor import StepResult
from drupe.core.hosts import JobOptions
from drupe.core.job import Job
from drupe.core.keys import config_identity, step_key
from drupe.core.metrics import Measurement
from drupe.core.model import Model
from drupe.core.registry import Registered
from drupe.core.serving import find_runtime
from drupe.core.specs import DataSpec, MetricSpec, RuntimeSpec
from drupe.core.workflow.model import Evaluator, MetricEntry, System

__all__ = ["Measurer", "full_name"]


class Measurer:
    """Measures the models of one workflow."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._executor = engine.executor
        self.registry = engine.registry
        self.store = engine.store
        self.workflow = engine.workflow
        self._exclusive: list[float] = []

    @property
    def exclusive_seconds(self) -> float:
        """How long timed metrics have had their machines alone, in this run."""
        return sum(self._exclusive)

    def measure(
        self,
        model: Model,
        evaluator: Evaluator,
        target: str,
        *,
        part: str | None = "selection",
        baseline: Model | None = None,
        reference: Model | None = None,
        metrics: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> tuple[dict[str, Measurement], dict[str, str], list[StepResult]]:
        """Measure a model on a target: (measurements by full name, errors by metric name, the steps taken).

        part: which split of the data. baseline: interleaved with the model by timed metrics. reference: the source
        model, for metrics that compare with it. metrics: only these entries of the evaluator. limit: measure on so many
        of the samples only, chosen by their ids.
        """
        entries = [m for m in evaluator.metrics if metrics is None or m.name in metrics]
        system = self.workflow.systems[target]
        accelerator = system.accelerators[0]
        beside = {role: m for role, m in (("baseline", baseline), ("reference", reference)) if m is not None}
        keys = {m.name: self._metric_key(m, model, system, accelerator, part, beside, limit) for m in entries}
        steps: list[StepResult] = []
        found: dict[str, Mapping[str, Any]] = {}
        for entry in entries:
            record = self.store.get(keys[entry.name])
            if record is not None:
                found[entry.name] = record["measurement"]
                steps.append(self._executor.result(record, cached=True))
                self._executor.tell("finished", steps[-1])
        errors: dict[str, str] = {}
        missing = [m for m in entries if m.name not in found]
        for timed in (False, True):
            group = [m for m in missing if self._timed(m) is timed]
            if group:
                got, failed, done = self._measure_group(
                    group, keys, model, system, accelerator, part, beside, limit, exclusive=timed
                )
                found.update(got)
                errors.update(failed)
                steps.extend(done)
        measurements: dict[str, Measurement] = {}
        for entry in entries:
            if entry.name not in found:
                continue
            record = found[entry.name]
            rows = record.get("rows", {})
            for sub_type, value in record["values"].items():
                name = full_name(entry, sub_type)
                measurements[name] = Measurement.from_json({**value, "metric": name, "rows": rows, "split": part})
        return measurements, errors, steps

    def _timed(self, entry: MetricEntry) -> bool:
        return cast(MetricSpec, self.registry.get("drupe_metrics", entry.type).spec).timed

    def _roles(self, entry: MetricEntry) -> set[str]:
        """Return the roles of the models that a metric takes beside the one it measures."""
        registered = self.registry.get("drupe_metrics", entry.type)
        roles = {"baseline"} if self._timed(entry) else set()
        return roles | ({"reference"} if self.registry.resolve(registered).needs_reference else set())

    def _metric_key(
        self,
        entry: MetricEntry,
        model: Model,
        system: System,
        accelerator: Accelerator,
        part: str | None,
        beside: Mapping[str, Model],
        limit: int | None,
    ) -> str:
        registered = self.registry.get("drupe_metrics", entry.type)
        metric = self.registry.resolve(registered)(registered.spec)
        config = metric.Config.model_validate(dict(entry.config))
        values, found = config_identity(
            config,
            data=self._engine.data_identity,
            file=self._engine.file_identity,
            folder=self.workflow.folder,
        )
        extra: dict[str, Any] = {"sub_types": sorted(entry.sub_types)}
        packages: dict[str, str] = {}
        if cast(MetricSpec, registered.spec).needs is not None:
            runtime = find_runtime(self.registry, model.kind, accelerator, system.runtime)
            spec = cast(RuntimeSpec, runtime.spec)
            packages = self._engine.packages(system.name, spec.key_packages)
            extra["runtime"] = [
                spec.name,
                runtime.plugin.distribution,
                runtime.plugin.version,
                dict(system.runtime_options),
            ]
        timed = self._timed(entry)
        if timed:
            host = self._engine.host(system.name)
            resources = self._engine.resources(system.name)
            extra["machine"] = host.describe().machine
            extra["threads"] = resources.thread_count
            # The winner's timings are taken anew for its verdict: those it was chosen by flatter it.
            extra["part"] = part
        if entry.data is not None:
            data = self.registry.get("drupe_data_containers", self.workflow.data[entry.data].type)
            packages |= self._engine.packages(system.name, cast(DataSpec, data.spec).key_packages)
            extra["data"] = self._engine.data_identity(entry.data)
            extra["part"] = part if self.workflow.data[entry.data].split else None
            extra["limit"] = limit
        roles = self._roles(entry)
        inputs = {"model": model.digest} | {role: m.digest for role, m in beside.items() if role in roles}
        return step_key(
            "measure",
            registered,
            version=metric.version,
            config=values,
            inputs=inputs,
            references=found,
            packages=packages,
            accelerator=accelerator,
            seed=self.workflow.seed,
            extra=extra,
        )

    def _used(
        self, group: Sequence[MetricEntry], names: Sequence[str], model: Model, system: System, accelerator: Accelerator
    ) -> Iterator[Registered]:
        """What of the plugins a measuring job needs: metrics, data containers, the runtime."""
        metrics = [self.registry.get("drupe_metrics", entry.type) for entry in group]
        yield from metrics
        yield from self._engine.data_providers(names)
        if any(cast(MetricSpec, metric.spec).needs is not None for metric in metrics):
            yield find_runtime(self.registry, model.kind, accelerator, system.runtime)

    def _measure_group(
        self,
        group: Sequence[MetricEntry],
        keys: Mapping[str, str],
        model: Model,
        system: System,
        accelerator: Accelerator,
        part: str | None,
        beside: Mapping[str, Model],
        limit: int | None,
        *,
        exclusive: bool,
    ) -> tuple[dict[str, Mapping[str, Any]], dict[str, str], list[StepResult]]:
        names = sorted({m.data for m in group if m.data})
        roles = set().union(*(self._roles(m) for m in group))
        inputs = {"model": model} | {role: m for role, m in beside.items() if role in roles}
        resources = self._engine.resources(system.name, alone=exclusive)
        job = Job(
            "measure",
            keys[group[0].name],
            ", ".join(m.name for m in group),
            "",
            {},
            inputs=inputs,
            data=self._engine.job_data(names),
            accelerator=accelerator,
            resources=resources,
            **{
                **self._engine.common(*self._used(group, names, model, system, accelerator)),
                "options": {
                    "runtime": system.runtime,
                    "runtime_options": dict(system.runtime_options),
                    "part": part,
                    "limit": limit,
                    "metrics": [
                        {
                            "name": m.name,
                            "type": m.type,
                            "config": dict(m.config),
                            "data": m.data,
                            "sub_types": list(m.sub_types),
                        }
                        for m in group
                    ],
                },
            },
        )
        with self.store.lock(job.key, self._engine.cancelled):
            found = {m.name: record["measurement"] for m in group if (record := self.store.get(keys[m.name]))}
            if len(found) == len(group):
                return (
                    found,
                    {},
                    [self._executor.result(self.store.get(keys[m.name]) or {}, cached=True) for m in group],
                )
            result = self._executor.run(job, system.name, JobOptions(resources=resources, exclusive=exclusive))
            errors: dict[str, str] = {}
            steps: list[StepResult] = []
            for m in group:
                measured = result["measurements"][m.name]
                if "error" in measured:
                    errors[m.name] = measured["error"]
                    continue
                record = self._executor.record(job, result, name=m.name, seconds=measured["seconds"], host=system.name)
                record |= {"key": keys[m.name], "measurement": measured, "model": None}
                self.store.put(keys[m.name], record)
                found[m.name] = measured
                if exclusive:
                    self._exclusive.append(measured["seconds"])
                steps.append(self._executor.result(record, cached=False))
        for step in steps:
            self._executor.tell("finished", step)
        return found, errors, steps


def full_name(entry: MetricEntry, sub_type: str) -> str:
    """Return the name of a measurement as goals spell it: "name-sub_type"."""
    return f"{entry.name}-{sub_type}"
