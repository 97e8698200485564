"""What each kind of job does: import an input model, run a pass, measure a model, look around. Runs in the worker.

Every function takes a job, its folder and its context, and returns the fields that it adds to result.json.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drupe.core.accelerators import Accelerator
from drupe.core.context import JobContext
from drupe.core.digests import digest_of
from drupe.core.errors import ConfigError, DrupeError, EvaluationError, HostError, Interrupted, StoreError
from drupe.core.job import Job, check_json
from drupe.core.metrics import Metric
from drupe.core.model import Model
from drupe.core.registry import Registered, Registry, get_registry
from drupe.core.runtimes import Session

__all__ = ["WORK", "run_import", "run_look", "run_measure", "run_pass"]


def run_import(job: Job, folder: Path, context: JobContext) -> Mapping[str, Any]:
    """Fetch what an `input_model` refers to and make a Model of it."""
    from drupe.core.sources import find_source

    registry = get_registry(job.plugins)
    kind = registry.create("drupe_model_kinds", job.subject)
    config = kind.Config.model_validate(dict(job.config))
    workflow_dir = Path(job.workflow_dir or ".")
    options = {**kind.source_options(config)}
    fetched: dict[str, Path] = {}
    for role, reference in kind.references(config).items():
        into = folder / "fetched" / role
        into.mkdir(parents=True, exist_ok=True)
        source = find_source(registry, reference, workflow_dir)
        fetched[role] = source.fetch(reference, options, into, context)
    load = kind.rehearse if job.options.get("rehearse") else kind.load
    model: Model = load(config, fetched, context)
    return {"model": model.to_json()}


def run_pass(job: Job, folder: Path, context: JobContext) -> Mapping[str, Any]:
    """Run one pass on the staged input model."""
    registry = get_registry(job.plugins)
    _give_data(job, registry, context)
    pass_ = registry.create("drupe_passes", job.subject)
    config = pass_.Config.model_validate(dict(job.config))
    if job.options.get("rehearse"):
        config = pass_.rehearsal(config)
    result: Model = pass_(_staged(job, folder, "model"), config, context)
    return {"model": result.to_json()}


def run_measure(job: Job, folder: Path, context: JobContext) -> Mapping[str, Any]:
    """Measure the staged model with every metric of the job; one that fails does not take the others along.

    options: runtime (name or None), runtime_options, part, limit (of samples, or None), piece ([from, to) of the
    samples in the order of their ids' digests, or None), metrics: [{"name", "type", "config", "data", "sub_types"}].
    """
    registry = get_registry(job.plugins)
    _give_data(job, registry, context)
    model = _staged(job, folder, "model")
    others = {role: _staged(job, folder, role) for role in ("baseline", "reference") if role in job.inputs}
    results: dict[str, Any] = {}
    sessions = _Sessions(job, registry, context)
    try:
        for index, request in enumerate(job.options["metrics"]):
            context.progress(index, len(job.options["metrics"]), request["name"])
            try:
                results[request["name"]] = _measure_one(request, job, registry, model, others, sessions, context)
            except (Interrupted, HostError, StoreError):
                # The machine's fault, not the model's: another try or another machine may do.
                raise
            except DrupeError as error:
                results[request["name"]] = {"error": str(error)}
            except Exception as error:
                context.log.exception("metric %s failed", request["name"])
                results[request["name"]] = {"error": f"{type(error).__name__}: {error}"}
    finally:
        sessions.close()
    return {"measurements": results}


def run_look(job: Job, folder: Path, context: JobContext) -> Mapping[str, Any]:
    """Report what the frameworks find where jobs run: ONNX Runtime's execution providers, the GPUs that torch sees."""
    from importlib.util import find_spec

    if find_spec("onnxruntime") is not None:
        import onnxruntime

        context.report["execution_providers"] = list(onnxruntime.get_available_providers())
    if find_spec("torch") is not None:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        context.report["torch_gpus"] = [torch.cuda.get_device_name(index) for index in range(count)]
    return {}


def _measure_one(
    request: Mapping[str, Any],
    job: Job,
    registry: Registry,
    model: Model,
    others: Mapping[str, Model],
    sessions: _Sessions,
    context: JobContext,
) -> dict[str, Any]:
    from drupe.core.values import values_of

    metric: Metric = registry.create("drupe_metrics", request["type"])
    config = metric.Config.model_validate(dict(request["config"]))
    needs = metric.needs(config)
    samples = context.data(request["data"], model=model, part=job.options.get("part")) if request["data"] else ()
    context.population = samples
    context.part = job.options.get("part")
    piece = job.options.get("piece")
    start, stop = piece or (0, job.options.get("limit") or len(samples))
    if start > 0 or stop < len(samples):
        # By the ids' digests, so that the choice neither follows the order of the rows nor changes between runs.
        samples = sorted(samples, key=lambda sample: digest_of(sample.id))[start:stop]
    context.model_sessions = sessions.opener(model)
    session = sessions.get("model", model, needs) if needs else None
    context.baseline_session = sessions.get("baseline", others["baseline"], needs) if "baseline" in others else None
    context.reference_session = None
    if metric.needs_reference and "reference" in others:
        context.reference_session = sessions.get("reference", others["reference"], needs)
    expected = {name: metric.sub_type(name, config).direction for name in request["sub_types"]}
    with context.alone():
        started = time.perf_counter()
        rows = metric.measure(model, session, samples, config, context)
        seconds = time.perf_counter() - started
    check_json("report", context.report)
    if not rows:
        raise EvaluationError(f"metric {request['name']} gave no rows; its data may be empty")
    broken = next((key for key, row in rows.items() if not all(math.isfinite(x) for x in row)), None)
    if broken is not None:
        raise EvaluationError(
            f"metric {request['name']} is not finite on {broken}: {', '.join(str(float(x)) for x in rows[broken])}; "
            "the model may give NaN or infinite numbers there"
        )
    measured: dict[str, Any] = {"rows": {key: [float(x) for x in row] for key, row in rows.items()}, "seconds": seconds}
    if piece is not None:
        places = {sample.id: position for position, sample in enumerate(context.population)}
        return measured | {
            "positions": [places.get(key, -1) for key in rows],
            "total": len(context.population),
            "per_sample": all(key in places for key in rows),
        }
    names = request["sub_types"] or metric.value_names(rows, config)
    values: dict[str, Any] = {}
    for name in names:
        part = list(metric.rows_of(rows, name, config).values())
        values |= values_of(metric, config, request["name"], [name], part, job.seed)
        better = values[name]["direction"]
        if better != expected.get(name, better):
            # Goals were read by what was known before measuring.
            raise EvaluationError(
                f"{request['name']}-{name}: {better} is better, as measuring told; say higher_is_better: "
                f"{str(better == 'higher').lower()} of this sub-type in the workflow"
            )
    return measured | {"values": values}


class _Sessions:
    """Opens each model once for all the metrics of a job."""

    def __init__(self, job: Job, registry: Registry, context: JobContext) -> None:
        self._job, self._registry, self._context = job, registry, context
        self._open: dict[str, Session] = {}

    def opener(self, model: Model) -> Callable[[], Session]:
        """Return what opens a fresh session of `model`, for metrics that watch the opening itself."""
        return lambda: self._start("model", model, ())

    def get(self, role: str, model: Model, needs: Sequence[str]) -> Session:
        if role not in self._open:
            self._open[role] = self._start(role, model, needs)
        return self._open[role]

    def _start(self, role: str, model: Model, needs: Sequence[str]) -> Session:
        job = self._job
        accelerator = job.accelerator
        try:
            entry, given = self._runtime(model, accelerator)
        except ConfigError:
            if role != "reference":
                raise
            # What the source model computes does not depend on the target's device, which may not take its kind.
            accelerator = Accelerator()
            entry, given = self._runtime(model, accelerator)
        runtime = self._registry.resolve(entry)(entry.spec)
        able = runtime.capabilities(model)
        if needs and not set(needs) & set(able):
            raise EvaluationError(
                f"the runtime {entry.spec.name} can't {' or '.join(needs)} with this {model.kind} model; "
                f"it can: {', '.join(able)}"
            )
        options: dict[str, Any] = {"threads": job.resources.thread_count}
        if role == "model" or model.kind == job.inputs["model"].kind:
            options |= given
        for consent in runtime.consents(model):
            self._context.require_consent(consent, f"opening the {model.kind} model")
        session: Session = runtime.open(model, accelerator, dict(runtime.options(accelerator, options)))
        session.capabilities = tuple(able)
        return session

    def _runtime(self, model: Model, accelerator: Accelerator) -> tuple[Registered, Mapping[str, Any]]:
        """Return what opens the model, and the system's options for it."""
        from drupe.core.serving import serving

        options = self._job.options
        return serving(
            self._registry, model.kind, accelerator, options.get("runtime"), options.get("runtime_options", {})
        )

    def close(self) -> None:
        for session in self._open.values():
            session.close()


def _give_data(job: Job, registry: Registry, context: JobContext) -> None:
    from drupe.core.work_data import WorkflowData

    context.data_source = WorkflowData(job.data, registry, Path(job.workflow_dir or "."))


def _staged(job: Job, folder: Path, role: str) -> Model:
    if role not in job.inputs:
        raise ConfigError(f"the job has no input named {role!r}")
    return job.inputs[role].at(folder / "inputs" / role)


WORK: dict[str, Callable[[Job, Path, JobContext], Mapping[str, Any]]] = {
    "import": run_import,
    "pass": run_pass,
    "measure": run_measure,
    "look": run_look,
}
"""Job kind → what does it."""
