"""Measures models: looks measurements up by key, and runs the missing ones as jobs on the target.

Timed metrics run in a job of their own that holds the machine alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from drupe.core.accelerators import Accelerator
from drupe.core.engine import Engine
from drupe.core.executor import StepResult
from drupe.core.hosts import JobOptions
from drupe.core.job import Job
from drupe.core.keys import config_identity, step_key
from drupe.core.metrics import Measurement, Metric
from drupe.core.model import Model
from drupe.core.registry import Registered
from drupe.core.serving import serving
from drupe.core.specs import DataSpec, MetricSpec, RuntimeSpec
from drupe.core.workflow.model import Evaluator, MetricEntry, System

__all__ = ["Measurer", "full_name"]


@dataclass(frozen=True)
class _Request:
    """What is to be measured. beside: the models that take part as baseline and reference."""

    model: Model
    system: System
    accelerator: Accelerator
    part: str | None
    beside: Mapping[str, Model]
    limit: int | None = None
    piece: tuple[int, int] | None = None


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
        request = self._request(model, target, part, baseline, reference, limit=limit)
        found, errors, steps = self._take(entries, request)
        measurements: dict[str, Measurement] = {}
        for entry in entries:
            if entry.name in found:
                measurements |= self._read(entry, found[entry.name], part)
        return measurements, errors, steps

    def stored(
        self,
        model: Model,
        entry: MetricEntry,
        target: str,
        *,
        part: str | None,
        baseline: Model | None = None,
        reference: Model | None = None,
    ) -> dict[str, Measurement] | None:
        """Return what a metric gave for a model on the whole part, where the store has it."""
        request = self._request(model, target, part, baseline, reference)
        record = self.store.get(self._metric_key(entry, request))
        return None if record is None else self._read(entry, record["measurement"], part)

    def measure_piece(
        self,
        model: Model,
        entry: MetricEntry,
        target: str,
        piece: tuple[int, int],
        *,
        part: str | None,
        reference: Model | None = None,
    ) -> tuple[Mapping[str, Any] | None, str | None, list[StepResult]]:
        """Measure only the samples from piece[0] up to piece[1], in the order of their ids' digests: (what was found,
        error, steps).

        What was found holds `rows`, the `positions` of the measured samples in the part, its `total`, and `per_sample`:
        whether the rows are named after samples, so that pieces can be put together.
        """
        found, errors, steps = self._take([entry], self._request(model, target, part, None, reference, piece=piece))
        return found.get(entry.name), errors.get(entry.name), steps

    def keep_whole(
        self,
        model: Model,
        entry: MetricEntry,
        target: str,
        measured: Mapping[str, Any],
        last: StepResult,
        *,
        part: str | None,
        reference: Model | None = None,
    ) -> dict[str, Measurement]:
        """Store pieces that were put together as if the metric had been measured at once, and return its values.

        last: the step of the last piece, whose record tells host and versions.
        """
        key = self._metric_key(entry, self._request(model, target, part, None, reference))
        record = {**(self.store.get(last.key) or {}), "key": key, "measurement": dict(measured), "model": None}
        self.store.put(key, {**record, "seconds": measured["seconds"]})
        return self._read(entry, measured, part)

    def metric(self, entry: MetricEntry) -> tuple[Metric, Any]:
        """Return the metric of an evaluator's entry and its config."""
        registered = self.registry.get("drupe_metrics", entry.type)
        metric = self.registry.resolve(registered)(registered.spec)
        return metric, metric.Config.model_validate(dict(entry.config))

    def _read(self, entry: MetricEntry, record: Mapping[str, Any], part: str | None) -> dict[str, Measurement]:
        """Return a metric's stored values by full name, each with the rows that it rests on."""
        metric, config = self.metric(entry)
        rows = {key: tuple(row) for key, row in record.get("rows", {}).items()}
        found = {}
        for sub_type, value in record["values"].items():
            name = full_name(entry, sub_type)
            own = metric.rows_of(rows, sub_type, config)
            found[name] = Measurement.from_json({**value, "metric": name, "rows": own, "split": part})
        return found

    def grows(self, entry: MetricEntry) -> bool:
        """Whether a metric is taken on samples one by one, so that a part of them tells something of all."""
        spec = cast(MetricSpec, self.registry.get("drupe_metrics", entry.type).spec)
        return entry.data is not None and spec.needs is not None and not spec.timed

    def cost(self, entry: MetricEntry) -> int:
        """Rank how dear a metric is: 0 reads files, 1 runs the model, 2 needs the machine alone."""
        spec = cast(MetricSpec, self.registry.get("drupe_metrics", entry.type).spec)
        return 2 if spec.timed else int(spec.needs is not None)

    def _request(
        self,
        model: Model,
        target: str,
        part: str | None,
        baseline: Model | None,
        reference: Model | None,
        *,
        limit: int | None = None,
        piece: tuple[int, int] | None = None,
    ) -> _Request:
        system = self.workflow.systems[target]
        beside = {role: m for role, m in (("baseline", baseline), ("reference", reference)) if m is not None}
        return _Request(model, system, system.accelerators[0], part, beside, limit, piece)

    def _take(
        self, entries: Sequence[MetricEntry], request: _Request
    ) -> tuple[dict[str, Mapping[str, Any]], dict[str, str], list[StepResult]]:
        """Look measurements up, and run what is missing."""
        keys = {m.name: self._metric_key(m, request) for m in entries}
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
                got, failed, done = self._measure_group(group, keys, request, exclusive=timed)
                found.update(got)
                errors.update(failed)
                steps.extend(done)
        return found, errors, steps

    def _timed(self, entry: MetricEntry) -> bool:
        return cast(MetricSpec, self.registry.get("drupe_metrics", entry.type).spec).timed

    def _roles(self, entry: MetricEntry) -> set[str]:
        """Return the roles of the models that a metric takes beside the one it measures."""
        registered = self.registry.get("drupe_metrics", entry.type)
        roles = {"baseline"} if self._timed(entry) else set()
        return roles | ({"reference"} if self.registry.resolve(registered).needs_reference else set())

    def _metric_key(self, entry: MetricEntry, request: _Request) -> str:
        model, system, accelerator, part = request.model, request.system, request.accelerator, request.part
        registered = self.registry.get("drupe_metrics", entry.type)
        metric, config = self.metric(entry)
        values, found = config_identity(
            config,
            data=self._engine.data_identity,
            file=self._engine.file_identity,
            folder=self.workflow.folder,
        )
        extra: dict[str, Any] = {"sub_types": sorted(entry.sub_types)}
        keyed = cast(MetricSpec, registered.spec).key_packages
        packages: dict[str, str] = dict(self._engine.packages(system.name, keyed)) if keyed else {}
        if cast(MetricSpec, registered.spec).needs is not None:
            runtime, options = self._served(model, system, accelerator)
            spec = cast(RuntimeSpec, runtime.spec)
            packages |= self._engine.packages(system.name, spec.key_packages)
            extra["runtime"] = [
                spec.name,
                runtime.plugin.distribution,
                runtime.plugin.version,
                dict(options),
            ]
        timed = self._timed(entry)
        if timed:
            host = self._engine.host(system.name)
            resources = self._engine.resources(system.name)
            extra["machine"] = host.describe().machine
            extra["threads"] = resources.thread_count
            # The winner's timings are taken anew for its verdict: those it was chosen by flatter it.
            extra["part"] = part
        if metric.own_data and part in ("selection", "certification"):
            extra["part"] = part
        if entry.data is not None:
            data = self.registry.get("drupe_data_containers", self.workflow.data[entry.data].type)
            packages |= self._engine.packages(system.name, cast(DataSpec, data.spec).key_packages)
            extra["data"] = self._engine.data_identity(entry.data)
            extra["part"] = part if self.workflow.data[entry.data].split else None
            extra["limit"] = request.limit
            if request.piece is not None:
                extra["piece"] = list(request.piece)
        roles = self._roles(entry)
        inputs = {"model": model.digest} | {role: m.digest for role, m in request.beside.items() if role in roles}
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
            yield self._served(model, system, accelerator)[0]

    def _served(self, model: Model, system: System, accelerator: Accelerator) -> tuple[Registered, Mapping[str, Any]]:
        return serving(self.registry, model.kind, accelerator, system.runtime, system.runtime_options)

    def _measure_group(
        self,
        group: Sequence[MetricEntry],
        keys: Mapping[str, str],
        request: _Request,
        *,
        exclusive: bool,
    ) -> tuple[dict[str, Mapping[str, Any]], dict[str, str], list[StepResult]]:
        model, system, accelerator = request.model, request.system, request.accelerator
        names = sorted({m.data for m in group if m.data})
        roles = set().union(*(self._roles(m) for m in group))
        inputs = {"model": model} | {role: m for role, m in request.beside.items() if role in roles}
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
                    "part": request.part,
                    "limit": request.limit,
                    "piece": list(request.piece) if request.piece else None,
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
